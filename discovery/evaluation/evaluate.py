"""`evaluate_circuit`: does this set of nodes hold as the circuit of this behaviour?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError
from discovery.evaluation import thresholds
from discovery.evaluation.conditions import (
    PartialEvidence,
    SplitEvaluator,
    build_split_evaluation,
    choose_contexts,
    measure_conditions,
)
from discovery.evaluation.verdict import decide_conditions, decide_verdict, explain_repeated_looks
from discovery.graph import (
    EVIDENCE_ABLATIONS,
    Conditions,
    CurvePoint,
    Evaluation,
    EvidenceAblation,
    SplitEvaluation,
    Verdict,
)
from discovery.graph.base import Json
from discovery.methods.ablation import NodeSet, parse_nodes
from discovery.methods.behaviour import BehaviourCheck, check_task
from discovery.methods.patching.nodes import NodeEffects, measure_node_effects
from discovery.progress import ProgressCallback
from discovery.sites import MetricName, Node, Universe
from discovery.store import record_heldout_look
from discovery.tasks.task import Task

EffectsByNode = Mapping[Node, tuple[float, float]]  # of each node alone: noising, denoising
NOT_FINAL_REASON = "the held-out pairs were not looked at (final=False): these are discovery pairs"


@dataclass(frozen=True)
class CircuitEvaluation:
    """A circuit's evaluation, and the verdict computed from it."""

    nodes: tuple[str, ...]
    evaluation: Evaluation
    verdict: Verdict
    reasons: tuple[str, ...]
    cost: MeasurementCost


def evaluate_circuit(
    model: Backend,
    task: Task,
    nodes: Sequence[str | Node],
    *,
    final: bool = False,
    metric: MetricName | None = None,
    universe: Universe = "all",
    seed: int = 0,
    memory: int | None = None,
    budget: float | None = None,
    runs_dir: Path | str | None = None,
    progress: ProgressCallback | None = None,
) -> CircuitEvaluation:
    """Measure conditions (a) to (e) of a circuit, and compute the verdict.

    It is at most `partial`: (f) repeats the search that found a circuit, and this one was given. `discover` runs it.

    Args:
        nodes: the circuit's heads and MLPs.
        final: look at the held-out pairs. Each further circuit that does so in this runs directory is counted and named.
            Otherwise discovery pairs are used, and `reasons` says so.
        budget: forward-pass equivalents; where they end before the last condition, the verdict is `inconclusive` and says so.

    Raises:
        SiteError: for a node this model lacks.
        MeasurementError: where a split has no pairs.
        BudgetError: where the budget does not reach the conditions at all.
    """
    began, circuit = time.monotonic(), parse_nodes(model, nodes)
    if outside := circuit - set(model.info.nodes(universe)):
        raise MeasurementError(
            f"{min(outside)} is not in the universe {universe!r}.",
            "Leave it out, or use universe='all'.",
        )
    if not task.discovery.pairs or (final and not task.heldout.pairs):
        raise MeasurementError(
            f"The task has {len(task)} pairs, which leaves a split empty.",
            "Give at least 2 pairs; a verdict needs 96.",
        )
    meter = Meter(limit=budget, progress=progress)
    search = SplitEvaluator.of(
        model, task.discovery, universe, seed, metric=metric, memory=memory, meter=meter
    )
    bench = (
        SplitEvaluator.of(
            model, task.heldout, universe, seed, metric=metric, memory=memory, meter=meter
        )
        if final
        else search
    )
    behaviour = {
        name: check_task(model, b.engine.task, metric=metric, engine=b.engine)
        for name, b in (("discovery", search), ("heldout", bench))
    }
    noising, denoising = (
        measure_node_effects(search.engine, direction, universe)
        for direction in ("noising", "denoising")
    )
    screened = sort_by_effect(combine_directions(noising, denoising))
    own: PartialEvidence = (
        {ablation: search.f(ablation).measure_circuit(circuit) for ablation in EVIDENCE_ABLATIONS}
        if final
        else {}
    )
    looks = (
        record_heldout_look(runs_dir, heldout_key(model, task), circuit_key(circuit))
        if final
        else None
    )
    judged = measure_conditions(
        bench, circuit, lambda ablation: choose_contexts(search, circuit, ablation), screened, seed
    )
    discovery, heldout = (own, judged.evidence) if final else (judged.evidence, None)
    evaluation, verdict, reasons = conclude(
        behaviour, discovery, heldout, len(circuit), judged.cut_short, judged.tests, looks, universe
    )
    if not final and verdict != "no_behaviour":
        reasons = (NOT_FINAL_REASON, *reasons)
    return CircuitEvaluation(
        tuple(map(str, sorted(circuit))),
        evaluation,
        verdict,
        reasons,
        MeasurementCost(meter.spent, time.monotonic() - began),
    )


