"""All conditions of a frozen circuit, and what is kept if the budget ends.

The outcomes are compared with `benchmarks.known_circuits.subset_conditions` on full tables of f.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.known_circuits.subset_conditions import ConditionsBySubset
from benchmarks.known_circuits.truth import load_truth
from discovery.engine import Meter
from discovery.evaluation import SplitEvaluator, choose_contexts, measure_conditions
from discovery.evaluation.thresholds import MIN_DROP
from discovery.evaluation.verdict import Findings, judge
from discovery.evaluation.version_1 import find_contexts, is_complete, measure_completeness
from discovery.graph import EVIDENCE_ABLATIONS, AblationEvidence, RandomControls
from discovery.sites import Node
from tests.oracles.evaluation.faithfulness import nodes

FIELDS = ("completeness", "minimality", "random_controls")


def measure(case: Any, circuit: frozenset[Node], evaluator: Any = None) -> Any:
    evaluator = evaluator or case.evaluator
    return measure_conditions(evaluator, case.evaluator, circuit, sorted(circuit), 0)


def decide(measured: Any, circuit: frozenset[Node], stability: float | None) -> Any:
    findings = Findings(
        n_heldout=48,
        size=len(circuit),
        evidence=measured.evidence,
        minimality=measured.minimality,
        stability=stability,
    )
    return judge(findings)


def points(f: Any, circuit: frozenset[Node]) -> dict[str, bool]:
    """(a) to (d) as points, from the evaluator's own numbers."""
    kept, knocked = f([circuit, f.everything - circuit]).tolist()
    return {
        "suffices": 0.8 <= kept <= 1.2 and abs(knocked) <= 0.2,
        "complete": is_complete(measure_completeness(f, circuit, [], 0)),
        "minimal": all(drop >= MIN_DROP for _, drop in find_contexts(f, circuit).values()),
    }


@pytest.mark.parametrize("ablation", EVIDENCE_ABLATIONS)
@pytest.mark.parametrize("name", ["induction", pytest.param("or_mlp", marks=pytest.mark.slow)])
def test_every_condition_comes_out_as_over_the_full_table(
    name: str, ablation: Any, load_case: Callable[[str], Any]
) -> None:
    """For the truth, the truth with one node more or less, everything, and nothing."""
    case = load_case(name)
    f = case.f(ablation)
    oracle = case.oracle(ablation)
    table = ConditionsBySubset(oracle.universe, oracle.table())
    truth = nodes(*load_truth(name).nodes)
    everything = f.everything
    tried = [
        truth,
        everything,
        frozenset(),
        *(truth | {v} for v in everything - truth),
        *(truth - {u} for u in truth),
    ]
    for circuit in dict.fromkeys(tried):
        mask = oracle.mask(circuit)
        expected = {
            "suffices": table.is_sufficient(mask),
            "complete": table.is_complete(mask),
            "minimal": table.is_minimal(mask),
        }
        assert points(f, circuit) == expected, sorted(map(str, circuit))
    assert points(f, truth) == {"suffices": True, "complete": True, "minimal": True}


@pytest.mark.parametrize("name", ["induction", "or_mlp"])
def test_the_truth_holds_and_half_of_it_fails(name: str, load_case: Callable[[str], Any]) -> None:
    case = load_case(name)
    truth = nodes(*load_truth(name).nodes)
    whole = measure(case, truth)
    assert whole.cut_short is None
    assert decide(whole, truth, 1.0).verdict == "verified"
    part = truth - {max(truth)}
    judgement = decide(measure(case, part), part, None)
    assert judgement.verdict == "rejected"
    for ablation in EVIDENCE_ABLATIONS:
        outcomes = {c: judgement.conditions.under(c, ablation) for c in "abcef"}
        assert outcomes["a"] == outcomes["c"] == "fails"
        assert outcomes["b"] == "holds", (
            "without it the model fails: half of an AND is necessary too"
        )
        assert outcomes["e"] == outcomes["f"] == "not_run"


