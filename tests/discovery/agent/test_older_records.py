"""Runs of earlier versions can still be read, shown, verified and resumed.

`older_records/version_1` holds two runs of `induction` on the bundled model with 120 pairs, written
by version 0.1.0 before its files and names were put in order. One is complete, and one was killed
after its fourth event. Pictures and pages are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery.agent import resume, verify_run
from discovery.agent.saved.run_folder import read_last_state, read_settings
from discovery.graph import CircuitGraph
from discovery.store import open_run
from tests.discovery.cli.conftest import CommandResult, scout  # noqa: F401  (a fixture)

OLDER = Path(__file__).with_name("older_records")
COMPLETE = OLDER / "version_1" / "complete"
INTERRUPTED = OLDER / "version_1" / "interrupted"


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[Path], tuple[str, Path]]:
    """Copies the one run of a folder to a writable place, and returns its id and runs directory."""

    def copy(source: Path) -> tuple[str, Path]:
        (folder,) = (path for path in source.iterdir() if path.is_dir())
        shutil.copytree(folder, tmp_path / "runs" / folder.name)
        return folder.name, tmp_path / "runs"

    return copy


def test_a_record_of_version_1_is_read(runs: Callable[[Path], tuple[str, Path]]) -> None:
    run_id, runs_dir = runs(COMPLETE)
    text = (runs_dir / run_id / "circuit.json").read_text(encoding="utf-8")
    circuit = CircuitGraph.from_json(text)
    assert '"circuit-scout/circuit/1"' in text
    assert circuit.verdict == "verified"
    assert circuit.size == 6
    assert circuit.to_networkx().number_of_nodes() == 8


def test_a_run_of_version_1_is_shown(
    runs: Callable[[Path], tuple[str, Path]],
    scout: Callable[..., CommandResult],  # noqa: F811
) -> None:
    run_id, runs_dir = runs(COMPLETE)
    shown = scout("runs", "show", run_id, "--runs-dir", str(runs_dir))
    assert shown.status == 0
    assert "induction in bundled: verified" in shown.out


def test_the_settings_and_the_state_of_a_killed_run_are_read(
    runs: Callable[[Path], tuple[str, Path]],
) -> None:
    run_id, runs_dir = runs(INTERRUPTED)
    run = open_run(runs_dir, run_id)
    assert read_settings(run).load.model == "bundled"
    assert len(read_last_state(run).done) == 4


@pytest.mark.slow
def test_a_run_of_version_1_is_verified(runs: Callable[[Path], tuple[str, Path]]) -> None:
    run_id, runs_dir = runs(COMPLETE)
    verification = verify_run(run_id, runs_dir=runs_dir)
    assert verification.differences == ()
    assert verification.holds
    assert verification.checked > 100


@pytest.mark.slow
def test_a_killed_run_of_version_1_ends_with_the_same_circuit(
    runs: Callable[[Path], tuple[str, Path]],
) -> None:
    run_id, runs_dir = runs(INTERRUPTED)
    resumed = resume(run_id, runs_dir=runs_dir).circuit
    (record,) = COMPLETE.glob("*/circuit.json")
    expected = CircuitGraph.from_json(record.read_text(encoding="utf-8"))
    assert resumed.members == expected.members
    assert resumed.verdict == expected.verdict, resumed.reasons
