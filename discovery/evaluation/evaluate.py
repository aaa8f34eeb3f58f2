"""`evaluate_circuit`: does this set of nodes hold as the circuit of this behaviour?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import MeasurementError
from discovery.evaluation import thresholds
from discovery.evaluation.condition_measurements import (
    ConditionMeasurements,
    PartialEvidence,
    measure_conditions,
)
from discovery.evaluation.faithfulness import SplitEvaluator, settle_reference
from discovery.evaluation.ranking import combine_directions, sort_by_effect
from discovery.evaluation.verdict import Findings, explain_repeated_looks, judge
from discovery.graph import (
    EVIDENCE_ABLATIONS,
    RULES_VERSION,
    Conditions,
    CurvePoint,
    Evaluation,
    EvidenceByAblation,
    MinimalityCheck,
    RulesVersion,
    SplitEvaluation,
    Verdict,
)
from discovery.methods.ablation import NodeSet, parse_nodes
from discovery.methods.behaviour import BehaviourCheck, check_task
from discovery.methods.patching import measure_node_effects
from discovery.methods.subject import TaskLike, resolve_task
from discovery.progress import ProgressCallback
from discovery.sites import MetricName, Node, Universe
from discovery.store import record_heldout_look
from discovery.tasks.task import Task

NOT_FINAL_REASON = "the held-out pairs were not looked at (final=False): these are discovery pairs"


@dataclass(frozen=True, kw_only=True)
class CircuitEvaluation:
    """A circuit's evaluation, and the verdict computed from it.

    Attributes:
        nodes: the circuit's heads and MLPs, in forward order.
        evaluation: every number that the verdict rests on.
        verdict: the verdict.
        reasons: why, with the numbers.
        cost: the work and the time that it took.
    """

    nodes: tuple[str, ...]
    evaluation: Evaluation
    verdict: Verdict
    reasons: tuple[str, ...]
    cost: MeasurementCost


def evaluate_circuit(
    model: Backend,
    task: TaskLike,
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

    The verdict is at most `partial`: condition (f) repeats the search that found a circuit, and
    this circuit was given. `discover` measures (f) too.

    Args:
        model: the model.
        task: the pairs; they are split into discovery and held-out pairs. Or what `load_task`
            accepts: a name, the path of a task file, or pairs.
        nodes: the circuit's heads and MLPs.
        final: look at the held-out pairs. Each further circuit that does so in this runs directory
            is counted and named. Otherwise discovery pairs are used, and `reasons` says so.
        metric: what is measured; the task's own by default.
        universe: what can be ablated: "all", or "heads" with the MLPs kept.
        seed: of what is drawn at random.
        memory: bytes that caches and batches may take; 60% of the free memory by default.
        budget: forward-pass equivalents. If they end before the last condition, the verdict is
            `inconclusive` and says so.
        runs_dir: the directory in which looks at held-out pairs are counted; the default runs
            directory if None.
        progress: a function that hears how far the measurement is.

    Raises:
        SiteError: if the model lacks a node.
        MeasurementError: if a node is not in the universe, or if a split has no pairs.
        BudgetError: if the budget does not reach the conditions at all.
    """
    began = time.monotonic()
    circuit = parse_nodes(model, nodes)
    task = resolve_task(task, model, seed=seed, pairs=None)
    _check_request(model, task, circuit, universe, final=final)
    meter = Meter(limit=budget, progress=progress)
    timer = CostTimer(meter, began)
    evaluators = SplitEvaluator.of_task(
        model, task, universe, seed, metric=metric, memory=memory, meter=meter
    )
    discovery = evaluators["discovery"]
    judging = evaluators["heldout"] if final else discovery
    splits = {"discovery": discovery, "heldout": judging}
    behaviour = {name: _check_split(evaluator, metric) for name, evaluator in splits.items()}
    ranking = _rank_nodes(discovery, universe)
    discovery_evidence: PartialEvidence | None = None
    looks = None
    settle_reference(list(evaluators.values()) if final else [discovery], circuit)
    if final:
        discovery_evidence = discovery.measure_circuit(circuit)
        looks = record_heldout_look(runs_dir, heldout_key(model, task), circuit_key(circuit))
    measured = measure_conditions(judging, discovery, circuit, ranking, seed)
    evaluation, verdict, reasons = conclude(
        behaviour,
        measured,
        discovery=discovery_evidence,
        size=len(circuit),
        looks=looks,
        universe=universe,
    )
    return CircuitEvaluation(
        nodes=tuple(map(str, sorted(circuit))),
        evaluation=evaluation,
        verdict=verdict,
        reasons=reasons,
        cost=timer.cost,
    )


