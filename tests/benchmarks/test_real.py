"""The table of runs on a real model, from a run that is in the repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import real

COMPLETE = Path(__file__).parents[1] / "discovery/agent/older_records/version_1/complete"


def test_the_table_tells_what_the_record_holds(tmp_path: Path) -> None:
    shutil.copytree(COMPLETE, tmp_path / "induction")
    lines = real.format_results(tmp_path)
    (run,) = (tmp_path / "induction").iterdir()
    circuit = real.open_run(run.parent, run.name).load_circuit()
    row = next(line for line in lines if line.startswith("| induction |"))
    assert f"| {circuit.verdict} |" in row
    assert f"| {circuit.cost.forward_equivalents:,.0f} | none |" in row, "version 1 made no plan"
    scores = circuit.evaluation.heldout.ablations
    assert f"| {scores.resample.faithfulness.value:.3f} |" in row
    assert all(f"- {reason}\n" in lines[-1] for reason in circuit.reasons)


def test_a_table_of_nothing_says_how_to_make_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"benchmarks\.real run"):
        real.main(["table", "--out", str(tmp_path)])
