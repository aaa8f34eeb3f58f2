"""`circuit-scout new`: a folder for a study, tried by using it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from mcp import Client, StdioServerParameters

from discovery.graph import VERDICTS
from discovery.store import list_runs
from discovery.tasks import BUILTIN
from discovery.tasks.task_file import read_task_file
from mcp_server.__main__ import main
from mcp_server.setup import study_folder
from tests.mcp_server.servers import call_tool_ok

FILES = {
    ".gitignore",
    ".mcp.json",
    "AGENTS.md",
    "CLAUDE.md",
    "notes.md",
    "runs/.gitkeep",
    "study.yaml",
    "tasks/example.jsonl",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path) -> Path:
    """A script that runs this checkout, as the installed one runs the installation."""
    path = tmp_path / "bin" / "circuit-scout"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m mcp_server "$@"\n')
    path.chmod(0o755)
    monkeypatch.setattr(study_folder, "find_script", lambda: path)
    return path


@pytest.fixture
def study(script: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "my study"
    assert main(["new", str(folder)]) == 0
    assert "notes.md" in capfd.readouterr().out
    return folder


def test_the_folder_holds_a_study(study: Path, script: Path) -> None:
    files = {
        path.relative_to(study).as_posix(): path for path in study.rglob("*") if path.is_file()
    }
    assert set(files) == FILES
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    assert texts["AGENTS.md"].startswith("# my study: rules")
    assert texts["CLAUDE.md"] == "@AGENTS.md\n"
    assert not [name for name, text in texts.items() if "$name" in text]
    [entry] = json.loads(texts[".mcp.json"])["mcpServers"].values()
    assert entry == {
        "type": "stdio",
        "command": str(script),
        "args": ["serve", "--runs-dir", "runs"],
    }


def test_the_rules_name_what_there_is(study: Path) -> None:
    rules = (study / "AGENTS.md").read_text(encoding="utf-8")
    assert [verdict for verdict in VERDICTS if f"*{verdict}*" not in rules] == []
    named = re.findall(r"\| `([\w./]+)` \|", rules)
    assert len(named) == 4
    assert [name for name in named if not (study / name).exists()] == []


def test_the_plan_names_tasks_that_there_are(study: Path) -> None:
    plan = yaml.safe_load((study / "study.yaml").read_text(encoding="utf-8"))
    assert set(plan) == {"models", "tasks", "seeds", "settings"}
    assert all(name in BUILTIN or (study / name).is_file() for name in plan["tasks"])
    assert len(read_task_file(study / "tasks" / "example.jsonl")) == 16


def test_nothing_is_overwritten(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (study / "notes.md").write_text("mine")
    assert main(["new", str(study)]) == 2
    assert "is not an empty folder" in capfd.readouterr().err
    assert (study / "notes.md").read_text() == "mine"
    assert main(["new", str(study / "notes.md")]) == 2
    assert main(["new", str(study / "notes.md" / "below")]) == 2
    assert "cannot be made" in capfd.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["new", str(empty)]) == 0


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--force", "a"]])
def test_what_is_not_allowed_is_told(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["new", *words]) == 2
    assert "fix:" in capfd.readouterr().err


def test_records_go_into_version_control_and_grids_do_not(study: Path) -> None:
    run = "runs/20261130-ioi"
    names = [f"{run}/circuit.json", f"{run}/events.jsonl", f"{run}/arrays/grid.safetensors"]
    names += [f"{run}/figures/grid.png", ".mcp.json", "AGENTS.md", "runs/.gitkeep"]
    subprocess.run(["git", "init", "-q"], cwd=study, check=True)
    ignored = subprocess.run(
        ["git", "check-ignore", *names], cwd=study, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    assert ignored == [f"{run}/arrays/grid.safetensors", f"{run}/figures/grid.png", ".mcp.json"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.anyio
async def test_a_study_is_carried_out_in_it(study: Path, script: Path) -> None:
    """The task is checked through the server of .mcp.json, a circuit found, the record verified."""
    [entry] = json.loads((study / ".mcp.json").read_text())["mcpServers"].values()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parameters = StdioServerParameters(
        command=entry["command"], args=entry["args"], cwd=study, env=environment
    )
    async with Client(parameters) as client:
        loaded = await call_tool_ok(client, "load_model", model="bundled")
        check: dict[str, Any] = await call_tool_ok(
            client, "check_task", model_id=loaded["model_id"], task="tasks/example.jsonl"
        )
        assert check["behaviour"]
    discover = [script, "discover", "tasks/example.jsonl", "--runs-dir", "runs", "-q"]
    discover += ["--budget", "3000"]
    subprocess.run(discover, cwd=study, env=environment, check=True)
    [record] = list_runs(study / "runs")
    verify = [script, "runs", "verify", record.id, "--runs-dir", "runs", "-q"]
    assert subprocess.run(verify, cwd=study, env=environment, check=False).returncode == 0
