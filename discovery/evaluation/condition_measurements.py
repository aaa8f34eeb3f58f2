"""Measuring conditions (a) to (e) of a frozen circuit, within a budget.

The order is that of how much a condition decides: (a) and (b) first, then (c), (d) and (e). If the
budget ends, what was measured until then is kept. Tests that are reported beside the conditions
follow at no further cost.

Most sets serve twice: C∖u is measured for the gap of u (c) and is its drop with nothing else taken
out (d), and (c) and (d) start on the same 32 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from discovery.errors import BudgetError
from discovery.evaluation import thresholds, version_1
from discovery.evaluation.alternatives import measure_random_controls
from discovery.evaluation.completeness import measure_completeness
from discovery.evaluation.contexts import CONTEXT_PAIRS, ContextsByAblation, choose_contexts
from discovery.evaluation.faithfulness import Faithfulness, SplitEvaluator
from discovery.evaluation.minimality import (
    decide_nodes,
    find_weak_nodes,
    measure_minimality,
    minimal_drop,
    try_without_padding,
)
from discovery.evaluation.sequential import select_nodes
from discovery.evaluation.supplementary import run_hypothesis_tests
from discovery.evaluation.verdict import decide_band
from discovery.graph import (
    EVIDENCE_ABLATIONS,
    RULES_VERSION,
    AblationEvidence,
    EvidenceAblation,
    MinimalityCheck,
    RulesVersion,
)
from discovery.graph.base import Json
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

PartialEvidence = dict[EvidenceAblation, AblationEvidence]
"""The evidence under each ablation that has been measured so far."""


@dataclass(frozen=True)
class ConditionMeasurements:
    """What was measured of a circuit's conditions.

    Attributes:
        evidence: the evidence under each ablation.
        cut_short: the condition that the budget did not reach, such as "(c)"; None if all were
            measured.
        minimality: how (d) was checked over both ablations; None if it was not.
        tests: tests that are reported beside the conditions and decide nothing.
    """

    evidence: PartialEvidence
    cut_short: str | None
    minimality: MinimalityCheck | None = None
    tests: Mapping[str, Json] = field(default_factory=dict)


def measure_conditions(
    heldout: SplitEvaluator,
    search: SplitEvaluator,
    circuit: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    rules: RulesVersion = RULES_VERSION,
    on_condition: Callable[[str], None] | None = None,
) -> ConditionMeasurements:
    """Measure conditions (a) to (e) of a frozen circuit.

    Args:
        heldout: the split that decides.
        search: the split on which the contexts of (d) are chosen.
        circuit: the circuit.
        ranking: all nodes, largest effect first.
        seed: of what is drawn at random.
        rules: the version of the rules.
        on_condition: called with each condition that was measured, under version 2.
    """
    if rules == 1:
        evidence, cut_short = version_1.measure_conditions(heldout, search, circuit, ranking, seed)
        minimality = None
    else:
        measurement = _Measurement(heldout, search, circuit, ranking, seed)
        cut_short = measurement.run(on_condition)
        evidence, minimality = measurement.evidence, measurement.minimality
    tests: Mapping[str, Json] = {}
    if cut_short is None:
        pairs = None if rules == 1 else thresholds.FIRST_PAIRS
        tests = _run_tests(heldout, circuit, evidence, ranking, seed, pairs)
    return ConditionMeasurements(evidence, cut_short, minimality, tests)


class _Measurement:
    """One run over the conditions; each step adds to the evidence.

    Attributes:
        evidence: what was measured under each ablation until now.
        minimality: how (d) was checked.
    """

    def __init__(
        self,
        heldout: SplitEvaluator,
        search: SplitEvaluator,
        circuit: NodeSet,
        ranking: Sequence[Node],
        seed: int,
    ) -> None:
        self.evidence: PartialEvidence = {}
        self.minimality: MinimalityCheck | None = None
        self._heldout = heldout
        self._search = search
        self._circuit = circuit
        self._ranking = ranking
        self._seed = seed

    def run(self, on_condition: Callable[[str], None] | None) -> str | None:
        """Measure one condition after the other; return the first one the budget did not reach."""
        steps: Mapping[str, Callable[[], None]] = {
            "(a) and (b)": self._measure_faithfulness,
            "(c)": self._measure_completeness,
            "(d)": self._measure_minimality,
            "(e)": self._measure_controls,
        }
        for condition, measure in steps.items():
            try:
                measure()
            except BudgetError:
                return condition
            if on_condition is not None:
                on_condition(condition)
        return None

    def _measure_faithfulness(self) -> None:
        # If the budget ends under mean ablation, what resample ablation showed is kept.
        self.evidence["resample"] = self._heldout.f("resample").measure_circuit(self._circuit)
        self.evidence |= self._heldout.measure_circuit(self._circuit)

    def _measure_completeness(self) -> None:
        for ablation in EVIDENCE_ABLATIONS:
            completeness = measure_completeness(
                self._heldout.f(ablation), self._circuit, self._ranking, self._seed
            )
            self._add(ablation, completeness=completeness)

    def _measure_minimality(self) -> None:
        f_by_ablation: dict[EvidenceAblation, Faithfulness] = {
            ablation: f for ablation, f in self._heldout.f_by_ablation.items() if f.is_defined
        }
        if not f_by_ablation:
            return
        size = len(self._circuit)
        minimal_drops = {
            ablation: minimal_drop(float(f([self._circuit])[0]), size)
            for ablation, f in f_by_ablation.items()
        }
        selection = select_nodes(
            self._circuit, self._ranking, self._seed, "minimality", smallest_effect=True
        )
        contexts = self._choose_contexts(list(f_by_ablation), selection.checked)
        rows, check = measure_minimality(
            f_by_ablation, self._circuit, selection, contexts, minimal_drops, self._seed
        )
        if "fails" not in decide_nodes(rows, minimal_drops).values():
            padding = try_without_padding(
                f_by_ablation, self._circuit, find_weak_nodes(rows), self._ranking, self._seed
            )
            check = check.model_copy(update={"padding": padding})
        self.minimality = check
        for ablation, own in rows.items():
            self._add(ablation, minimality=own, minimal_drop=minimal_drops[ablation])

    def _choose_contexts(
        self, ablations: Sequence[EvidenceAblation], nodes: Sequence[Node]
    ) -> ContextsByAblation:
        """Choose the contexts of (d) on discovery pairs, by δ on these pairs."""
        search = {ablation: self._search.f(ablation) for ablation in ablations}
        minimal_drops = {
            ablation: minimal_drop(
                float(f([self._circuit], "minimality", min(CONTEXT_PAIRS, f.n_pairs))[0]),
                len(self._circuit),
            )
            for ablation, f in search.items()
        }
        return choose_contexts(search, self._circuit, minimal_drops, nodes)

    def _measure_controls(self) -> None:
        for ablation in EVIDENCE_ABLATIONS:
            faithfulness = self.evidence[ablation].faithfulness
            if decide_band(faithfulness, thresholds.FAITHFULNESS_BAND) == "fails":
                continue  # nothing is better than alternatives if it does not do the task
            controls = measure_random_controls(
                self._heldout.f(ablation), self._circuit, self._ranking, self._seed
            )
            self._add(ablation, random_controls=controls)

    def _add(self, ablation: EvidenceAblation, **measured: object) -> None:
        """Put measured fields into the evidence under one ablation."""
        self.evidence[ablation] = self.evidence[ablation].model_copy(update=measured)


def _run_tests(
    evaluator: SplitEvaluator,
    circuit: NodeSet,
    evidence: PartialEvidence,
    ranking: Sequence[Node],
    seed: int,
    pairs: int | None,
) -> dict[str, Json]:
    """Run the tests beside the conditions, which have measured every set that these need."""
    hypotheses: dict[str, Json] = {
        ablation: dict(run_hypothesis_tests(evaluator.f(ablation), circuit, ranking, seed, pairs))
        for ablation in EVIDENCE_ABLATIONS
    }
    share_in_band: dict[str, Json] = {
        ablation: measured.faithfulness.share_in_band
        for ablation, measured in evidence.items()
        if measured.faithfulness is not None
    }
    return {"hypotheses": hypotheses, "share_in_band": share_in_band}
