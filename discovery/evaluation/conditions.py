"""Running the conditions on a frozen circuit, in order of what they decide, within the budget."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.errors import BudgetError
from discovery.evaluation.alternatives import random_controls
from discovery.evaluation.completeness import completeness
from discovery.evaluation.faithfulness import Faithfulness
from discovery.evaluation.hypothesis_tests import hypotheses
from discovery.evaluation.minimality import contexts, minimality
from discovery.graph import EVIDENCE_ABLATIONS, AblationEvidence, Ablations, EvidenceAblation, SplitEvaluation
from discovery.graph.base import Json
from discovery.methods.ablation import NodeSet
from discovery.methods.behaviour import Behaviour
from discovery.sites import MetricName, Node, Universe
from discovery.tasks.task import Task

Evidence = dict[EvidenceAblation, AblationEvidence]
PerAblation = Mapping[EvidenceAblation, Faithfulness]


@dataclass(frozen=True)
class Bench:
    """One split, ready to be evaluated on: its engine, and f under each ablation (made when first asked for)."""

    engine: Engine
    universe: Universe
    made: dict[EvidenceAblation, Faithfulness]

    @classmethod
    def of(
        cls, model: Backend, task: Task, universe: Universe, seed: int, *, metric: MetricName | None, memory: int | None, meter: Meter
    ) -> Bench:
        """A bench on these pairs, in an order drawn by seed, so that the first so many are a fair sample."""
        order = list(range(len(task.pairs)))
        random.Random(f"order-{seed}").shuffle(order)
        shuffled = replace(task, pairs=tuple(task.pairs[i] for i in order), splits=tuple(task.splits[i] for i in order))
        return cls(Engine(model, shuffled, metric=metric, memory=memory, meter=meter), universe, {})

    def f(self, ablation: EvidenceAblation) -> Faithfulness:
        """f under an ablation."""
        if ablation not in self.made:
            self.made[ablation] = Faithfulness(self.engine, ablation, self.universe)
        return self.made[ablation]

    @property
    def both(self) -> dict[EvidenceAblation, Faithfulness]:
        """f under each ablation that enters a verdict."""
        return {ablation: self.f(ablation) for ablation in EVIDENCE_ABLATIONS}


@dataclass(frozen=True)
class Judged:
    """What was measured.

    Attributes:
        evidence: under each ablation. cut_short: what the budget ended before.
        tests: what is reported beside the conditions and gates nothing.
    """

    evidence: Evidence
    cut_short: str | None
    tests: Mapping[str, Json] = field(default_factory=dict)


def judge_circuit(
    bench: Bench, circuit: NodeSet, chosen: Callable[[EvidenceAblation], Mapping[Node, NodeSet]], screened: Sequence[Node], seed: int
) -> Judged:
    """Conditions (a) to (e) of a frozen circuit.

    Args:
        chosen: the contexts of minimality, per ablation, chosen on discovery pairs.
        screened: all nodes, largest effect first.
    """
    evidence: Evidence = {}
    at = "(a) and (b)"
    try:
        for ablation in EVIDENCE_ABLATIONS:
            evidence[ablation] = bench.f(ablation).evidence(circuit)
        for at, field, measure in (  # noqa: B007  (`at` is what the budget ended in)
            ("(c)", "completeness", lambda a: completeness(bench.f(a), circuit, screened, seed)),
            ("(d)", "minimality", lambda a: minimality(bench.f(a), circuit, chosen(a), seed)),
            ("(e)", "random_controls", lambda a: random_controls(bench.f(a), circuit, screened, seed)),
        ):
            for ablation in EVIDENCE_ABLATIONS:
                evidence[ablation] = evidence[ablation].model_copy(update={field: measure(ablation)})
    except BudgetError:
        return Judged(evidence, at)
    return Judged(evidence, None, _tests(bench, circuit, evidence, screened, seed))


def _tests(bench: Bench, circuit: NodeSet, evidence: Evidence, screened: Sequence[Node], seed: int) -> dict[str, Json]:
    """Every set that these need has been measured for the conditions: they cost nothing."""
    found: dict[str, Json] = {a: dict(hypotheses(bench.f(a), circuit, screened, seed)) for a in EVIDENCE_ABLATIONS}
    shares: dict[str, Json] = {a: score.share_in_band for a, e in evidence.items() if (score := e.faithfulness) is not None}
    return {"hypotheses": found, "share_in_band": shares}


def choose_contexts(bench: Bench, circuit: NodeSet, ablation: EvidenceAblation) -> dict[Node, NodeSet]:
    """Minimality's contexts, chosen on this bench's pairs."""
    return {node: context for node, (context, _) in contexts(bench.f(ablation), circuit).items()}


def split_evaluation(behaviour: Behaviour, evidence: Evidence) -> SplitEvaluation:
    """A split's part of the record."""
    return SplitEvaluation(
        n=behaviour.n,
        metric_clean=behaviour.metric_clean,
        metric_corrupted=behaviour.metric_corrupted,
        accuracy=behaviour.accuracy,
        top1=behaviour.top1,
        ablations=Ablations.model_validate(dict(evidence)),
    )
