"""Running the conditions on a frozen circuit, in order of what they decide, within the budget."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.errors import BudgetError
from discovery.evaluation.alternatives import measure_random_controls
from discovery.evaluation.completeness import measure_completeness
from discovery.evaluation.faithfulness import Faithfulness
from discovery.evaluation.hypothesis_tests import run_hypothesis_tests
from discovery.evaluation.minimality import find_contexts, measure_minimality
from discovery.graph import (
    EVIDENCE_ABLATIONS,
    AblationEvidence,
    EvidenceAblation,
    EvidenceByAblation,
    SplitEvaluation,
)
from discovery.graph.base import Json
from discovery.methods.ablation import NodeSet
from discovery.methods.behaviour import BehaviourCheck
from discovery.sites import MetricName, Node, Universe
from discovery.tasks.task import Task

PartialEvidence = dict[EvidenceAblation, AblationEvidence]
PerAblation = Mapping[EvidenceAblation, Faithfulness]


@dataclass(frozen=True)
class SplitEvaluator:
    """One split, ready to be evaluated on: its engine, and f under each ablation (made when first asked for)."""

    engine: Engine
    universe: Universe
    cache: dict[EvidenceAblation, Faithfulness]

    @classmethod
    def of(
        cls,
        model: Backend,
        task: Task,
        universe: Universe,
        seed: int,
        *,
        metric: MetricName | None,
        memory: int | None,
        meter: Meter,
    ) -> SplitEvaluator:
        """A bench on these pairs, in an order drawn by seed, so that the first so many are a fair sample."""
        order = list(range(len(task.pairs)))
        random.Random(f"order-{seed}").shuffle(order)
        shuffled = replace(
            task,
            pairs=tuple(task.pairs[i] for i in order),
            splits=tuple(task.splits[i] for i in order),
        )
        return cls(Engine(model, shuffled, metric=metric, memory=memory, meter=meter), universe, {})

    def f(self, ablation: EvidenceAblation) -> Faithfulness:
        """f under an ablation."""
        if ablation not in self.cache:
            self.cache[ablation] = Faithfulness(self.engine, ablation, self.universe)
        return self.cache[ablation]

    @property
    def f_by_ablation(self) -> dict[EvidenceAblation, Faithfulness]:
        """f under each ablation that enters a verdict."""
        return {ablation: self.f(ablation) for ablation in EVIDENCE_ABLATIONS}


@dataclass(frozen=True)
class ConditionMeasurements:
    """What was measured.

    Attributes:
        evidence: under each ablation. cut_short: what the budget ended before.
        tests: what is reported beside the conditions and gates nothing.
    """

    evidence: PartialEvidence
    cut_short: str | None
    tests: Mapping[str, Json] = field(default_factory=dict)


def measure_conditions(
    bench: SplitEvaluator,
    circuit: NodeSet,
    contexts_for: Callable[[EvidenceAblation], Mapping[Node, NodeSet]],
    screened: Sequence[Node],
    seed: int,
) -> ConditionMeasurements:
    """Conditions (a) to (e) of a frozen circuit.

    Args:
        chosen: the contexts of minimality, per ablation, chosen on discovery pairs.
        screened: all nodes, largest effect first.
    """
    evidence: PartialEvidence = {}
    at = "(a) and (b)"
    try:
        for ablation in EVIDENCE_ABLATIONS:
            evidence[ablation] = bench.f(ablation).measure_circuit(circuit)
        for at, field, measure in (  # noqa: B007  (`at` is what the budget ended in)
            (
                "(c)",
                "completeness",
                lambda a: measure_completeness(bench.f(a), circuit, screened, seed),
            ),
            (
                "(d)",
                "minimality",
                lambda a: measure_minimality(bench.f(a), circuit, contexts_for(a), seed),
            ),
            (
                "(e)",
                "random_controls",
                lambda a: measure_random_controls(bench.f(a), circuit, screened, seed),
            ),
        ):
            for ablation in EVIDENCE_ABLATIONS:
                evidence[ablation] = evidence[ablation].model_copy(
                    update={field: measure(ablation)}
                )
    except BudgetError:
        return ConditionMeasurements(evidence, at)
    return ConditionMeasurements(evidence, None, _tests(bench, circuit, evidence, screened, seed))


def _tests(
    evaluator: SplitEvaluator,
    circuit: NodeSet,
    evidence: PartialEvidence,
    screened: Sequence[Node],
    seed: int,
) -> dict[str, Json]:
    """Every set that these need has been measured for the conditions: they cost nothing."""
    found: dict[str, Json] = {
        a: dict(run_hypothesis_tests(evaluator.f(a), circuit, screened, seed))
        for a in EVIDENCE_ABLATIONS
    }
    shares: dict[str, Json] = {
        a: score.share_in_band for a, e in evidence.items() if (score := e.faithfulness) is not None
    }
    return {"hypotheses": found, "share_in_band": shares}


def choose_contexts(
    evaluator: SplitEvaluator, circuit: NodeSet, ablation: EvidenceAblation
) -> dict[Node, NodeSet]:
    """Minimality's contexts, chosen on this bench's pairs."""
    return {
        node: context
        for node, (context, _) in find_contexts(evaluator.f(ablation), circuit).items()
    }


def build_split_evaluation(behaviour: BehaviourCheck, evidence: PartialEvidence) -> SplitEvaluation:
    """A split's part of the record."""
    return SplitEvaluation(
        n=behaviour.n,
        metric_clean=behaviour.metric_clean,
        metric_corrupted=behaviour.metric_corrupted,
        accuracy=behaviour.accuracy,
        top1=behaviour.top1,
        ablations=EvidenceByAblation.model_validate(dict(evidence)),
    )
