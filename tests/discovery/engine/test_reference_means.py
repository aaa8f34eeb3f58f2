"""The means of mean ablation, against nested loops that follow their definition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.random_models.tiny_models import as_task, load_plain_module, random_pairs
from discovery.engine import Engine, Meter, ReferenceMeans, new_reference
from discovery.engine.reference_plan import MIN_REFERENCE_PROMPTS
from discovery.errors import BudgetError
from discovery.graph import RulesVersion
from discovery.sites import Site
from discovery.tasks.reference import ReferencePrompt, divide_into_halves
from discovery.tasks.task import EncodedPair, Task, list_corrupted
from tests.discovery.engine.runs import logits_of
from tests.oracles.evaluation.mean_reference import MeanOracle
from tests.oracles.models.hooked_module import HookedModule

SITES = (Site("z", 0), Site("mlp_out", 1))
EXACT = {"atol": 1e-9, "rtol": 1e-9}


class GrowingReference:
    """A source that draws more prompts, from a list of random ones.

    Attributes:
        builtin: the name of a task.
    """

    description = "random prompts"
    per_group = 8
    builtin = "ioi"

    def __init__(self, lengths: Sequence[int], templates: int = 1) -> None:
        """Draw many prompts of each length and template."""
        pairs = random_pairs(tuple(lengths) * 40, seed=77, templates=templates, labelled=True)
        self.prompts = [pair.as_reference for pair in pairs]

    def draw(self, per_group: int) -> tuple[ReferencePrompt, ...]:
        """Return the first so many of each template and length."""
        counts: dict[tuple[str, int], int] = {}
        drawn = []
        for prompt in self.prompts:
            group = (prompt.template, len(prompt.tokens))
            counts[group] = counts.get(group, 0) + 1
            if counts[group] <= per_group:
                drawn.append(prompt)
        return tuple(drawn)


def read(model: Any, tokens: Sequence[int]) -> dict[Site, Tensor]:
    """Return the sites of one prompt that is run alone, [pos feature]."""
    activations = logits_of(model, tokens, SITES).activations
    return {site: activations[site][0].flatten(1) for site in SITES}


def check_means(engine: Engine, half: int | None = None) -> tuple[str, int]:
    """Compare every value with the definition; return the alignment and the size."""
    model = engine.backend
    prompts = engine.reference.prompts
    halves = divide_into_halves(prompts)
    used = [number for number, own in enumerate(halves) if half in (None, own)]
    engine.prepare_means(SITES)
    kinds = set()
    sizes = []
    tokens = {prompt.tokens for prompt in prompts} | {pair.corrupted for pair in engine.task.pairs}
    values = {each: read(model, each) for each in sorted(tokens)}
    for site in SITES:
        own_values = [values[prompt.tokens][site] for prompt in prompts]
        oracle = MeanOracle(prompts, own_values, engine.rules, used)
        for first, block in engine.blocks():
            got = engine.reference_values("mean", first, block, site, half)
            for row, pair in enumerate(block.prompts.pairs):
                own = values[pair.corrupted][site]
                for position in range(len(pair.clean)):
                    expected, alignment, size = oracle.mean(pair, own, position)
                    torch.testing.assert_close(got[row, position].flatten(), expected, **EXACT)
                    kinds.add(alignment)
                    sizes.append(size)
    if half is None:
        assert engine.reference_plan.alignment == "+".join(sorted(kinds))
        assert engine.reference_plan.size == min(sizes)
    return engine.reference_plan.alignment, engine.reference_plan.size


def aligned(model: Any, pairs: Sequence[EncodedPair], rules: RulesVersion = 2) -> str:
    return check_means(Engine(model, as_task(pairs), rules=rules))[0]


@pytest.fixture
def model(tiny_models: Any) -> Any:
    return tiny_models.load("native", dtype="float64")


@pytest.mark.parametrize("rules", [1, 2])
def test_how_positions_are_aligned(model: Any, rules: RulesVersion) -> None:
    enough = MIN_REFERENCE_PROMPTS + 1
    assert aligned(model, random_pairs([5] * enough), rules) == "position"
    assert aligned(model, random_pairs([5] * (enough - 1)), rules) == "all"
    assert aligned(model, random_pairs([5] * (enough - 1), labelled=True), rules) == "label"
    assert aligned(model, random_pairs([5] * 16, templates=2), rules) == "all"
    assert aligned(model, random_pairs([5] * 8 + [6] * 8), rules) == "all"
    assert aligned(model, random_pairs([5] * 9 + [4, 6], labelled=True), rules) == "label+position"
    assert aligned(model, random_pairs([5] * 9 + [4, 6]), rules) == "all+position"


def test_the_first_position_is_apart_without_labels(model: Any) -> None:
    """So that the values of a token that begins every prompt reach no other position."""
    pairs = random_pairs([5, 5, 4])
    engines = [Engine(model, as_task(pairs), rules=rules) for rules in (1, 2)]
    first, later = [], []
    for engine in engines:
        check_means(engine)
        ((number, block),) = engine.blocks()
        values = engine.reference_values("mean", number, block, SITES[0])
        first.append(values[:, 0])
        later.append(values[:, 1])
    assert torch.equal(first[0], later[0])
    assert not torch.allclose(first[1], later[1])


def test_a_label_of_one_pair_alone_has_no_other_value(model: Any) -> None:
    pairs = random_pairs([5, 6], labelled=True)  # only the first has "middle"
    assert check_means(Engine(model, as_task(pairs))) == ("label", 0)


def test_both_splits_give_reference_prompts(model: Any) -> None:
    """Version 2 takes the corrupted prompts of both splits, version 1 those of the same split."""
    pairs = random_pairs([5] * 18)
    task = Task(
        name="t",
        pairs=pairs,
        splits=("discovery", "heldout") * 9,
        split_method="by hand",
    )
    reference = new_reference(model, task, meter=Meter())
    for split in (task.discovery, task.heldout):
        assert check_means(Engine(model, split, reference=reference)) == ("position", 17)
        assert check_means(Engine(model, split, rules=1)) == ("position", 8)
    assert reference.spent == 18, "both splits share one pass over the prompts"


def test_reference_lines_are_never_left_out(model: Any) -> None:
    pairs = random_pairs([5] * 6, labelled=True)
    lines = tuple(pair.as_reference for pair in random_pairs([5] * 20, seed=5, labelled=True))
    task = as_task(pairs)
    source = list_corrupted(task, lines)
    means = ReferenceMeans(model, source, meter=Meter())
    assert check_means(Engine(model, task, reference=means)) == ("position", 25)
    assert "and 20 reference lines" in source.description


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(st.integers(2, 4), min_size=1, max_size=14),
    templates=st.integers(1, 2),
    labelled=st.booleans(),
    block=st.integers(1, 20),
    half=st.sampled_from([None, 0, 1]),
    rules=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_any_lengths_templates_labels_and_blocks(
    tiny_models: Any, lengths, templates, labelled, block, half, rules, seed
) -> None:
    model = tiny_models.load("native", dtype="float64")
    pairs = random_pairs(lengths, seed, templates=templates, labelled=labelled, changed=1)
    engine = Engine(model, as_task(pairs), rules=rules)
    bounds = [*range(0, len(pairs), block), len(pairs)]
    engine._block_bounds = list(pairwise(bounds))
    check_means(engine, half)


@pytest.mark.parametrize("backend", ["transformerlens", "nnsight"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_fresh_prompts_against_plain_hooks(tiny_models: Any, kind: str, backend: Any) -> None:
    """Means over prompts of two lengths, read from the plain module one prompt at a time."""
    model = tiny_models.load(kind, backend)
    module = HookedModule(load_plain_module(tiny_models.path(kind)), kind)
    source = GrowingReference([5, 6])
    means = ReferenceMeans(model, source, meter=Meter())
    means.per_group = 10
    pairs = random_pairs([5, 6, 5], seed=3, labelled=True)
    engine = Engine(model, as_task(pairs), reference=means)
    engine.prepare_means(SITES)
    ((first, block),) = engine.blocks()
    for site in SITES:
        values = {
            p.tokens: module.run(torch.tensor([p.tokens]), reads=[site])[1][site][0].flatten(1)
            for p in source.draw(10)
        }
        got = engine.reference_values("mean", first, block, site)
        for row, pair in enumerate(pairs):
            group = [value for tokens, value in values.items() if len(tokens) == len(pair.clean)]
            expected = torch.stack(group).mean(0)
            own = got[row, : len(pair.clean)].flatten(1)
            torch.testing.assert_close(own, expected, atol=2e-5, rtol=1e-4)
    assert engine.reference_plan.size == 10
    assert engine.reference_plan.alignment == "position"


def test_more_prompts_are_added_to_the_sums(model: Any) -> None:
    """Twice as many prompts give the means of all of them, and only the new ones are run."""
    task = as_task(random_pairs([5, 5, 4], labelled=True))
    means = ReferenceMeans(model, GrowingReference([4, 5]), meter=Meter())
    engine = Engine(model, task, reference=means)
    assert check_means(engine) == ("position", 8)
    assert means.spent == 16
    for size, spent in ((16, 32), (32, 64)):
        assert means.extend()
        assert check_means(engine) == ("position", size)
        assert means.spent == spent
    half = check_means(engine, 0)
    assert half == ("position", 32)
    assert means.spent == 64, "halves take no further passes"


def test_a_users_prompts_cannot_be_extended(model: Any) -> None:
    engine = Engine(model, as_task(random_pairs([5] * 9)))
    assert not engine.reference.extend()


def test_each_prompt_is_run_once_and_costs_one_pass(model: Any) -> None:
    """Also if the sites are asked for one after the other, in one request each."""
    engine = Engine(model, as_task(random_pairs([5] * 9 + [4] * 9)))
    engine.prepare_means(SITES)
    assert engine.reference.spent == engine.meter.spent == 18
    engine.prepare_means(SITES[:1])
    assert engine.meter.spent == 18
    engine.prepare_means([Site("z", 1)])
    assert engine.meter.spent == 36
    check_means(engine)


def test_a_budget_that_does_not_suffice_changes_nothing(model: Any) -> None:
    engine = Engine(model, as_task(random_pairs([5] * 9)), meter=Meter(limit=8.5))
    with pytest.raises(BudgetError, match="reference prompts needs 9"):
        engine.prepare_means(SITES)
    assert engine.meter.spent == 0
    engine.meter.limit = None
    check_means(engine)


def test_a_mean_before_its_values_is_a_bug(model: Any) -> None:
    engine = Engine(model, as_task(random_pairs([3] * 9)))
    engine.prepare_means(SITES)
    ((first, block),) = engine.blocks()
    with pytest.raises(RuntimeError, match="before asking for its means"):
        engine.reference_values("mean", first, block, Site("z", 1))
