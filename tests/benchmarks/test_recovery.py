"""The yardsticks of the benchmarks, by hand and on a model whose circuit is known."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from benchmarks.coverage import shares
from benchmarks.nulls import irrelevant, reversed_answers, shuffled
from benchmarks.recovery import Answer, Tally, auc, fresh, regret
from benchmarks.rivals import RIVALS, run
from benchmarks.subsets import Table, tabulate
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.evaluation import Bench
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.tasks.task import Pair, Task
from tests.handbuilt.models import build
from tests.handbuilt.truth import groups, known
from tests.handbuilt.truth import tabulate as tabulate_plainly


def nodes(*names: str) -> NodeSet:
    return frozenset(map(Node.parse, names))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Task]:
    place = build("induction").save(tmp_path_factory.mktemp("models") / "induction")
    model = load_model(place, device="cpu")
    return model, load_task(place / "task.jsonl", model, pairs=48)


def test_auc_by_hand() -> None:
    scores = {Node.parse(name): value for name, value in (("a0.h0", 3.0), ("a0.h1", 2.0), ("a0.h2", 2.0), ("a0.h3", 1.0))}
    assert auc(scores, nodes("a0.h0")) == 1.0
    assert auc(scores, nodes("a0.h1")) == pytest.approx((0 + 0.5 + 1) / 3)
    assert auc(scores, nodes("a0.h3")) == 0.0
    assert auc(scores, nodes()) is None


def test_a_tally_counts_what_is_missing_and_what_is_too_much() -> None:
    tally = Tally()
    tally.add("one", Answer(nodes("a0.h0", "a0.h1"), {}, 10.0), nodes("a0.h0", "a1.h0"))
    tally.add("two", Answer(nodes("a0.h0"), {}, 30.0), nodes("a0.h0"))
    tally.add("none", Answer(nodes(), {}, 20.0, "no_behaviour"), nodes("a0.h0"))
    assert tally.precision == [0.5, 1.0, 0.0]
    assert tally.recall == [0.5, 1.0, 0.0]
    assert tally.exact == [False, True, False]
    tally.auc = [1.0]
    assert "| 0.333 (0.008–0.906) |" in tally.row("ours"), "Clopper–Pearson of 1 in 3"
    assert tally.missed[1] == "none (no_behaviour): missing ['a0.h0'], beside it []"


def test_a_table_of_every_subset_is_that_of_the_plain_forward_pass(case: tuple[Backend, Task]) -> None:
    """Means are over other pairs there, so resample alone is compared, on the pairs that both have."""
    model, _ = case
    built = build("induction")
    names = [str(node) for node in model.info.nodes()]
    assert tuple(names) == built.universe
    parts = groups(built)
    pairs = [
        {"clean": c, "corrupted": k, "answer": a, "wrong": w}
        for part in parts
        for c, k, a, w in zip(part.clean.tolist(), part.corrupted.tolist(), part.answers.tolist(), part.wrongs.tolist(), strict=True)
    ]
    read = load_task(pairs, model)
    both = Task(read.name, read.pairs, ("discovery",) * len(read), "none", read.metric)
    table = tabulate(model, both)
    assert table.f["resample"] == pytest.approx(tabulate_plainly(built, parts, "resample").tolist(), abs=1e-4)
    circuit = nodes("a0.h2", "a1.h1")
    assert table.of(circuit, "resample") == table.f["resample"][sum(1 << names.index(str(node)) for node in circuit)]


def test_the_optimum_of_a_known_model_is_its_truth(case: tuple[Backend, Task]) -> None:
    model, task = case
    table = tabulate(model, task.discovery)
    truth = nodes(*known("induction", "resample").nodes)
    assert table.passing()[0] == truth
    assert regret(table, truth, table.passing()) == (0, pytest.approx(0.0))
    assert regret(table, truth | nodes("a0.h0"), table.passing())[0] == 1


def test_more_than_sixteen_nodes_are_refused() -> None:
    model = load_model("bundled", device="cpu")
    with pytest.raises(ValueError, match="20 nodes have 1,048,576 subsets"):
        tabulate(model, load_task("ioi", model, pairs=4))


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "direct logit attribution"])
def test_every_rival_finds_plain_induction(name: str, case: tuple[Backend, Task]) -> None:
    model, task = case
    known = fresh(model, task)
    found, again = (run(RIVALS[name], fresh(model, task), known) for _ in range(2))
    assert found.circuit == again.circuit == nodes("a0.h2", "a1.h1")
    assert set(found.scores) == set(model.info.nodes())
    assert found.forward_equivalents == pytest.approx(again.forward_equivalents), "what was known already is counted all the same"
    assert found.forward_equivalents > 0


def test_transformer_lens_attribution_is_its_own_functions(tmp_path: Path) -> None:
    """Its node scores, which it gives pair by pair and position by position, summed."""
    place = build("and_mlp").save(tmp_path / "and_mlp")
    model = load_model(place, device="cpu")
    task = load_task(place / "task.jsonl", model, pairs=8)
    expected: dict[tuple[int, int | None], float] = defaultdict(float)
    scores = RIVALS["attribution patching (TransformerLens)"](Bench.of(model, task, "all", 0, metric=None, memory=None, meter=Meter()))
    bridge = model.bridge  # type: ignore[attr-defined]
    bridge.requires_grad_(True)
    for pair in task.pairs:
        clean, corrupted = torch.tensor([pair.clean]), torch.tensor([pair.corrupted])
        made = attribution_patch(bridge, clean, corrupted, lambda logits, p=pair: logits[0, -1, p.answer[0]] - logits[0, -1, p.wrong[0]])
        for node, value in made.node_scores.items():
            if node.layer is not None:
                expected[node.layer, node.head] += value
    bridge.requires_grad_(False)
    assert scores == {node: pytest.approx(abs(expected[node.layer or 0, node.head]), abs=1e-3) for node in model.info.nodes()}


def test_direct_logit_attribution_sees_the_last_head_alone(case: tuple[Backend, Task]) -> None:
    model, task = case
    scores = RIVALS["direct logit attribution"](Bench.of(model, task.discovery, "all", 0, metric=None, memory=None, meter=Meter()))
    assert max(scores, key=lambda node: scores[node]) == Node.parse("a1.h1")
    assert scores[Node.parse("a0.h2")] < 0.1 * scores[Node.parse("a1.h1")]


def test_nulls_change_what_they_say_and_nothing_else() -> None:
    pairs = [Pair((1, n, 9, 2), (1, 30 + n, 9, 2), (5,), (6,), "t", {"subject": 1, "end": 3}) for n in range(10, 20)]
    pairs += [Pair((1, 25, 8, 2), (1, 26, 8, 2), (5,), (6,), "t", {"subject": 1, "end": 3})]
    changed = irrelevant(pairs[0], random.Random(0), pairs)
    assert changed.corrupted == (1, 10, 8, 2), "the one free word that another prompt of the wording has"
    assert (changed.clean, changed.answer) == (pairs[0].clean, pairs[0].answer)
    back = reversed_answers(pairs[0], random.Random(0), pairs)
    assert (back.answer, back.wrong) == ((6,), (5,))
    tossed = [shuffled(pair, random.Random(n), pairs).answer for n, pair in enumerate(pairs * 20)]
    assert 70 < tossed.count((6,)) < 150


def test_shares_add_up() -> None:
    assert shares([10, 10, 10], 10) == [4, 3, 3]
    assert shares([600, 600, 1200], 48) == [12, 12, 24]


def test_the_distance_is_the_worse_of_both_ablations() -> None:
    table = Table((Node.parse("a0.h0"),), {"resample": [0.0, 0.9], "mean": [0.0, 1.3]}, 1.0)
    assert table.distance(nodes("a0.h0")) == pytest.approx(0.3)
