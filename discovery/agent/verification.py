"""`runs verify`: measure the evaluation of a record again, and say whether its numbers hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from discovery.agent.saved.run_folder import read_last_state, read_settings, reload_model_and_task
from discovery.agent.stages.verdict import find_undefined
from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.errors import StoreError
from discovery.evaluation import (
    PartialEvidence,
    SplitEvaluator,
    measure_conditions,
    thresholds,
)
from discovery.evaluation.verdict import Findings, judge, recorded_stability
from discovery.graph import EVIDENCE_ABLATIONS, CircuitGraph, MinimalityCheck, SplitEvaluation
from discovery.graph.base import Json
from discovery.methods.behaviour import BehaviourCheck, check_task
from discovery.progress import ProgressCallback
from discovery.sites import Node
from discovery.store import Run, open_run
from discovery.tasks.task import SplitName, Task

REMEASURED_TESTS = ("hypotheses", "share_in_band")  # those of the circuit on held-out pairs
RECORD_TOLERANCE = 1e-4  # absolute for small numbers such as f, relative for large ones
BASELINE_FIELDS = ("n", "metric_clean", "metric_corrupted", "accuracy", "top1")


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The outcome of verifying a run.

    Attributes:
        run_id: the run.
        holds: whether every number and the verdict are the same again.
        differences: what differs, with the recorded and the new value.
        checked: how many values were compared.
        forward_equivalents: what measuring them cost.
    """

    run_id: str
    holds: bool
    differences: tuple[str, ...]
    checked: int
    forward_equivalents: float


@dataclass(frozen=True, kw_only=True)
class VerifiableClaims:
    """What a record claims and a second measurement can check; None or absent if it claims nothing.

    Attributes:
        verdict: the verdict.
        pairs: the fingerprint of the pairs.
        discovery: the baselines and the evidence on discovery pairs.
        heldout: the baselines and the evidence on held-out pairs.
        conditions: the outcome of (a) to (f).
        thresholds: the bounds that were applied.
        tests: the tests of the circuit on held-out pairs, beside the conditions.
    """

    verdict: str | None
    pairs: str | None
    discovery: Mapping[str, Json] | None = None
    heldout: Mapping[str, Json] | None = None
    conditions: Mapping[str, Json] | None = None
    thresholds: Mapping[str, Json] | None = None
    tests: Mapping[str, Json] | None = None

    def values(self) -> dict[str, Json]:
        """Return every single value that is known, under its path in the record."""
        return {
            path: value
            for field in fields(self)
            for path, value in _flatten(getattr(self, field.name), field.name)
        }


def verify_run(
    run_id: str, *, runs_dir: Path | str | None = None, progress: ProgressCallback | None = None
) -> Verification:
    """Evaluate the circuit of a finished run again. This is no new look at the held-out pairs.

    Compared are the pairs, the baselines, f and everything of (a) to (e) on both splits, the tests
    beside them, the conditions, the thresholds and the verdict. Not measured again are the
    stability of the selection (f), the curve, node effects and edges. The reasons are words, and
    are not compared.

    Args:
        run_id: the run.
        runs_dir: the runs directory; None means the default one.
        progress: called with the work done, the whole work (if known) and a label.

    Raises:
        StoreError: if there is no such run, if it has no record yet, if its journal is damaged, or
            if its model has changed.
    """
    run = open_run(runs_dir, run_id)
    run.check_journal()
    record = run.load_circuit()
    _require_evaluation(run_id, record)
    model, task = reload_model_and_task(run)
    meter = Meter(progress=progress)
    # If the budget ended within the conditions, `cut_short` names one, such as "(c) …". The
    # conditions after it were not run, so the record claims nothing about them.
    cut_short = read_last_state(run).cut_short
    if cut_short is not None and not cut_short.startswith("("):
        cut_short = None
    measured = _measure_again(run, record, model, task, meter, cut_short).values()
    recorded = _recorded_claims(record).values()
    if cut_short is not None:
        recorded = {name: value for name, value in recorded.items() if value != "not_run"}
    differences = tuple(
        f"{name}: recorded {recorded.get(name)}, now {measured.get(name)}"
        for name in sorted(recorded if cut_short is not None else recorded | measured)
        if not _is_same(recorded.get(name), measured.get(name))
    )
    return Verification(
        run_id=run_id,
        holds=not differences,
        differences=differences,
        checked=len(recorded),
        forward_equivalents=meter.spent,
    )


def _require_evaluation(run_id: str, record: CircuitGraph) -> None:
    if record.verdict == "no_behaviour":
        return
    heldout = record.evaluation.heldout
    if heldout is None or not any(heldout.ablations.under(a) for a in EVIDENCE_ABLATIONS):
        raise StoreError(
            f"The run {run_id} ended before its circuit was evaluated ({record.verdict}).",
            "Run it again with a larger budget.",
        )


