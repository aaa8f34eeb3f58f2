from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from discovery.tasks import BUILTIN
from tests.discovery.cli.conftest import CommandResult


def test_the_list(scout: Callable[..., CommandResult]) -> None:
    told = scout("tasks")
    assert told == scout("tasks", "list")
    assert [line.split()[0] for line in told.out.splitlines()] == list(BUILTIN)
    assert all(task.summary in told.out for task in BUILTIN.values())
    rows = json.loads(scout("tasks", "list", "--json").out)["tasks"]
    assert {row["name"]: row["summary"] for row in rows} == {
        task.name: task.summary for task in BUILTIN.values()
    }


def test_check(scout: Callable[..., CommandResult], model_directory: Path) -> None:
    told = scout(
        "tasks",
        "check",
        str(model_directory / "task.jsonl"),
        "--model",
        str(model_directory),
        "--device",
        "cpu",
        "--pairs",
        "20",
    )
    assert told.status == 0, told.err
    assert "The model does the task." in told.out
    assert "100.0%" in told.out


def test_check_as_json(scout: Callable[..., CommandResult], model_directory: Path) -> None:
    words = [
        str(model_directory / "task.jsonl"),
        "--model",
        str(model_directory),
        "--device",
        "cpu",
        "--pairs",
        "40",
        "--json",
        "-q",
    ]
    told = scout("tasks", "check", *words)
    assert (told.status, told.err) == (0, "")
    found = json.loads(told.out)
    assert (found["behaviour"], found["n"], found["accuracy"], found["metric"]) == (
        True,
        40,
        1.0,
        "logit_difference",
    )
    assert found["metric_clean"] > found["metric_corrupted"]
    assert found["gap"]["low"] <= found["gap"]["mean"] <= found["gap"]["high"]
    assert found["lint"]["warnings"] == []


def test_a_fault_of_the_lint_names_its_line(
    scout: Callable[..., CommandResult], model_directory: Path, tmp_path: Path
) -> None:
    pairs = (model_directory / "task.jsonl").read_text().splitlines()[:3]
    task = tmp_path / "task.jsonl"
    task.write_text(
        "\n".join([*pairs, '{"clean": [0, 12], "corrupted": [0, 11, 1], "answer": 14, "wrong": 1}'])
    )
    told = scout("tasks", "check", str(task), "--model", str(model_directory), "--device", "cpu")
    assert (told.status, told.out) == (2, "")
    assert "line 4: clean has 2 tokens and corrupted 3" in told.err
