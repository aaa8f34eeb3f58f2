"""In half precision, shortcuts add no more error than the rounding of half precision itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.loading.checks import LOGITS_TOLERANCE
from discovery.engine import Engine
from discovery.methods.ablation import ablate_heads
from discovery.methods.patching import measure_node_effects, patch_sweep
from discovery.sites import Ablation

WIDTHS = ("bfloat16", "float16")


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "native"])
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "head_out", "head_out_by_position", "v"])
def test_sweeps_are_those_of_single_precision(
    tiny_models: Any, name: str, site: Any, dtype: str
) -> None:
    task = as_task(random_pairs((6, 4, 7), seed=4))
    wide = tiny_models.load(name)
    narrow = tiny_models.load(name, dtype=dtype)
    expected, sweep = (
        patch_sweep(model, task, site, direction="noising") for model in (wide, narrow)
    )
    assert narrow.info.dtype == dtype
    logits = torch.cat(
        [
            block.logits(side).abs().flatten()
            for _, block in Engine(wide, task).blocks()
            for side in ("clean", "corrupted")
        ]
    )
    allowed = 2 * LOGITS_TOLERANCE[dtype] * float(logits.max())  # a difference of two logits
    torch.testing.assert_close(
        sweep.per_pair.float(), expected.per_pair, atol=allowed, rtol=0, equal_nan=True
    )
    assert sweep.values.dtype == torch.float32


@pytest.mark.parametrize("dtype", WIDTHS)
def test_ablations_and_screens_run(
    tiny_models: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.methods.patching.screening.MIN_RANKED", 1)
    monkeypatch.setattr("discovery.methods.patching.screening.SAMPLE_SIZE", 1)
    model = tiny_models.load("gpt2", dtype=dtype)
    task = as_task(random_pairs((6, 4, 7), seed=4))
    ablations: tuple[Ablation, ...] = ("zero", "mean", "resample")
    for ablation in ablations:
        out = ablate_heads(model, task, ["a1.h0", "m2"], ablation=ablation)
        assert torch.tensor(out.metric_ablated).isfinite()
    screened = patch_sweep(model, task, "head_out", screen=True)
    assert screened.screen is not None
    assert screened.screen.estimates.float().isfinite().all()
    assert measure_node_effects(Engine(model, task), "denoising").values.isfinite().all()