def test_contexts_are_chosen_on_discovery_pairs_and_tested_on_the_others(
    load_case: Callable[[str], Any],
) -> None:
    """In or_mlp, the context of each induction head is the other; drops are on held-out pairs."""
    case = load_case("or_mlp")
    circuit = nodes(*load_truth("or_mlp").nodes)
    heldout = SplitEvaluator.of(
        case.model, case.task.heldout, "all", 0, metric=None, memory=None, meter=Meter()
    )
    measured = measure(case, circuit, heldout)
    rows = {row.node: row for row in measured.evidence["resample"].minimality}
    delta = measured.evidence["resample"].minimal_drop
    assert delta == pytest.approx(min(0.02, 0.5 / len(circuit)), abs=1e-3)
    search = case.evaluator.f_by_ablation
    chosen = choose_contexts(search, circuit, dict.fromkeys(search, delta))
    contexts = {v: option.context for v, option in chosen["resample"].items()}
    assert rows.keys() == {str(node) for node in circuit}
    for name, row in rows.items():
        (v,) = nodes(name)
        context = contexts[v]
        assert row.context == tuple(str(w) for w in sorted(context))
        assert row.n == len(heldout.engine)
        with_v, other = heldout.f("resample")([circuit - context, circuit - context - {v}]).tolist()
        assert row.drop == pytest.approx(abs(with_v - other), abs=1e-9)
    assert rows["a1.h0"].context == ("a1.h2",)
    assert rows["a1.h2"].context == ("a1.h0",)


def test_an_empty_circuit_and_the_whole_universe(load_case: Callable[[str], Any]) -> None:
    case = load_case("induction")
    for circuit, kept in ((frozenset(), 0.0), (case.f("resample").everything, 1.0)):
        measured = measure(case, circuit)
        for ablation in EVIDENCE_ABLATIONS:
            evidence = measured.evidence[ablation]
            assert evidence.faithfulness.value == pytest.approx(kept, abs=1e-9)
            assert (
                evidence.faithfulness.low
                == evidence.faithfulness.high
                == evidence.faithfulness.value
            )
            assert evidence.knockout.value == pytest.approx(1 - kept, abs=1e-9)
            if circuit:
                assert evidence.random_controls == RandomControls()
            else:
                assert evidence.random_controls is None, "(a) fails, so that (e) is not run"
            assert len(evidence.minimality) == len(circuit)


def test_wherever_the_budget_ends_what_was_measured_is_kept(
    load_case: Callable[[str], Any],
) -> None:
    """The budget is never exceeded, and what was measured is what an unlimited run measures."""
    case = load_case("induction")
    circuit = nodes(*load_truth("induction").nodes)
    meter = Meter()

    def evaluator() -> Any:
        return SplitEvaluator.of(
            case.model, case.task.discovery, "all", 0, metric=None, memory=None, meter=meter
        )

    free = measure(case, circuit, evaluator())
    whole = meter.spent
    ends = set()
    overhead = 0.0
    for share in (0.0, 0.05, 0.08, 0.1, 0.13, 0.17, 0.25, 0.5, 0.9, 1.01):
        meter = Meter(limit=share * whole)
        measured = measure(case, circuit, evaluator())
        ends.add(measured.cut_short)
        overhead = max(overhead, meter.spent - share * whole)
        for ablation, evidence in measured.evidence.items():
            full = free.evidence[ablation]
            assert isinstance(evidence, AblationEvidence)
            assert evidence.faithfulness == full.faithfulness
            for field in FIELDS:
                assert getattr(evidence, field) in (None, getattr(full, field))
        missing = [
            any(getattr(e, field) is None for e in measured.evidence.values()) for field in FIELDS
        ]
        assert missing == sorted(missing), "in order of what they decide"
        assert (measured.cut_short is None) == (len(measured.evidence) == 2 and not any(missing))
    assert ends >= {"(a) and (b)", "(c)", "(e)", None}
    assert overhead <= 2 * len(case.evaluator.engine) + 1e-6, "cached passes only"