def conclude(
    behaviour: Mapping[str, BehaviourCheck],
    measured: ConditionMeasurements,
    *,
    discovery: PartialEvidence | None,
    size: int,
    looks: int | None,
    universe: Universe,
) -> tuple[Evaluation, Verdict, tuple[str, ...]]:
    """Put the record's evaluation together and compute the verdict.

    Args:
        behaviour: what the model does on each split.
        measured: what was measured of the conditions, on the pairs that decide.
        discovery: the evidence on discovery pairs, if the held-out pairs decide; None if the
            discovery pairs do.
        size: the number of heads and MLPs in the circuit.
        looks: how many circuits have looked at the held-out pairs; None if they were not looked at.
        universe: what could be ablated.

    Returns:
        The evaluation, the verdict, and its reasons.
    """
    is_final = discovery is not None
    used_splits = tuple(behaviour) if is_final else ("discovery",)
    judgement = judge(
        Findings(
            n_heldout=behaviour["heldout"].n if is_final else thresholds.MIN_HELDOUT,
            size=size,
            evidence={ablation: measured.evidence.get(ablation) for ablation in EVIDENCE_ABLATIONS},
            minimality=measured.minimality,
            cut_short=measured.cut_short,
            failed_gates=_name_gates({split: behaviour[split].reasons for split in used_splits}),
        )
    )
    reasons = (*judgement.reasons, *explain_repeated_looks(looks))
    if not is_final and judgement.verdict != "no_behaviour":
        reasons = (NOT_FINAL_REASON, *reasons)
    judged_split = build_split_evaluation(
        behaviour["heldout" if is_final else "discovery"], measured.evidence, measured.minimality
    )
    evaluation = Evaluation(
        universe=universe,
        discovery=judged_split
        if discovery is None
        else build_split_evaluation(behaviour["discovery"], discovery),
        heldout=judged_split if is_final else None,
        conditions=judgement.conditions,
        tests=measured.tests,
        thresholds=thresholds.as_record(),
        heldout_looks=looks,
    )
    return evaluation, judgement.verdict, reasons


def conclude_without_circuit(
    splits: Mapping[str, SplitEvaluation],
    *,
    gates: Mapping[str, Sequence[str]],
    curve: Sequence[CurvePoint],
    size: int,
    n_heldout: int,
    cut_short: str | None,
    universe: Universe,
    rules: RulesVersion = RULES_VERSION,
) -> tuple[Evaluation, Verdict, tuple[str, ...]]:
    """Compute the verdict of a run whose circuit has not been evaluated.

    If the budget has not ended either, the circuit is not judged yet.

    Args:
        splits: what was measured on each split.
        gates: the gates of the behaviour that do not hold, by split.
        curve: faithfulness against size.
        size: the number of heads and MLPs in the candidate.
        n_heldout: the number of held-out pairs.
        cut_short: what the budget did not reach; None if it sufficed.
        universe: what could be ablated.
        rules: the version of the rules.

    Returns:
        The evaluation, the verdict, and its reasons.
    """
    judgement = judge(
        Findings(
            n_heldout=n_heldout,
            size=size,
            evidence={},
            cut_short=cut_short,
            failed_gates=_name_gates(gates),
        ),
        rules,
    )
    evaluation = Evaluation(
        universe=universe,
        discovery=splits.get("discovery"),
        heldout=splits.get("heldout"),
        curve=tuple(curve),
        conditions=Conditions.none_run(rules),
        thresholds=thresholds.as_record(rules),
    )
    return evaluation, judgement.verdict, judgement.reasons


def build_split_evaluation(
    behaviour: BehaviourCheck,
    evidence: PartialEvidence,
    minimality: MinimalityCheck | None = None,
) -> SplitEvaluation:
    """Build the part of a record that belongs to one split."""
    return SplitEvaluation(
        n=behaviour.n,
        metric_clean=behaviour.metric_clean,
        metric_corrupted=behaviour.metric_corrupted,
        accuracy=behaviour.accuracy,
        top1=behaviour.top1,
        ablations=EvidenceByAblation.model_validate(dict(evidence)),
        minimality=minimality,
    )


def circuit_key(circuit: NodeSet) -> str:
    """Return a text that is the same for the same nodes."""
    return " ".join(map(str, sorted(circuit)))


def heldout_key(model: Backend, task: Task) -> str:
    """Return a text that is the same for the same model and held-out pairs."""
    return f"{model.info.fingerprint[:16]}-{task.heldout.fingerprint[:32]}"


def _check_request(
    model: Backend, task: Task, circuit: NodeSet, universe: Universe, *, final: bool
) -> None:
    if outside := circuit - set(model.info.nodes(universe)):
        raise MeasurementError(
            f"{min(outside)} is not in the universe {universe!r}.",
            "Leave it out, or use universe='all'.",
        )
    require_both_splits(task, final=final)


def require_both_splits(task: Task, *, final: bool = True) -> None:
    """Check that the splits of a task that an evaluation measures have pairs.

    Args:
        task: the task.
        final: whether the held-out split is measured too.

    Raises:
        MeasurementError: if a split is empty.
    """
    if not task.discovery.pairs or (final and not task.heldout.pairs):
        raise MeasurementError(
            f"The task has {len(task)} pairs, which leaves a split empty.",
            f"Give at least 2 pairs; a verdict needs {thresholds.MIN_PAIRS}.",
        )


def _check_split(evaluator: SplitEvaluator, metric: MetricName | None) -> BehaviourCheck:
    """Measure whether the model does the task on the pairs of a split."""
    engine = evaluator.engine
    return check_task(engine.backend, engine.task, metric=metric, engine=engine)


def _rank_nodes(evaluator: SplitEvaluator, universe: Universe) -> list[Node]:
    """Rank the universe by the effect that each node has alone."""
    noising = measure_node_effects(evaluator.engine, "noising", universe)
    denoising = measure_node_effects(evaluator.engine, "denoising", universe)
    return sort_by_effect(combine_directions(noising, denoising))


def _name_gates(gates: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Put the split's name before each gate that does not hold on it."""
    return tuple(f"{split}: {reason}" for split, reasons in gates.items() for reason in reasons)
