from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery.tasks import BUILTIN, BUNDLED_TASKS
from tests.discovery.cli.stand_ins import CommandResult


def test_the_list(scout: Callable[..., CommandResult]) -> None:
    result = scout("tasks")
    assert result == scout("tasks", "list")
    assert [line.split()[0] for line in result.out.splitlines()] == list(BUILTIN)
    assert all(task.summary in result.out for task in BUILTIN.values())
    rows = json.loads(scout("tasks", "list", "--json").out)["tasks"]
    assert {row["name"]: row["summary"] for row in rows} == {
        task.name: task.summary for task in BUILTIN.values()
    }


def test_the_list_for_a_model(scout: Callable[..., CommandResult], model_directory: Path) -> None:
    """The bundled tokenizer lacks the pronouns; the hand-built model has no tokenizer."""
    rows = json.loads(scout("tasks", "list", "--model", "bundled", "--json").out)["tasks"]
    assert [row["name"] for row in rows if row["fits"]] == list(BUNDLED_TASKS)
    misfits = {row["name"]: row["misfit"] for row in rows}
    assert misfits["ioi"] is None
    assert "does not know 'she', 'he'" in misfits["gender"]
    lines = scout("tasks", "list", "--model", str(model_directory)).out.splitlines()
    assert len(lines) == len(BUILTIN)
    assert all("no tokenizer" in line for line in lines)


@pytest.fixture
def check(model_directory: Path) -> list[str]:
    """The command that checks the task of the hand-built model."""
    task = str(model_directory / "task.jsonl")
    return ["tasks", "check", task, "--model", str(model_directory), "--device", "cpu"]


def test_check(scout: Callable[..., CommandResult], check: list[str]) -> None:
    result = scout(*check, "--pairs", "20")
    assert result.status == 0, result.err
    assert "The model does the task." in result.out
    assert "100.0%" in result.out


def test_check_as_json(scout: Callable[..., CommandResult], check: list[str]) -> None:
    result = scout(*check, "--pairs", "40", "--json", "-q")
    assert (result.status, result.err) == (0, "")
    facts = json.loads(result.out)
    assert (facts["behaviour"], facts["n"], facts["accuracy"], facts["metric"]) == (
        True,
        40,
        1.0,
        "logit_difference",
    )
    assert facts["metric_clean"] > facts["metric_corrupted"]
    assert facts["gap"]["low"] <= facts["gap"]["mean"] <= facts["gap"]["high"]
    assert facts["lint"]["warnings"] == []


def test_an_error_in_a_task_file_names_its_line(
    scout: Callable[..., CommandResult], model_directory: Path, tmp_path: Path
) -> None:
    pairs = (model_directory / "task.jsonl").read_text().splitlines()[:3]
    task = tmp_path / "task.jsonl"
    task.write_text(
        "\n".join([*pairs, '{"clean": [0, 12], "corrupted": [0, 11, 1], "answer": 14, "wrong": 1}'])
    )
    result = scout("tasks", "check", str(task), "--model", str(model_directory), "--device", "cpu")
    assert (result.status, result.out) == (2, "")
    assert "line 4: clean has 2 tokens and corrupted 3" in result.err
