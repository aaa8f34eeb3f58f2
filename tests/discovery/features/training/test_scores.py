"""The scores are what their definitions say, against the plain Hugging Face module."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import load_plain_module
from discovery.features.sae import Codes
from discovery.features.training.scores import score_sae
from discovery.sites import Site
from tests.discovery.features.training.conftest import token_rows

SITE = Site("resid_post", 1)


def exact(x):
    return Codes(x, x, torch.ones_like(x[..., :1]))


def nothing(x):
    return Codes(torch.zeros_like(x), torch.zeros_like(x), torch.ones_like(x[..., :1]))


def half(x):
    return Codes(torch.ones_like(x), 0.5 * x, torch.ones_like(x[..., :1]))


def cross_entropy(module, rows, change=None, skip=0):
    """By a hook on the plain module, row by row."""

    def hook(_, __, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if change is not None:
            hidden = hidden.clone()
            hidden[:, skip:] = change(hidden[:, skip:])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.transformer.h[SITE.layer].register_forward_hook(hook)
    total = count = 0
    try:
        with torch.no_grad():
            for row in rows:
                logits = module(torch.tensor([row])).logits[0, skip:-1]
                total += float(
                    torch.nn.functional.cross_entropy(
                        logits, torch.tensor(row[skip + 1 :]), reduction="sum"
                    )
                )
                count += len(row) - 1 - skip
    finally:
        handle.remove()
    return total / count


@pytest.mark.parametrize("skip", [0, 1])
def test_against_the_plain_module(skip, tiny_models):
    model, module, rows = (
        tiny_models.load("gpt2"),
        load_plain_module(tiny_models.path("gpt2")),
        token_rows(40),
    )
    found = score_sae(model, SITE, rows, skip, half, 0.25)
    assert (found.tokens, found.l0, found.dead) == (
        sum(len(row) - skip for row in rows),
        16.0,
        0.25,
    )
    assert found.loss_clean == pytest.approx(cross_entropy(module, rows, None, skip), abs=1e-4)
    assert found.loss_spliced == pytest.approx(
        cross_entropy(module, rows, lambda x: 0.5 * x, skip), abs=1e-4
    )
    assert found.loss_zero == pytest.approx(
        cross_entropy(module, rows, torch.zeros_like, skip), abs=1e-4
    )
    wanted = (found.loss_zero - found.loss_spliced) / (found.loss_zero - found.loss_clean)
    assert found.loss_recovered == (
        pytest.approx(wanted) if found.loss_zero > found.loss_clean else None
    )
    with torch.no_grad():
        hidden = torch.cat(
            [
                module(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0, skip:]
                for row in rows
            ]
        )
    residual = (0.5 * hidden).square().sum() / (hidden - hidden.mean(0)).square().sum()
    assert found.variance_explained == pytest.approx(1 - float(residual), abs=1e-4)
    mean = hidden.mean(0)
    assert found.loss_mean == pytest.approx(
        cross_entropy(module, rows, lambda x: mean.expand_as(x), skip), abs=1e-4
    )


@pytest.mark.parametrize("name", ["gpt2", "rotary", "attn_only"])
@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "z", "k"])
def test_the_identity_loses_nothing_and_nothing_loses_all(kind, name, tiny_models):
    model, rows, site = tiny_models.load(name), token_rows(12), Site(kind, 1)
    found = score_sae(model, site, rows, 0, exact)
    assert found.variance_explained == pytest.approx(1)
    assert found.loss_spliced == pytest.approx(found.loss_clean, abs=1e-5)
    none = score_sae(model, site, rows, 0, nothing)
    assert none.l0 == 0
    assert none.loss_spliced == pytest.approx(none.loss_zero, abs=1e-6)
    if found.loss_recovered is not None:
        assert found.loss_recovered == pytest.approx(1, abs=1e-3)
        assert none.loss_recovered == pytest.approx(0, abs=1e-3)
