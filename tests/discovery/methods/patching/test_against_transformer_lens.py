"""One pair, against `transformer_lens.patching` on the same model.

That is the field's own implementation, with one full forward pass for each cell.

Its functions put clean activations into the corrupted run (denoising); with the caches exchanged
they are noising. get_act_patch_resid_mid is left out: the hook of that name in the bridge feeds the
MLP alone, so that patching it leaves the residual stream unpatched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.loading.load import load_model
from discovery.methods.patching import patch_sweep
from discovery.sites import Direction, SiteName
from discovery.tasks.task import EncodedPair

# Our site, theirs, and what makes their axes ours.
FUNCTIONS: tuple[tuple[SiteName, str, Callable[[Tensor], Tensor]], ...] = (
    ("resid_pre", "get_act_patch_resid_pre", lambda grid: grid),
    ("attn_out", "get_act_patch_attn_out", lambda grid: grid),
    ("mlp_out", "get_act_patch_mlp_out", lambda grid: grid),
    ("head_out", "get_act_patch_attn_head_out_all_pos", lambda grid: grid),
    (
        "head_out_by_position",
        "get_act_patch_attn_head_out_by_pos",
        lambda grid: grid.transpose(1, 2),
    ),  # [layer pos head]
    ("q", "get_act_patch_attn_head_q_all_pos", lambda grid: grid),
    ("k", "get_act_patch_attn_head_k_all_pos", lambda grid: grid),
    ("v", "get_act_patch_attn_head_v_all_pos", lambda grid: grid),
    ("pattern", "get_act_patch_attn_head_pattern_all_pos", lambda grid: grid),
)


@pytest.mark.parametrize(
    ("site", "function", "ours"), FUNCTIONS, ids=[site for site, *_ in FUNCTIONS]
)
@pytest.mark.parametrize(
    ("name", "direction"),
    [("gpt2", "denoising"), ("gpt2", "noising"), ("llama", "denoising"), ("neox", "noising")],
)
def test_a_grid_is_theirs(
    tiny_models,
    name: str,
    site: SiteName,
    function: str,
    ours: Callable[[Tensor], Tensor],
    direction: Direction,
):
    from transformer_lens import patching

    model = tiny_models.load(name)
    task = as_task(random_pairs([6], seed=2))
    (pair,) = task.pairs
    got = patch_sweep(model, task, site, direction=direction)
    base, source = (
        (pair.corrupted, pair.clean) if direction == "denoising" else (pair.clean, pair.corrupted)
    )

    def metric(logits: Tensor) -> Tensor:
        last = logits[0, -1].double()
        m = last[pair.answer[0]] - last[pair.wrong[0]]
        change = (
            m - got.metric_corrupted[0] if direction == "denoising" else got.metric_clean[0] - m
        )
        return change / (got.metric_clean[0] - got.metric_corrupted[0])

    bridge: Any = model.bridge
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([source]))
        theirs = ours(getattr(patching, function)(bridge, torch.tensor([base]), cache, metric))
    gap = abs(float(got.metric_clean - got.metric_corrupted))
    torch.testing.assert_close(got.values, theirs, atol=1e-5 / min(gap, 1.0), rtol=1e-5)
    assert theirs.abs().max() > 0.05


@pytest.mark.parametrize(
    ("site", "function", "ours"), FUNCTIONS[:4], ids=[site for site, *_ in FUNCTIONS[:4]]
)
def test_on_a_trained_model(
    shared_models, site: SiteName, function: str, ours: Callable[[Tensor], Tensor]
):
    """A repeated piece of a story exchanged."""
    from transformer_lens import patching

    folder = shared_models / "stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip("stories260K is not among the shared models")
    model = load_model(folder, device="cpu")
    encode = model.tokenizer.encode  # type: ignore[union-attr]
    clean = tuple(encode("Once upon a time, Tim was sad. Tim was"))
    name, another = (
        next(token for token in clean if clean.count(token) == 2),
        encode(" big")[-1],
    )  # a piece of the name
    corrupted = tuple(another if token == name else token for token in clean)
    answer = torch.tensor(encode(" happy")[-1:])
    wrong = torch.tensor(encode(" big")[-1:])
    task = as_task(
        [
            EncodedPair(
                clean=clean,
                corrupted=corrupted,
                answer=tuple(answer.tolist()),
                wrong=tuple(wrong.tolist()),
            )
        ]
    )
    got = patch_sweep(model, task, site)
    bridge: Any = model.bridge
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([clean]))
        raw = getattr(patching, function)(
            bridge,
            torch.tensor([corrupted]),
            cache,
            lambda logits: logits[0, -1, answer] - logits[0, -1, wrong],
        )
    torch.testing.assert_close(got.per_pair[0], ours(raw), atol=2e-5, rtol=1e-5)
