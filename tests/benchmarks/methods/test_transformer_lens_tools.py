"""TransformerLens's tools as methods: they compute what the library says they compute."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.methods.baselines import BASELINES
from benchmarks.methods.evaluator import as_one_split, new_evaluator
from benchmarks.methods.transformer_lens_tools import (
    make_activation_patching,
    make_attribution_patching,
    score_by_direct_logit_attribution,
)
from discovery import load_model, load_task
from discovery.engine import Side
from discovery.methods.patching import measure_node_effects
from discovery.sites import Node
from tests.oracles.patching.node_gradients import attribute_by_autograd


@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_attribution_patching_takes_its_gradient_where_it_says(side: Side, tmp_path: Path) -> None:
    model, task = build_known_circuit("and_mlp").load(tmp_path / "and_mlp", 8, device="cpu")
    evaluator = new_evaluator(model, task)
    expected = attribute_by_autograd(model, task, side)
    assert make_attribution_patching(side)(evaluator) == {
        node: pytest.approx(abs(value), rel=1e-3, abs=1e-3) for node, value in expected.items()
    }
    assert evaluator.engine.meter.spent == 4 * len(task)


def test_transformer_lens_attribution_is_its_own_functions(tmp_path: Path) -> None:
    """The library's node scores are summed here pair by pair."""
    model, task = build_known_circuit("and_mlp").load(tmp_path / "and_mlp", 8, device="cpu")
    expected: dict[tuple[int, int | None], float] = defaultdict(float)
    scores = BASELINES["attribution patching (TransformerLens)"](new_evaluator(model, task))
    bridge = model.bridge  # type: ignore[attr-defined]
    bridge.requires_grad_(True)
    for pair in task.pairs:
        clean, corrupted = torch.tensor([pair.clean]), torch.tensor([pair.corrupted])
        result = attribution_patch(
            bridge,
            clean,
            corrupted,
            lambda logits, p=pair: logits[0, -1, p.answer[0]] - logits[0, -1, p.wrong[0]],
        )
        for node, value in result.node_scores.items():
            if node.layer is not None:
                expected[node.layer, node.head] += value
    bridge.requires_grad_(False)
    assert scores == {
        node: pytest.approx(abs(expected[node.layer or 0, node.head]), abs=1e-3)
        for node in model.info.nodes()
    }


@pytest.mark.parametrize("name", ["and_mlp", "induction_layernorm"])
def test_transformer_lens_patching_gives_the_engines_numbers(name: str, tmp_path: Path) -> None:
    model, task = build_known_circuit(name).load(tmp_path / name, 16, device="cpu")
    engine = new_evaluator(model, task).engine
    noising, denoising = (
        measure_node_effects(engine, direction) for direction in ("noising", "denoising")
    )
    gap = float((engine.baseline("clean") - engine.baseline("corrupted")).sum())
    for method, expected in (
        (make_activation_patching("noising"), noising.values.abs()),
        (
            make_activation_patching("noising", "denoising"),
            torch.maximum(noising.values.abs(), denoising.values.abs()),
        ),
    ):
        scores = method(new_evaluator(model, task))
        assert [scores[node] / gap for node in noising.nodes] == pytest.approx(
            expected.tolist(), abs=1e-4
        )


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("induction", "a0.h2", "a1.h1"), ("induction_layernorm", "a0.h1", "a1.h3")],
)
def test_direct_logit_attribution_sees_the_last_head_alone(
    name: str, first: str, last: str, tmp_path: Path
) -> None:
    model, task = build_known_circuit(name).load(tmp_path / name, 48, device="cpu")
    evaluator = new_evaluator(model, task)
    scores = score_by_direct_logit_attribution(evaluator)
    assert max(scores, key=lambda node: scores[node]) == Node.parse(last)
    assert scores[Node.parse(first)] < 0.1 * scores[Node.parse(last)]
    assert evaluator.engine.meter.spent == len(task)


def test_direct_logit_attribution_takes_the_mean_of_many_answers() -> None:
    """The scores of the MLPs are computed from the model's cache with one answer at a time."""
    model = load_model("bundled", device="cpu")
    task = load_task("agreement", model, pairs=4)
    bridge = load_model("bundled", device="cpu", backend="transformerlens").bridge  # type: ignore[attr-defined]
    bridge.enable_compatibility_mode()
    pair = task.pairs[0]
    single_pair_task = as_one_split(task, [pair])
    expected: dict[str, float] = defaultdict(float)
    for answer, wrong in zip(pair.answer, pair.wrong, strict=True):
        _, cache = bridge.run_with_cache(torch.tensor([pair.clean]))
        direction = (bridge.W_U[:, answer] - bridge.W_U[:, wrong]).detach()
        scale = cache["ln_final.hook_scale"][0, -1].detach()
        for layer in range(model.info.n_layers):
            written = cache["mlp_out", layer][0, -1].detach()
            expected[f"m{layer}"] += float((written - written.mean()) / scale @ direction) / len(
                pair.answer
            )
    scores = score_by_direct_logit_attribution(new_evaluator(model, single_pair_task))
    for name, value in expected.items():
        assert scores[Node.parse(name)] == pytest.approx(abs(value), abs=1e-3)
