"""The yardsticks of the benchmarks, by hand and on a model whose circuit is known."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from benchmarks import rivals
from benchmarks.coverage import shares
from benchmarks.lens import activation_patching, attribution_patching, direct_logit_attribution, summed
from benchmarks.nulls import irrelevant, reversed_answers, shuffled
from benchmarks.recovery import exported, fresh, methods_of, regrets
from benchmarks.rivals import RIVALS, run
from benchmarks.subsets import Table, smallest, tabulate
from benchmarks.tally import Answer, Tally, auc, f1
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.backends.batch import Batch, forward_order
from discovery.engine import Side, attributions
from discovery.methods.ablation import NodeSet
from discovery.methods.nodes import node_effects
from discovery.metrics import measure
from discovery.sites import Node, Site
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
    tally.add("one", Answer(nodes("a0.h0", "a0.h1"), {}, 10.0), [nodes("a0.h0", "a1.h0")])
    tally.add("two", Answer(nodes("a0.h0"), {}, 30.0), [nodes("a0.h0")])
    tally.add("none", Answer(nodes(), {}, 20.0, verdict="no_behaviour"), [nodes("a0.h0")])
    assert tally.precision == [0.5, 1.0, 0.0]
    assert tally.recall == [0.5, 1.0, 0.0]
    assert tally.exact == [False, True, False]
    row = tally.row("ours", "+0.1")
    assert "| 0.333 (0.008–0.906) |" in row, "Clopper–Pearson of 1 in 3"
    assert row.startswith("| ours | 3 |")
    assert row.endswith("| – | +0.1 | – | 20 | – |\n"), "no ranking, no AUC; costs: none, the mean, none"
    assert tally.missed[1] == "none (no_behaviour): missing ['a0.h0'], beside it []"


def test_of_several_truths_the_nearest_counts() -> None:
    tally = Tally()
    scores = dict(zip(sorted(nodes("a0.h0", "a0.h1", "a0.h2")), (3.0, 2.0, 1.0), strict=True))
    optima = [nodes("a0.h1", "a0.h2"), nodes("a0.h0", "a0.h1")]
    assert tally.add("one", Answer(nodes("a0.h0", "a0.h1"), scores, 1.0), optima) == optima[1]
    assert (tally.exact, tally.auc, tally.within, tally.best_f1) == ([True], [1.0], [True], [1.0])
    assert tally.add("other", Answer(nodes("a0.h2"), scores, 1.0), optima) == optima[0]
    assert tally.auc == [1.0, 1.0], "a ranking is held against the truth that it fits best"


def test_f1_by_hand() -> None:
    assert f1(nodes("a0.h0", "a0.h1"), nodes("a0.h0", "a0.h2", "a0.h3")) == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert f1(nodes(), nodes("a0.h0")) == 0.0


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
    best = smallest(table.passing())
    assert best == [truth]
    found = regrets(model, task.discovery, [truth, frozenset(), frozenset(table.nodes)], best)
    assert found == pytest.approx([0.0, 1 - table.distance(truth), 0.0]), "closer to 1 than the optimum, for being larger, earns nothing"


def test_more_than_sixteen_nodes_are_refused() -> None:
    model = load_model("bundled", device="cpu")
    with pytest.raises(ValueError, match="20 nodes have 1,048,576 subsets"):
        tabulate(model, load_task("ioi", model, pairs=4))


@pytest.mark.parametrize("name", [name for name in RIVALS if not name.startswith("direct logit attribution")])
def test_every_rival_finds_plain_induction(name: str, case: tuple[Backend, Task]) -> None:
    model, task = case
    known = fresh(model, task.discovery)
    found, again = (run(RIVALS[name], fresh(model, task.discovery), known) for _ in range(2))
    assert found.circuit == again.circuit == nodes("a0.h2", "a1.h1")
    assert set(found.scores) == set(model.info.nodes())
    assert found.forward_equivalents == pytest.approx(again.forward_equivalents), "what was known already is counted all the same"
    assert found.forward_equivalents > 0


def slopes_on(model: Backend, task: Task, side: Side) -> dict[Node, float]:
    """(clean − corrupted) · ∂m/∂node on one side's run, summed over positions and pairs, by autograd on our own pass."""
    [(_, block)] = fresh(model, task).engine.blocks()
    prompts = block.prompts
    sites = rivals.written_at(model.info.nodes())
    order = sorted(set(sites.values()), key=forward_order)
    inputs = block.activation(side, Site("resid_pre", 0)).clone().requires_grad_()
    with torch.enable_grad():
        outcome = model.run(Batch(prompts.tokens(side), prompts.last, 0, inputs), order, grad=True)
        assert outcome.logits is not None
        metric = measure(block.metric, outcome.logits, prompts.answer, prompts.wrong, None).sum()
        slopes = dict(zip(order, torch.autograd.grad(metric, [outcome.activations[site] for site in order]), strict=True))
    changes = {site: block.activation("clean", site) - block.activation("corrupted", site) for site in order}
    products = {site: changes[site] * slopes[site] for site in order}
    return {node: summed(products[site], node) for node, site in sites.items()}


