"""Sweeps equal the naive loop on architectures for which some shortcut does not hold."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import (
    OTHER_ARCHITECTURES,
    as_task,
    load_plain_module,
    random_pairs,
)
from discovery.engine import Engine
from discovery.errors import SiteError
from discovery.methods.ablation import SetMetric
from discovery.methods.patching import patch_sweep
from discovery.sites import SITE_NAMES, Site
from tests.oracles.patching import activation_patching

pytestmark = pytest.mark.slow
NARROW = ("mixtral", "xglm", "qwen2_moe")  # Hugging Face runs them in float32 at most


def width(name: str) -> str:
    return "float32" if name in NARROW else "float64"


@pytest.mark.parametrize("name", OTHER_ARCHITECTURES)
def test_sweeps_are_the_naive_loop(tiny_models, name):
    model = tiny_models.load(name, dtype=width(name))
    task = as_task(random_pairs([6, 4, 7], seed=1))
    measured = []
    for site in SITE_NAMES:
        kind = "z" if site.startswith("head_out") else site
        try:
            got = patch_sweep(model, task, site)
        except SiteError:
            with pytest.raises(SiteError):
                activation_patching.naive_sweep(model, task.pairs, site, "denoising", (0,))
            continue
        truth = activation_patching.naive_sweep(
            model, task.pairs, site, "denoising", got.positions
        ).per_pair("logit_difference")
        scale = max(1.0, float(truth.nan_to_num().abs().max()))
        torch.testing.assert_close(
            got.per_pair.double(),
            truth,
            atol=3e-5 * scale,
            rtol=0,
            equal_nan=True,
            msg=lambda text, at=kind: f"{at}: {text}",
        )
        measured.append(site)
    assert {"resid_pre", "resid_post", "attn_out", "mlp_out", "head_out"} <= set(measured)


@pytest.mark.parametrize("name", OTHER_ARCHITECTURES)
def test_identities(tiny_models, name):
    model = tiny_models.load(name, dtype=width(name))
    task = as_task(random_pairs([6, 4, 7], seed=2))
    assert patch_sweep(model, task, "resid_post").values[-1, -1] == pytest.approx(1, abs=1e-5)
    engine = Engine(model, task)
    sets = SetMetric(engine, "resample")
    empty, full = sets([frozenset(), sets.everything])
    assert torch.equal(full, engine.baseline("clean"))
    torch.testing.assert_close(empty, engine.baseline("corrupted"), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", OTHER_ARCHITECTURES)
def test_edits_reach_the_plain_module(tiny_models, name):
    """The stream between blocks is replaced by a plain torch hook on the unwrapped module."""
    from discovery.backends.base import Batch
    from discovery.interventions import replace_with

    model = tiny_models.load(name, dtype=width(name))
    module = load_plain_module(tiny_models.path(name), getattr(torch, width(name)))
    tokens = torch.tensor([pair.clean for pair in random_pairs([6, 6])])
    blocks = max(
        (part for part in module.modules() if isinstance(part, torch.nn.ModuleList)), key=len
    )
    stream = torch.randn(
        2, 6, 16, generator=torch.Generator().manual_seed(0), dtype=getattr(torch, width(name))
    )
    blocks[1].register_forward_pre_hook(
        lambda part, args, kwargs: (
            ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})
        ),
        with_kwargs=True,
    )
    expected = module(input_ids=tokens, use_cache=False).logits[:, -1]
    got = model.run(
        Batch(tokens, torch.tensor([5, 5])), edits=[replace_with(Site("resid_pre", 1), stream)]
    ).logits
    torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
