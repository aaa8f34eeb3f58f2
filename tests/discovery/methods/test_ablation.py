"""Ablating sets of nodes: an independent forward pass, and identities on every architecture."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.truth import group_pairs, measure_f
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.info import Abilities
from discovery.backends.loading.load import load_model
from discovery.engine import Engine, Meter
from discovery.errors import BudgetError, MeasurementError, MemoryLimitError, SiteError
from discovery.methods.ablation import NodeSet, SetMetric, ablate_heads, parse_nodes
from discovery.sites import Ablation, Node
from discovery.tasks import load_task
from tests.oracles.evaluation.ablation import metric_with_ablated, reference_activations
from tests.oracles.patching.activation_patching import METRICS

ABLATIONS: tuple[Ablation, ...] = ("resample", "mean", "zero")
MODELS = ("gpt2", "llama", "neox", "opt", "gemma", "native", "attn_only", "rotary")
CLOSE = {"atol": 1e-6, "rtol": 1e-6}


def random_sets(nodes: tuple[Node, ...], count: int, seed: int = 0) -> list[NodeSet]:
    pick = random.Random(seed)
    return [frozenset(pick.sample(nodes, pick.randint(0, len(nodes)))) for _ in range(count)]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", ["native", "attn_only"])
@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ([6] * 10, {}),  # by position
        ([6] * 9 + [4, 7], {"labelled": True}),  # by position, and two pairs by label
        ([5, 3, 6], {"labelled": True}),  # by label
        ([5, 3, 6], {}),  # over everything
        ([5] * 12, {"templates": 2}),  # six of each template: not enough
        ([4], {}),  # a single pair
    ],
    ids=["position", "position and label", "label", "all", "templates", "single"],
)
def test_every_ablation_is_its_definition(tiny_models, name, ablation, lengths, options):
    model = tiny_models.load(name, dtype="float64")
    checkpoint = tiny_models.native(name)
    pairs = random_pairs(lengths, seed=8, **options)
    sets = random_sets(model.info.nodes(), 4)
    references = reference_activations(checkpoint, pairs, ablation)
    got = SetMetric(Engine(model, as_task(pairs)), ablation)(sets)
    for kept, row in zip(sets, got, strict=True):
        ablated = {str(node) for node in model.info.nodes() if node not in kept}
        torch.testing.assert_close(
            row, metric_with_ablated(checkpoint, pairs, references, ablated), **CLOSE
        )


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(["native", "attn_only"]),
    ablation=st.sampled_from(ABLATIONS),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=11),
    changed=st.integers(1, 6),
    same_end=st.booleans(),
    labelled=st.booleans(),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 10**6),
)
def test_any_task(tiny_models, name, ablation, lengths, changed, same_end, labelled, metric, seed):
    model = tiny_models.load(name, dtype="float64")
    checkpoint = tiny_models.native(name)
    pairs = random_pairs(
        lengths,
        seed,
        changed=changed,
        same_end=same_end and min(lengths) > 1,
        labelled=labelled,
        sets=2,
        templates=2,
    )
    (kept,) = random_sets(model.info.nodes(), 1, seed)
    got = SetMetric(Engine(model, as_task(pairs), metric=metric), ablation)([kept])[0]
    ablated = {str(node) for node in model.info.nodes() if node not in kept}
    torch.testing.assert_close(
        got,
        metric_with_ablated(
            checkpoint, pairs, reference_activations(checkpoint, pairs, ablation), ablated, metric
        ),
        **CLOSE,
    )


@pytest.mark.parametrize("name", MODELS)
def test_ablating_nothing_is_the_clean_run(tiny_models, name):
    model = tiny_models.load(name)
    for ablation in ABLATIONS:
        engine = Engine(model, as_task(random_pairs([6, 4, 7])))
        sets = SetMetric(engine, ablation)
        assert torch.equal(sets([sets.everything])[0], engine.baseline("clean"))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", MODELS)
def test_ablating_everything_by_resample_is_the_corrupted_run_if_the_last_tokens_agree(
    tiny_models, name, metric
):
    """The last token is the same on both sides, so only nodes can carry the corruption to it."""
    engine = Engine(
        tiny_models.load(name, dtype="float64"),
        as_task(random_pairs([6, 4, 7], seed=9)),
        metric=metric,
    )
    empty = SetMetric(engine, "resample")([frozenset()])[0]
    torch.testing.assert_close(empty, engine.baseline("corrupted"), **CLOSE)
    assert metric != "logit_difference" or (empty - engine.baseline("clean")).abs().max() > 1e-3


def test_if_the_last_tokens_differ_it_is_not(tiny_models):
    engine = Engine(
        tiny_models.load("native", dtype="float64"),
        as_task(random_pairs([5, 5], seed=9, changed=5, same_end=False)),
    )
    empty = SetMetric(engine, "resample")([frozenset()])[0]
    assert (empty - engine.baseline("corrupted")).abs().max() > 1e-3


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "rotary"])
def test_shortcuts_change_the_cost_and_not_the_numbers(tiny_models, monkeypatch, name, ablation):
    model = tiny_models.load(name, dtype="float64")
    task = as_task(random_pairs([6, 4, 7], seed=10, changed=1))
    sets = random_sets(model.info.nodes(), 6, seed=1)
    quick = SetMetric(Engine(model, task), ablation)(sets)
    monkeypatch.setattr(model, "abilities", Abilities())
    torch.testing.assert_close(SetMetric(Engine(model, task), ablation)(sets), quick, **CLOSE)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_blocks_of_pairs_give_the_same_numbers(tiny_models, ablation):
    """Means are summed over all blocks before any is measured."""
    model = tiny_models.load("gpt2", dtype="float64")
    task = as_task(random_pairs([6] * 10 + [4, 7], seed=11))
    sets = random_sets(model.info.nodes(), 3, seed=2)
    whole = Engine(model, task)
    memory = next(
        size
        for size in range(1000, 10**7, 1000)
        if (engine := _engine(model, task, size)) and len(list(engine.blocks())) <= 5
    )
    little = Engine(model, task, memory=memory)
    assert len(list(little.blocks())) in (4, 5)
    first = SetMetric(little, ablation)
    torch.testing.assert_close(first(sets), SetMetric(whole, ablation)(sets), **CLOSE)
    torch.testing.assert_close(
        first(sets, pairs=7), SetMetric(whole, ablation)(sets)[:, :7], **CLOSE
    )
    torch.testing.assert_close(
        SetMetric(little, ablation)(sets, pairs=7), SetMetric(whole, ablation)(sets)[:, :7], **CLOSE
    )


def _engine(model: Any, task: Any, memory: int) -> Engine | None:
    try:
        return Engine(model, task, memory=memory)
    except MemoryLimitError:
        return None


def test_each_set_is_measured_once(tiny_models):
    model = tiny_models.load("native")
    engine = Engine(model, as_task(random_pairs([5, 5])))
    sets = SetMetric(engine, "resample")
    first, second = random_sets(sets.universe, 2, seed=3)
    assert not sets.is_measured(first)
    got = sets([first, second, first])
    assert torch.equal(got[0], got[2])
    assert sets.is_measured(first)
    spent = engine.meter.spent
    assert torch.equal(sets([second, first]), got[[1, 0]])
    assert engine.meter.spent == spent
    sets([frozenset()])
    assert engine.meter.spent > spent


def test_the_first_pairs_alone_cost_less_and_are_no_full_result(tiny_models):
    engine = Engine(tiny_models.load("native", dtype="float64"), as_task(random_pairs([5] * 6)))
    sets = SetMetric(engine, "resample")
    (kept,) = random_sets(sets.universe, 1, seed=4)
    sets([sets.everything, frozenset()])
    before = engine.meter.spent
    some = sets([kept], pairs=2)
    third = engine.meter.spent - before
    assert some.shape == (1, 2)
    assert not sets.is_measured(kept)
    whole = sets([kept])
    assert engine.meter.spent - before - third == pytest.approx(2 * third), "four of six"
    torch.testing.assert_close(whole[:, :2], some)
    spent = engine.meter.spent
    assert torch.equal(sets([kept], pairs=3), whole[:, :3])
    assert engine.meter.spent == spent


def test_a_universe_of_heads_keeps_the_mlps(tiny_models):
    model = tiny_models.load("native", dtype="float64")
    checkpoint = tiny_models.native("native")
    pairs = random_pairs([5, 6], seed=12)
    sets = SetMetric(Engine(model, as_task(pairs)), "resample", "heads")
    assert all(node.kind == "attention_head" for node in sets.everything)
    heads = {str(node) for node in sets.everything}
    torch.testing.assert_close(
        sets([frozenset()])[0],
        metric_with_ablated(
            checkpoint, pairs, reference_activations(checkpoint, pairs, "resample"), heads
        ),
        **CLOSE,
    )


def test_nodes_outside_the_universe_change_nothing(tiny_models):
    sets = SetMetric(
        Engine(tiny_models.load("native"), as_task(random_pairs([5]))), "resample", "heads"
    )
    kept = frozenset({Node("mlp", 0), Node("attention_head", 0, 1)})
    assert torch.equal(sets([kept]), sets([frozenset({Node("attention_head", 0, 1)})]))


@pytest.mark.parametrize("name", ["induction", "or_mlp"])
def test_faithfulness_of_a_hand_built_circuit(tmp_path, name):
    """f(S) on the pairs that the stored truth is of, its means over the whole of each template."""
    case = build_known_circuit(name)
    model = load_model(case.save(tmp_path / name), device="cpu", dtype="float64")
    task = load_task(tmp_path / name / "task.jsonl", model)
    parts = group_pairs(case)
    pick = random.Random(0)
    sampled = [
        index
        for template in dict.fromkeys(pair.template for pair in case.pairs)
        for index in _first_four(case.pairs, template)
    ]
    subsets = [
        pick.sample(case.universe, pick.randint(1, len(case.universe) - 1)) for _ in range(3)
    ]
    for ablation in ("resample", "mean"):
        expected = measure_f(case, parts, ablation, subsets)  # type: ignore[arg-type]
        sets = SetMetric(Engine(model, task), ablation)  # type: ignore[arg-type]
        kept = [
            frozenset(),
            sets.everything,
            *(frozenset(map(Node.parse, subset)) for subset in subsets),
        ]
        metrics = sets(kept)[:, sampled].mean(1)
        torch.testing.assert_close(
            (metrics[2:] - metrics[0]) / (metrics[1] - metrics[0]), expected, atol=1e-5, rtol=0
        )


def _first_four(pairs: Any, template: str) -> list[int]:
    return [index for index, pair in enumerate(pairs) if pair.template == template][:4]


def test_ablate_heads_by_name(tiny_models):
    model = tiny_models.load("native", dtype="float64")
    checkpoint = tiny_models.native("native")
    pairs = random_pairs([5, 6, 4], seed=13)
    references = reference_activations(checkpoint, pairs, "resample")
    out = ablate_heads(model, as_task(pairs), ["L1H2", "m0", "0.1", "a0.h1"])
    assert out.nodes == ("a0.h1", "m0", "a1.h2")
    torch.testing.assert_close(
        out.per_pair, metric_with_ablated(checkpoint, pairs, references, out.nodes), **CLOSE
    )
    torch.testing.assert_close(
        out.per_pair_clean, metric_with_ablated(checkpoint, pairs, references, ()), **CLOSE
    )
    assert out.metric_ablated == pytest.approx(float(out.per_pair.mean()))
    assert out.metric_clean == pytest.approx(float(out.per_pair_clean.mean()))
    assert (out.ablation, out.metric) == ("resample", "logit_difference")
    assert out.cost.forward_equivalents > 3 * 2
    assert out.cost.seconds > 0


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablating_no_nodes_by_name(tiny_models, ablation):
    out = ablate_heads(
        tiny_models.load("native"), as_task(random_pairs([5, 5])), [], ablation=ablation
    )
    assert torch.equal(out.per_pair, out.per_pair_clean)
    assert out.nodes == ()


@pytest.mark.parametrize(
    ("lengths", "options", "alignment", "size"),
    [
        ([5] * 9, {}, "position", 8),
        ([5] * 8, {}, "all", 7),
        ([5, 5], {"labelled": True}, "label", 0),  # "middle" is a label of the first pair alone
        ([5] * 9 + [4], {}, "all+position", 8),
    ],
)
def test_what_a_mean_was_taken_over_is_recorded(tiny_models, lengths, options, alignment, size):
    out = ablate_heads(
        tiny_models.load("native"),
        as_task(random_pairs(lengths, **options)),
        ["m0"],
        ablation="mean",
    )
    assert (out.reference.alignment, out.reference.size) == (alignment, size)
    assert "corrupted" in str(out.reference.source)


def test_what_else_nodes_are_replaced_by_is_recorded(tiny_models):
    model = tiny_models.load("native")
    task = as_task(random_pairs([5]))
    assert ablate_heads(model, task, ["m0"], ablation="zero").reference.source == "zero"
    resampled = ablate_heads(model, task, ["m0"], ablation="resample").reference
    assert "own corrupted run" in str(resampled.source)
    assert resampled.size == 1


def test_zero_needs_no_corrupted_run(tiny_models):
    model = tiny_models.load("native")
    task = as_task(random_pairs([5, 5]))
    costs = {
        ablation: ablate_heads(model, task, ["a0.h0"], ablation=ablation).cost.forward_equivalents
        for ablation in ABLATIONS
    }
    assert costs["zero"] < 2 * 2 + 1e-9  # the clean run, and no more than another
    # The pairs' own corrupted runs, which are left out of the means, and the reference prompts.
    assert costs["mean"] == pytest.approx(costs["zero"] + 2 + 2)


def test_many_nodes_need_no_more_cached_passes_than_one(tiny_models):
    """One pass serves the clean side, one the corrupted side, and one the reference prompts."""
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([6, 6]))
    out = ablate_heads(model, task, ["a0.h0", "m0", "a1.h0", "m1", "a2.h0", "m2"], ablation="zero")
    assert out.cost.forward_equivalents <= 2 * 2 + 1e-9
    mean = ablate_heads(model, task, ["a0.h0", "m0", "a1.h0", "m1", "a2.h0", "m2"], ablation="mean")
    assert mean.cost.forward_equivalents <= 4 * 2 + 1e-9


@pytest.mark.parametrize(
    ("nodes", "cause"),
    [
        (["a9.h0"], "does not exist"),
        (["a0.h9"], "does not exist"),
        (["embed"], "never ablated"),
        (["logits"], "never ablated"),
        (["head 3"], "not the name of a node"),
    ],
)
def test_nodes_that_cannot_be_ablated(tiny_models, nodes, cause):
    with pytest.raises(SiteError, match=cause):
        ablate_heads(tiny_models.load("native"), as_task(random_pairs([5])), nodes)
    with pytest.raises(SiteError, match="attention-only"):
        parse_nodes(tiny_models.load("attn_only"), ["m0"])


def test_unknown_choices(tiny_models):
    model = tiny_models.load("native")
    task = as_task(random_pairs([5]))
    unknown: Any = "noise"
    with pytest.raises(MeasurementError, match="ablation 'noise' is not known"):
        ablate_heads(model, task, ["m0"], ablation=unknown)
    with pytest.raises(MeasurementError, match="metric 'noise' is not known"):
        ablate_heads(model, task, ["m0"], metric=unknown)


def test_a_budget_that_does_not_reach(tiny_models):
    engine = Engine(
        tiny_models.load("native"), as_task(random_pairs([5] * 4)), meter=Meter(limit=9.0)
    )
    sets = SetMetric(engine, "resample")
    with pytest.raises(BudgetError, match="controls needs"):
        sets(random_sets(sets.universe, 40), "controls")
    assert engine.meter.spent == pytest.approx(
        2 * 4
    )  # one cached pass of each side; no row of an ablation
    assert sets([sets.everything]).shape == (1, 4)