@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_attribution_patching_takes_its_gradient_where_it_says(side: Side, tmp_path: Path) -> None:
    place = build("and_mlp").save(tmp_path / "and_mlp")
    model = load_model(place, device="cpu")
    task = load_task(place / "task.jsonl", model, pairs=8)
    bench = fresh(model, task)
    expected = slopes_on(model, task, side)
    assert attribution_patching(side)(bench) == {node: pytest.approx(abs(value), rel=1e-3, abs=1e-3) for node, value in expected.items()}
    assert bench.engine.meter.spent == 4 * len(task)


def test_integrated_gradients_end_on_the_clean_run_and_approach_the_integral(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = build("and_mlp").save(tmp_path / "and_mlp")
    model = load_model(place, device="cpu")
    task = load_task(place / "task.jsonl", model, pairs=8)
    monkeypatch.setattr(rivals, "STEPS", 1)
    bench = fresh(model, task)
    assert rivals.eap_ig(bench) == {node: pytest.approx(abs(v), rel=1e-3, abs=1e-3) for node, v in slopes_on(model, task, "clean").items()}
    assert bench.engine.meter.spent == pytest.approx(5 * len(task), rel=0.05), "two cached passes, one more and its way back"
    monkeypatch.setattr(rivals, "STEPS", 200)
    found = rivals.eap_ig(fresh(model, task))
    [(_, block)] = fresh(model, task).engine.blocks()
    heads = attributions(block, "clean", "z", 200).sum((0, 2))
    for node, value in found.items():
        if node.head is not None:
            assert value == pytest.approx(abs(float(heads[node.layer, node.head])), rel=0.05, abs=0.5)


def test_published_scores_of_other_pairs_are_refused(case: tuple[Backend, Task]) -> None:
    model, task = case
    record = {"stamp": exported(model, task)["stamp"], "methods": {"theirs": {}}}
    assert methods_of({"a-model": record}, "a model", model, task) == {"theirs": {}}
    assert methods_of({}, "a model", model, task) == {}
    other = load_task("ioi", load_model("bundled", device="cpu"), pairs=4)
    with pytest.raises(ValueError, match="other weights or pairs"):
        methods_of({"a-model": record}, "a model", model, other)


def test_transformer_lens_attribution_is_its_own_functions(tmp_path: Path) -> None:
    """Its node scores, which it gives pair by pair and position by position, summed."""
    place = build("and_mlp").save(tmp_path / "and_mlp")
    model = load_model(place, device="cpu")
    task = load_task(place / "task.jsonl", model, pairs=8)
    expected: dict[tuple[int, int | None], float] = defaultdict(float)
    scores = RIVALS["attribution patching (TransformerLens)"](fresh(model, task))
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


@pytest.mark.parametrize("name", ["and_mlp", "induction_layernorm"])
def test_transformer_lens_patching_gives_the_engines_numbers(name: str, tmp_path: Path) -> None:
    place = build(name).save(tmp_path / name)
    model = load_model(place, device="cpu")
    task = load_task(place / "task.jsonl", model, pairs=16)
    engine = fresh(model, task).engine
    noising, denoising = (node_effects(engine, direction) for direction in ("noising", "denoising"))
    gap = float((engine.baseline("clean") - engine.baseline("corrupted")).sum())
    for made, expected in (
        (activation_patching("noising"), noising.values.abs()),
        (activation_patching("noising", "denoising"), torch.maximum(noising.values.abs(), denoising.values.abs())),
    ):
        scores = made(fresh(model, task))
        assert [scores[node] / gap for node in noising.nodes] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize(("name", "first", "last"), [("induction", "a0.h2", "a1.h1"), ("induction_layernorm", "a0.h1", "a1.h3")])
def test_direct_logit_attribution_sees_the_last_head_alone(name: str, first: str, last: str, tmp_path: Path) -> None:
    place = build(name).save(tmp_path / name)
    model = load_model(place, device="cpu")
    task = load_task(place / "task.jsonl", model, pairs=48)
    bench = fresh(model, task)
    scores = direct_logit_attribution(bench)
    assert max(scores, key=lambda node: scores[node]) == Node.parse(last)
    assert scores[Node.parse(first)] < 0.1 * scores[Node.parse(last)]
    assert bench.engine.meter.spent == len(task)


def test_direct_logit_attribution_takes_the_mean_of_many_answers() -> None:
    """With LayerNorm and MLPs: heads, MLPs and embedding add up to the difference of mean logits, less that of the biases."""
    model = load_model("bundled", device="cpu")
    task = load_task("agreement", model, pairs=4)
    bridge = load_model("bundled", device="cpu", backend="transformerlens").bridge  # type: ignore[attr-defined]
    bridge.enable_compatibility_mode()
    [pair] = task.pairs[:1]
    one = Task(task.name, (pair,), ("discovery",), "none", task.metric)
    expected: dict[str, float] = defaultdict(float)
    for answer, wrong in zip(pair.answer, pair.wrong, strict=True):
        _, cache = bridge.run_with_cache(torch.tensor([pair.clean]))
        direction = (bridge.W_U[:, answer] - bridge.W_U[:, wrong]).detach()
        scale = cache["ln_final.hook_scale"][0, -1].detach()
        for layer in range(model.info.n_layers):
            written = cache["mlp_out", layer][0, -1].detach()
            expected[f"m{layer}"] += float((written - written.mean()) / scale @ direction) / len(pair.answer)
    scores = direct_logit_attribution(fresh(model, one))
    for name, value in expected.items():
        assert scores[Node.parse(name)] == pytest.approx(abs(value), abs=1e-3)


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