def conclude(
    behaviour: Mapping[str, BehaviourCheck],
    discovery: PartialEvidence,
    heldout: PartialEvidence | None,
    size: int,
    cut_short: str | None,
    tests: Mapping[str, Json],
    looks: int | None,
    universe: Universe,
) -> tuple[Evaluation, Verdict, tuple[str, ...]]:
    """Put the record's evaluation together and compute the verdict (on discovery pairs where `heldout` is None)."""
    evidence = discovery if heldout is None else heldout
    judged: dict[EvidenceAblation, object] = {a: evidence.get(a) for a in EVIDENCE_ABLATIONS}
    conditions = decide_conditions(judged, None)  # type: ignore[arg-type]  # AblationEvidence or None
    looked_at = {
        name: found
        for name, found in behaviour.items()
        if name == "discovery" or heldout is not None
    }
    verdict, reasons = decide_verdict(
        failed_gates=tuple(
            f"{name}: {reason}" for name, found in looked_at.items() for reason in found.reasons
        ),
        n_heldout=thresholds.MIN_HELDOUT if heldout is None else behaviour["heldout"].n,
        size=size,
        evidence=judged,  # type: ignore[arg-type]  # as above
        conditions=conditions,
        stability=None,
        cut_short=cut_short,
    )
    reasons += explain_repeated_looks(looks)
    evaluation = Evaluation(
        universe=universe,
        discovery=build_split_evaluation(behaviour["discovery"], discovery),
        heldout=None if heldout is None else build_split_evaluation(behaviour["heldout"], heldout),
        conditions=conditions,
        tests=tests,
        thresholds=thresholds.as_record(),
        heldout_looks=looks,
    )
    return evaluation, verdict, reasons


def sort_by_effect(*singles: EffectsByNode) -> list[Node]:
    """Nodes by the effect that they have alone, noising and denoising combined (one direction alone misses an OR); ties by node.

    A node is a candidate where either direction reaches 0.02, what minimality counts, under the first ablation, or else under the next.
    Below that all are ties, last: their order would be noise.

    Args:
        singles: under each ablation, the most trusted first.
    """

    def size(node: Node) -> float:
        found = (
            tuple(abs(value) if math.isfinite(value) else 0.0 for value in effects[node])
            for effects in singles
        )
        return next(
            (round(sum(both), 9) for both in found if max(both) >= thresholds.MIN_DROP), 0.0
        )

    return sorted(singles[0], key=lambda node: (-size(node), node))


def combine_directions(noising: NodeEffects, denoising: NodeEffects) -> EffectsByNode:
    """Each node's effects alone, by resample ablation."""
    return dict(
        zip(
            noising.nodes,
            zip(noising.values.tolist(), denoising.values.tolist(), strict=True),
            strict=True,
        )
    )


def circuit_key(circuit: NodeSet) -> str:
    """The same for the same nodes."""
    return " ".join(map(str, sorted(circuit)))


def heldout_key(model: Backend, task: Task) -> str:
    """The same for the same model and held-out pairs."""
    return f"{model.info.fingerprint[:16]}-{task.heldout.fingerprint[:32]}"


def conclude_without_circuit(
    splits: Mapping[str, SplitEvaluation],
    gates: Mapping[str, Sequence[str]],
    curve: Sequence[CurvePoint],
    size: int,
    n_heldout: int,
    cut_short: str | None,
    universe: Universe,
) -> tuple[Evaluation, Verdict, tuple[str, ...]]:
    """The verdict of a run that ended before its circuit was evaluated."""
    verdict, reasons = decide_verdict(
        failed_gates=tuple(
            f"{split}: {reason}" for split, found in gates.items() for reason in found
        ),
        n_heldout=n_heldout,
        size=size,
        evidence={},
        conditions=Conditions(),
        stability=None,
        cut_short=cut_short,
    )
    evaluation = Evaluation(
        universe=universe,
        discovery=splits.get("discovery"),
        heldout=splits.get("heldout"),
        curve=tuple(curve),
        thresholds=thresholds.as_record(),
    )
    return evaluation, verdict, reasons
