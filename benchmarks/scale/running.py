"""Runs discovery on hidden circuits, and checks their truths."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.output import print_progress
from benchmarks.scale.cases import UNTRAINED, CaseKey
from benchmarks.scale.embedding import HiddenCircuit
from benchmarks.scale.results import (
    CHECKS_FILE,
    RESULTS_FILE,
    CaseResult,
    append_line,
    load_results,
    read_lines,
)
from benchmarks.scale.truth_check import check_truth
from discovery import discover

PAIRS = 240


def run_cases(keys: Iterable[CaseKey], folder: Path, *, keep_runs: bool) -> None:
    """Run every case that the folder does not hold yet, and store one line for each.

    Args:
        keys: the cases.
        folder: where results and checks are stored.
        keep_runs: whether the run folders are kept, in `folder`/runs.
    """
    done = {result.key for result in load_results(folder)}
    for key in keys:
        if key in done:
            continue
        case = key.build()
        refused = () if key.kind == UNTRAINED else find_failures(key, case, folder)
        if refused:
            truth = tuple(sorted(case.truth))
            result = CaseResult(**_describe(key), truth=truth, refused=refused)
        else:
            result = run_case(key, case, folder / "runs" if keep_runs else None)
        append_line(folder / RESULTS_FILE, result.record())
        print_progress(describe_result(result))


def run_case(key: CaseKey, case: HiddenCircuit, runs_dir: Path | None) -> CaseResult:
    """Run discovery on one case."""
    with tempfile.TemporaryDirectory() as scratch:
        model, task = case.known_circuit.load(Path(scratch) / "model", PAIRS, device="cpu")
        circuit = discover(model, task, runs_dir=runs_dir or Path(scratch) / "runs").circuit
    cost = circuit.cost
    if cost.forward_equivalents is None or cost.seconds is None:
        raise ValueError(f"The run on {key} ended without its cost. Run the case again.")
    return CaseResult(
        **_describe(key),
        truth=tuple(sorted(case.truth)),
        found=tuple(sorted(str(node) for node in circuit.members)),
        verdict=str(circuit.verdict),
        reasons=tuple(circuit.reasons),
        forward_equivalents=cost.forward_equivalents,
        seconds=cost.seconds,
    )


def check_cases(keys: Iterable[CaseKey], folder: Path) -> Iterator[tuple[CaseKey, dict[str, Any]]]:
    """Check the truth of every case, and yield its key and what was measured.

    A check that the folder holds is not measured again. Untrained twins have no truth to check.
    """
    for key in keys:
        if key.kind == UNTRAINED:
            continue
        record = _load_check(key, folder)
        if record is None:
            find_failures(key, key.build(), folder)
            record = _load_check(key, folder)
            assert record is not None
        yield key, record


def find_failures(key: CaseKey, case: HiddenCircuit, folder: Path) -> tuple[str, ...]:
    """Return what does not hold of a case's truth, and store the check if it is not stored yet."""
    record = _load_check(key, folder)
    if record is None:
        record = _describe(key) | check_truth(case).record()
        append_line(folder / CHECKS_FILE, record)
    return tuple(record["failures"])


def describe_result(result: CaseResult) -> str:
    """Return a result in one line."""
    if result.refused:
        return f"{result.key}: refused, {'; '.join(result.refused)}"
    outcome = "exact"
    if not result.is_exact:
        outcome = f"missing {result.missing}, extra {result.extra}"
    cost = f"{result.forward_equivalents:,.0f} equivalents, {result.seconds:.0f} s"
    return f"{result.key}: {outcome}, {result.verdict}, {cost}"


def _describe(key: CaseKey) -> dict[str, Any]:
    return {
        "kind": key.kind,
        "n_nodes": key.n_nodes,
        "seed": key.seed,
        "seed_set": key.seed_set,
    }


def _load_check(key: CaseKey, folder: Path) -> dict[str, Any] | None:
    expected = _describe(key)
    for line in read_lines(folder / CHECKS_FILE):
        if expected.items() <= line.items():
            return line
    return None
