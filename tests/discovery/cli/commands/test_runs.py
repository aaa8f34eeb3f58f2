from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from discovery.graph import CircuitGraph
from discovery.store import open_run
from tests.discovery.cli.stand_ins import CommandResult


def test_no_runs(scout: Callable[..., CommandResult], runs_dir: Path) -> None:
    result = scout("runs")
    assert (result.status, result.out) == (0, "")
    assert "circuit-scout discover" in result.err
    assert json.loads(scout("runs", "--json").out) == {"runs_dir": str(runs_dir), "runs": []}


def test_the_list(
    scout: Callable[..., CommandResult], finished: str, unfinished: str, runs_dir: Path
) -> None:
    (runs_dir / "ruin").mkdir()
    result = scout("runs", "list")
    lines = result.out.splitlines()
    assert lines[0].split() == ["run", "status", "verdict", "task", "model"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows[finished] == ["completed", "partial", "ioi", "bundled"]
    assert rows[unfinished] == ["interrupted", "induction", "bundled"]
    assert rows["ruin"][0] == "damaged"
    runs = json.loads(scout("runs", "list", "--json").out)["runs"]
    assert {row["id"]: (row["status"], row["verdict"]) for row in runs}[finished] == (
        "completed",
        "partial",
    )


def test_another_directory(
    scout: Callable[..., CommandResult],
    finished: str,
    runs_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CIRCUIT_SCOUT_RUNS_DIR", str(tmp_path / "empty"))
    assert finished in scout("runs", "list", "--runs-dir", str(runs_dir)).out
    result = scout("runs", "--runs-dir", str(runs_dir), "show", finished)
    assert f"runs verify {finished} --runs-dir {runs_dir}" in result.out
    assert scout("runs", "show", finished).status == 2


def test_show_a_finished_run(scout: Callable[..., CommandResult], finished: str) -> None:
    result = scout("runs", "show", finished)
    assert (result.status, result.err) == (0, "")
    assert "ioi in bundled: partial" in result.out
    assert "report.html" in result.out


def test_show_an_unfinished_run(scout: Callable[..., CommandResult], unfinished: str) -> None:
    result = scout("runs", "show", unfinished)
    assert f"{unfinished}: interrupted" in result.out
    assert "check: the model does the task" in result.out
    assert f"circuit-scout discover --resume {unfinished}" in result.out


def test_show_as_json(
    scout: Callable[..., CommandResult], finished: str, unfinished: str, runs_dir: Path
) -> None:
    facts = json.loads(scout("runs", "show", finished, "--json").out)
    assert (facts["run_id"], facts["status"], facts["path"]) == (
        finished,
        "completed",
        str(runs_dir / finished),
    )
    assert facts["circuit"]["graph"]["verdict"] == "partial"
    assert json.loads(scout("runs", "show", unfinished, "--json").out)["circuit"] is None


def test_a_run_that_is_not_there(scout: Callable[..., CommandResult], finished: str) -> None:
    result = scout("runs", "show", finished[:-1] + "x")
    assert (result.status, result.out) == (2, "")
    assert f"Did you mean {finished}?" in result.err
    assert scout("runs", "show", "../../etc").status == 2


@pytest.mark.parametrize(
    ("name", "start"), [("json", "{"), ("graphml", "<?xml"), ("dot", "digraph"), ("mermaid", "%%")]
)
def test_export(
    name: str, start: str, scout: Callable[..., CommandResult], finished: str, runs_dir: Path
) -> None:
    result = scout("runs", "export", finished, "--format", name)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(start)
    circuit = open_run(runs_dir, finished).load_circuit()
    assert result.out == circuit.export(name)  # type: ignore[arg-type]  # parametrised


def test_export_as_json(
    scout: Callable[..., CommandResult], finished: str, unfinished: str
) -> None:
    assert scout("runs", "export", finished).out == scout("runs", "export", finished, "--json").out
    assert CircuitGraph.from_json(scout("runs", "export", finished).out).run_id == finished
    assert scout("runs", "export", finished, "--json", "--format", "dot").status == 2
    assert f"--resume {unfinished}" in scout("runs", "export", unfinished).err


@dataclass(frozen=True)
class StubVerification:
    run_id: str
    holds: bool
    differences: tuple[str, ...]
    checked: int = 7
    forward_equivalents: float = 1234.5


@pytest.mark.parametrize("differences", [(), ("heldout.accuracy: recorded 0.98, now 0.5",)])
def test_verify(
    differences: tuple[str, ...],
    scout: Callable[..., CommandResult],
    finished: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified: list[Any] = []

    def verify_run(run_id: str, **options: Any) -> StubVerification:
        verified.append((run_id, options["runs_dir"]))
        return StubVerification(run_id, not differences, differences)

    module: Any = types.ModuleType("discovery.agent")
    module.verify_run = verify_run
    monkeypatch.setitem(sys.modules, "discovery.agent", module)
    result = scout("runs", "verify", finished)
    assert result.status == (3 if differences else 0)
    assert scout("runs", "verify", finished, "--json").status == result.status
    assert ("does not hold" in result.out) == bool(differences)
    assert all(difference in result.out for difference in differences)
    facts = json.loads(scout("runs", "verify", finished, "--json").out)
    assert (facts["holds"], facts["differences"], facts["checked"]) == (
        not differences,
        list(differences),
        7,
    )
    assert [run_id for run_id, _ in verified] == [finished] * 3


def test_show_says_if_the_verdict_does_not_follow(
    scout: Callable[..., CommandResult], finished: str, runs_dir: Path
) -> None:
    result = scout("runs", "show", finished)
    assert "This record contradicts itself" in result.out  # the example's condition (e) is made up
    contradictions = json.loads(scout("runs", "show", finished, "--json").out)["contradictions"]
    assert all(contradiction in result.out for contradiction in contradictions)
    assert contradictions
