"""Name movers are found where they were planted, and each test of a kind is the plain number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.loading.load import load_model
from discovery.backends.weights import ModelWeights
from discovery.engine import Engine
from discovery.errors import MeasurementError
from discovery.methods.ablation import ablate_heads
from discovery.methods.heads import head_kinds
from discovery.methods.heads.name_movers import _paths_into_queries, measure_name_movers
from discovery.methods.patching.edges import measure_edges
from discovery.methods.readout import direct_logit_attribution
from discovery.sites import head
from discovery.tasks import load_task

PAIRS = 16


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The hand-built induction model; its task labels what the induction head reads as IO."""
    path = build_known_circuit("induction").save(tmp_path_factory.mktemp("known") / "induction")
    model = load_model(str(path), device="cpu")
    task = load_task(str(path / "task.jsonl"), model, pairs=PAIRS)
    pairs = tuple(
        replace(pair, labels={"IO": pair.labels["B1"], "S2": pair.labels["B1"] - 1})
        for pair in task.pairs
    )
    return model, replace(task, pairs=pairs)


def test_the_head_that_moves_the_answer(known):
    model, task = known
    engine = Engine(model, task)
    kinds = {
        kind.kind: kind for kind in measure_name_movers(engine, ModelWeights(model), 3, 2, seed=0)
    }
    mover = kinds["name_mover"]
    assert [score.node for score in mover.heads] == ["a1.h1"]
    found = direct_logit_attribution(model, task)
    [direct] = [part.value.mean for part in found.contributions if part.part == "a1.h1"]
    expected = direct / found.logit_difference.mean
    assert mover.heads[0].score.mean == pytest.approx(expected, abs=1e-5)
    assert len(mover.runners_up) == 2
    assert kinds["negative_name_mover"].heads == kinds["s_inhibition"].heads == ()
    check = mover.check
    alone = ablate_heads(model, task, ["a1.h1"])
    assert check.measure == "logit_difference"
    assert check.intact == pytest.approx(alone.metric_clean, abs=1e-5)
    lost = alone.metric_ablated - alone.metric_clean
    assert check.change.mean == pytest.approx(lost, abs=1e-4)
    assert len(check.controls) == 3


def test_the_paths_are_those_of_path_patching(known):
    model, task = known
    engine = Engine(model, task)
    heads = model.info.nodes("heads")
    looks = [0.0 if node in (head(0, 1), head(0, 2), head(1, 0)) else 1.0 for node in heads]
    lost = _paths_into_queries(engine, heads, [head(1, 1)], torch.tensor(looks).numpy())
    effects = measure_edges(engine, [(head(0, 1), head(1, 1)), (head(0, 2), head(1, 1))])
    [block] = [block for _, block in engine.blocks()]
    clean, corrupted = (block.baseline(side).double() for side in ("clean", "corrupted"))
    gap = (clean - corrupted).mean()
    for effect in effects:
        expected = (clean - effect.inputs["q"].double()) / gap
        column = heads.index(effect.source)
        torch.testing.assert_close(lost[:, column], expected, atol=1e-6, rtol=0)
    others = [i for i, node in enumerate(heads) if node not in (head(0, 1), head(0, 2))]
    assert float(lost[:, others].abs().max()) == 0


def test_head_kinds_names_them_on_a_task(known):
    model, task = known
    found = head_kinds(model, task=task, sequences=4, controls=0)
    assert [kind.kind for kind in found.kinds][-3:] == [
        "name_mover",
        "negative_name_mover",
        "s_inhibition",
    ]
    assert "name_mover" in [kind for kind, _ in found.of("a1.h1")]


def test_bad_input(tiny_models, known):
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([6] * 12, seed=1))
    with pytest.raises(MeasurementError, match="without the labels IO and S2"):
        head_kinds(model, task=task)
    few = replace(known[1], pairs=known[1].pairs[:2], splits=known[1].splits[:2])
    engine = Engine(known[0], few)
    with pytest.raises(MeasurementError, match="different answers"):
        measure_name_movers(engine, ModelWeights(known[0]), 0, 1, seed=0)
