"""`runs verify`: measure a record's evaluation again, from the record alone, and say whether its numbers hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.agent.saved_run import read_last_state, read_settings, reload_model_and_task
from discovery.engine import Meter
from discovery.errors import StoreError
from discovery.evaluation import (
    PartialEvidence,
    SplitEvaluator,
    choose_contexts,
    measure_conditions,
    thresholds,
)
from discovery.evaluation.verdict import decide_conditions, decide_verdict
from discovery.graph import EVIDENCE_ABLATIONS, CircuitGraph
from discovery.methods.behaviour import check_task
from discovery.progress import ProgressCallback
from discovery.sites import Node
from discovery.store import Run, open_run

REMEASURED_TESTS = (
    "hypotheses",
    "share_in_band",
)  # of the tests beside the conditions, those of the circuit on the held-out pairs
RECORD_TOLERANCE = 1e-4  # of f; other numbers relative to their size


@dataclass(frozen=True)
class Verification:
    """What came of it.

    Attributes:
        holds: every number again, and the same verdict. differences: each that is not. checked: how many numbers were compared.
    """

    run_id: str
    holds: bool
    differences: tuple[str, ...]
    checked: int
    forward_equivalents: float


def verify_run(
    run_id: str, *, runs_dir: Path | str | None = None, progress: ProgressCallback | None = None
) -> Verification:
    """Re-run the evaluation of a finished run. It is not a new look at the held-out pairs.

    Compared: the pairs, the baselines, f and everything of (a) to (e) on both splits, the hypothesis tests beside them, the conditions,
    thresholds and verdict. Not measured again: the stability of the selection (f), the curve, node effects and edges; the reasons are
    words, and are not compared.

    Raises:
        StoreError: where the run has no record yet, or its model has changed.
    """
    run = open_run(runs_dir, run_id)
    record = run.load_circuit()
    held = record.evaluation.heldout
    if record.verdict != "no_behaviour" and (
        held is None or not any(held.ablations.under(a) for a in EVIDENCE_ABLATIONS)
    ):
        raise StoreError(
            f"The run {run_id} ended before its circuit was evaluated ({record.verdict}).",
            "Run it again with a larger budget.",
        )
    model, task = reload_model_and_task(run)
    meter = Meter(progress=progress)
    cut = read_last_state(run).cut_short
    cut = (
        cut if cut is not None and cut.startswith("(") else None
    )  # a budget that ended in the conditions: what came after is not recorded
    again = _measure_again(run, record, model, task, meter, cut)
    before, now = _flatten({"verdict": record.verdict, **_recorded_facts(record)}), _flatten(again)
    if cut:
        before = {name: value for name, value in before.items() if value != "not_run"}
    differences = [
        f"{name}: recorded {before.get(name)}, now {now.get(name)}"
        for name in sorted(before if cut else before | now)
        if not _is_same(before.get(name), now.get(name))
    ]
    return Verification(run_id, not differences, tuple(differences), len(before), meter.spent)


def _measure_again(
    run: Run, record: CircuitGraph, model: Any, task: Any, meter: Meter, cut: str | None
) -> dict[str, Any]:
    settings, universe = read_settings(run), record.evaluation.universe
    seed, metric = settings.seed, record.task.metric
    common: dict[str, Any] = {"metric": metric, "memory": settings.memory, "meter": meter}
    benches = {
        name: SplitEvaluator.of(model, part, universe, seed, **common)
        for name, part in (("discovery", task.discovery), ("heldout", task.heldout))
    }
    checks = {
        name: check_task(model, bench.engine.task, metric=metric, engine=bench.engine)
        for name, bench in benches.items()
    }
    splits: dict[str, Any] = {
        name: {
            "n": b.n,
            "metric_clean": b.metric_clean,
            "metric_corrupted": b.metric_corrupted,
            "accuracy": b.accuracy,
            "top1": b.top1,
        }
        for name, b in checks.items()
    }
    splits["pairs"] = task.fingerprint
    if record.verdict == "no_behaviour":
        gates = any(b.reasons for b in checks.values())
        return {"verdict": "no_behaviour" if gates else "a behaviour", **splits}
    circuit = frozenset(record.members)
    ranking = [Node.parse(name) for name in _read_ranking(run)]
    judged = measure_conditions(
        benches["heldout"],
        circuit,
        lambda a: choose_contexts(benches["discovery"], circuit, a),
        ranking,
        seed,
    )
    own: PartialEvidence = {
        a: benches["discovery"].f(a).measure_circuit(circuit) for a in EVIDENCE_ABLATIONS
    }
    tests: Any = record.evaluation.tests
    stability = tests.get("stability", {}).get("mean_jaccard")
    evidence = {a: judged.evidence.get(a) for a in EVIDENCE_ABLATIONS}
    conditions = decide_conditions(evidence, stability)
    verdict, _ = decide_verdict(
        failed_gates=(), n_heldout=len(benches["heldout"].engine), size=len(circuit), evidence=evidence, conditions=conditions,
        stability=stability, cut_short=cut, undefined=[a for a, e in own.items() if e.faithfulness is None],
    )  # fmt: skip
    for name, found in (("discovery", own), ("heldout", judged.evidence)):
        splits[name]["ablations"] = {a: e.model_dump(mode="json") for a, e in found.items()}
    judgement = {
        "conditions": conditions.model_dump(mode="json"),
        "thresholds": thresholds.as_record(),
    }
    judgement["tests"] = {name: found for name, found in judged.tests.items() if name in tests}
    return {"verdict": verdict, **splits, **judgement}


def _read_ranking(run: Run) -> Sequence[str]:
    ranking: Sequence[str] = ()
    for event in run.events():
        ranking = event.get("state", {}).get("ranking") or ranking
    return ranking


def _recorded_facts(record: CircuitGraph) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in ("discovery", "heldout"):
        split = getattr(record.evaluation, name)
        if split is None:
            continue
        facts = split.model_dump(mode="json")
        kept = {
            key: facts[key] for key in ("n", "metric_clean", "metric_corrupted", "accuracy", "top1")
        }
        if record.verdict != "no_behaviour":
            kept["ablations"] = {a: e for a, e in facts["ablations"].items() if e is not None}
        out[name] = kept
    out["pairs"] = record.task.fingerprint
    if record.verdict != "no_behaviour":
        out["conditions"] = record.evaluation.conditions.model_dump(mode="json")
        out["thresholds"] = dict(record.evaluation.thresholds)
        out["tests"] = {
            name: found
            for name, found in record.evaluation.tests.items()
            if name in REMEASURED_TESTS
        }
    return out


def _flatten(facts: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_leaves(facts, ""))


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{at}[{number}]")
    elif value is not None:
        yield at, value


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=RECORD_TOLERANCE, abs_tol=RECORD_TOLERANCE)
    return bool(one == other)
