"""The task of a run, as its folder keeps it: pairs, splits and reference prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from discovery.agent.saved.run_folder import describe_pairs, read_saved_task, save_reference
from discovery.store import ModelSource, Run, create_run
from discovery.tasks import load_task
from discovery.tasks.task import Task
from tests.discovery.tasks.builtin.conftest import WordTokenizer
from tests.discovery.tasks.builtin.test_reference import WordModel


def start_run(folder: Path, task: Task) -> Run:
    configuration = {
        "task_name": task.name,
        "task_metric": task.metric,
        "split_method": task.split_method,
        "rules": 2,
        "reference_from": task.reference_source.builtin,
        "load": {"model": "bundled"},
    }
    source = ModelSource(name="bundled")
    return create_run(folder, task.name, source, configuration, pairs=describe_pairs(task))


@pytest.fixture
def model() -> Any:
    return WordModel(WordTokenizer())


def keys(task: Task, per_group: int) -> list[tuple[object, ...]]:
    return [prompt.key for prompt in task.reference_source.draw(per_group)]


def test_a_builtin_tasks_prompts_are_kept_and_more_can_be_drawn(model: Any, tmp_path: Path) -> None:
    task = load_task("agreement", model, pairs=24)
    with start_run(tmp_path, task) as run:
        again = read_saved_task(run, model)
        assert (again.pairs, again.splits) == (task.pairs, task.splits)
        assert again.reference_source.per_group == 52
        assert keys(again, 52) == keys(task, 52)
        assert keys(again, 104) == keys(task, 104)
        save_reference(run, task, task.reference_source.draw(104))
        more = read_saved_task(run, model)
        assert more.pairs == task.pairs
        assert more.reference_source.per_group == 104
        assert keys(more, 104) == keys(task, 104)
        assert {line["use"] for line in run.load_pairs() if "use" in line} == {"reference"}


def test_a_users_reference_lines_are_kept(model: Any, tmp_path: Path) -> None:
    pairs = [
        {"clean": [1, n, 3], "corrupted": [2, n, 3], "answer": n, "wrong": 9, "labels": {"n": 1}}
        for n in range(10, 22)
    ]
    lines = [
        {"corrupted": [4, n, 3], "labels": {"n": 1}, "use": "reference"} for n in range(10, 15)
    ]
    task = load_task([*pairs, *lines], model)
    with start_run(tmp_path, task) as run:
        again = read_saved_task(run, model)
        assert sum("use" in line for line in run.load_pairs()) == 5
        assert keys(again, 0) == keys(task, 0)
        assert len(keys(again, 0)) == 17
        assert again.reference_source.description == task.reference_source.description
        assert again.discovery.reference_source is again.heldout.reference_source