def _measure_again(
    run: Run,
    record: CircuitGraph,
    model: Backend,
    task: Task,
    meter: Meter,
    cut_short: str | None,
) -> VerifiableClaims:
    settings = read_settings(run)
    metric = record.task.metric
    evaluators = SplitEvaluator.of_task(
        model,
        task,
        record.evaluation.universe,
        settings.seed,
        metric=metric,
        memory=settings.memory,
        meter=meter,
        rules=settings.rules,
    )
    checks = {
        split: check_task(model, evaluator.engine.task, metric=metric, engine=evaluator.engine)
        for split, evaluator in evaluators.items()
    }
    baselines = VerifiableClaims(
        verdict="no_behaviour"
        if any(check.reasons for check in checks.values())
        else "a behaviour",
        pairs=task.fingerprint,
        discovery=_baselines(checks["discovery"]),
        heldout=_baselines(checks["heldout"]),
    )
    if record.verdict == "no_behaviour":
        return baselines
    ranking = [Node.parse(name) for name in _read_ranking(run)]
    return _evaluate_again(record, evaluators, baselines, ranking, settings.seed, cut_short)


def _evaluate_again(
    record: CircuitGraph,
    evaluators: Mapping[SplitName, SplitEvaluator],
    baselines: VerifiableClaims,
    ranking: Sequence[Node],
    seed: int,
    cut_short: str | None,
) -> VerifiableClaims:
    """Measure the conditions of the recorded circuit again, and decide the verdict."""
    circuit = frozenset(record.members)
    search = evaluators["discovery"]
    heldout = evaluators["heldout"]
    conditions = measure_conditions(heldout, search, circuit, ranking, seed, record.rules)
    discovery_evidence = search.measure_circuit(circuit)
    judgement = judge(
        Findings(
            n_heldout=len(heldout.engine),
            size=len(circuit),
            evidence={a: conditions.evidence.get(a) for a in EVIDENCE_ABLATIONS},
            minimality=conditions.minimality,
            stability=recorded_stability(record),
            cut_short=cut_short,
            undefined=find_undefined(discovery_evidence),
        ),
        record.rules,
    )
    recorded_tests = record.evaluation.tests
    return VerifiableClaims(
        verdict=judgement.verdict,
        pairs=baselines.pairs,
        discovery={**(baselines.discovery or {}), **_describe_evidence(discovery_evidence)},
        heldout={
            **(baselines.heldout or {}),
            **_describe_evidence(conditions.evidence, conditions.minimality),
        },
        conditions=judgement.conditions.model_dump(mode="json"),
        thresholds=thresholds.as_record(record.rules),
        tests={name: test for name, test in conditions.tests.items() if name in recorded_tests},
    )


def _read_ranking(run: Run) -> Sequence[str]:
    """Return the last ranking in the journal."""
    ranking: Sequence[str] = ()
    for event in run.events():
        ranking = event.get("state", {}).get("ranking") or ranking
    return ranking


def _recorded_claims(record: CircuitGraph) -> VerifiableClaims:
    evaluation = record.evaluation
    if record.verdict == "no_behaviour":
        return VerifiableClaims(
            verdict=record.verdict,
            pairs=record.task.fingerprint,
            discovery=_baselines(evaluation.discovery) if evaluation.discovery else None,
            heldout=_baselines(evaluation.heldout) if evaluation.heldout else None,
        )
    return VerifiableClaims(
        verdict=record.verdict,
        pairs=record.task.fingerprint,
        discovery=_recorded_split(evaluation.discovery) if evaluation.discovery else None,
        heldout=_recorded_split(evaluation.heldout) if evaluation.heldout else None,
        conditions=evaluation.conditions.model_dump(mode="json"),
        thresholds=evaluation.thresholds,
        tests={name: test for name, test in evaluation.tests.items() if name in REMEASURED_TESTS},
    )


def _recorded_split(split: SplitEvaluation) -> dict[str, Json]:
    evidence: PartialEvidence = {
        ablation: part
        for ablation in EVIDENCE_ABLATIONS
        if (part := split.ablations.under(ablation)) is not None
    }
    return _baselines(split) | _describe_evidence(evidence, split.minimality)


def _baselines(split: BehaviourCheck | SplitEvaluation) -> dict[str, Json]:
    """Return the numbers of a split that do not depend on the circuit."""
    return {name: getattr(split, name) for name in BASELINE_FIELDS}


def _describe_evidence(
    evidence: PartialEvidence, minimality: MinimalityCheck | None = None
) -> dict[str, Json]:
    return {
        "ablations": {
            ablation: part.model_dump(mode="json") for ablation, part in evidence.items()
        },
        "minimality": None if minimality is None else minimality.model_dump(mode="json"),
    }


def _flatten(value: Json, path: str) -> Iterator[tuple[str, Json]]:
    """Yield each single value below `value` with its path; None is unknown and left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _flatten(item, f"{path}[{number}]")
    elif value is not None:
        yield path, value


def _is_same(recorded: Json, measured: Json) -> bool:
    if isinstance(recorded, int | float) and isinstance(measured, int | float):
        return math.isclose(recorded, measured, rel_tol=RECORD_TOLERANCE, abs_tol=RECORD_TOLERANCE)
    return bool(recorded == measured)
