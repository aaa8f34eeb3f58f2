"""The runs directory: ids, opening, listing, and the errors with their cures."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from discovery.errors import StoreError
from discovery.store import (
    ModelSource,
    create_run,
    default_runs_dir,
    directory,
    list_runs,
    open_run,
    run_ids,
)
from tests.discovery.graph.example import ioi_circuit

BUNDLED = ModelSource(name="bundled")


def create_finished_run(runs_dir: Path, task: str = "ioi", status: str | None = None) -> str:
    with create_run(runs_dir, task, BUNDLED, {}) as run:
        if status:
            run.update(status=status)
        if status == "completed":
            run.save_circuit(ioi_circuit())
    return run.id


def test_an_id_names_task_model_and_time(tmp_path: Path) -> None:
    assert re.fullmatch(r"ioi-bundled-\d{8}-\d{6}-[0-9a-f]{4}", create_finished_run(tmp_path))


@pytest.mark.parametrize(
    ("task", "model", "start"),
    [
        ("my/tasks/Gendered Pronoun.jsonl", "openai/gpt2", "gendered-pronoun-gpt2-"),
        ("../../etc/passwd", "../..", "passwd-x-"),
        ("", "é", "x-x-"),
        ("t" * 200, "m" * 200, "t" * 32 + "-" + "m" * 32),
    ],
)
def test_any_task_and_model_make_a_name_in_the_runs_directory(
    tmp_path: Path, task: str, model: str, start: str
) -> None:
    with create_run(tmp_path / "runs", task, ModelSource(name=model), {}) as run:
        assert run.id.startswith(start)
        assert run.path.parent == tmp_path / "runs"
    assert open_run(tmp_path / "runs", run.id).record.run_id == run.id


def test_ids_are_unique_even_when_the_digits_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(
        directory,
        "new_run_id",
        lambda task, model: f"{task}-{model}-20260101-000000-{next(digits)}",
    )
    assert [create_finished_run(tmp_path), create_finished_run(tmp_path)] == [
        "ioi-bundled-20260101-000000-aaaa",
        "ioi-bundled-20260101-000000-bbbb",
    ]
    assert {entry.name for entry in tmp_path.iterdir()} == set(run_ids(tmp_path))


def test_the_default_directory_is_the_users_or_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIRCUIT_SCOUT_RUNS_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_runs_dir().parts[-2:] == ("circuit-scout", "runs")
    monkeypatch.setenv("CIRCUIT_SCOUT_RUNS_DIR", str(tmp_path / "mine"))
    assert default_runs_dir() == tmp_path / "mine"
    with create_run(None, "ioi", BUNDLED, {}) as run:
        assert run.path.parent == tmp_path / "mine"
    assert [summary.id for summary in list_runs(None)] == [run.id]


def test_the_error_for_a_missing_run_names_similar_ids(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is none yet"):
        open_run(tmp_path, "ioi-x")
    run_id = create_finished_run(tmp_path)
    with pytest.raises(StoreError, match=f"no run '{run_id[:-1]}'.*\nDid you mean {run_id}"):
        open_run(tmp_path, run_id[:-1])
    with pytest.raises(StoreError, match=f"Did you mean {run_id}"):
        open_run(tmp_path, "zzz")


@pytest.mark.parametrize("run_id", ["..", "../x", "/tmp", "", ".new-x", "a/../b"])
def test_no_id_leads_out_of_the_directory(tmp_path: Path, run_id: str) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(StoreError, match="cannot be the id of a run"):
        open_run(tmp_path / "runs", run_id)


def test_the_list_has_status_and_verdict_the_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = iter(["20250101-000000", "20260101-000000", "20240101-000000", "20230101-000000"])
    monkeypatch.setattr(
        directory, "new_run_id", lambda task, model: f"{task}-{model}-{next(stamps)}-0000"
    )
    create_finished_run(tmp_path, "induction", "completed")
    create_finished_run(tmp_path, "ioi")
    create_finished_run(tmp_path, "acdc", "failed")
    with create_run(tmp_path, "zeta", BUNDLED, {}) as held:
        rows = [(row.id.split("-")[0], row.status, row.verdict) for row in list_runs(tmp_path)]
    assert held.id.startswith("zeta")
    assert rows == [
        ("ioi", "interrupted", None),
        ("induction", "completed", "partial"),
        ("acdc", "failed", None),
        ("zeta", "running", None),
    ]
    assert list_runs(tmp_path)[1].created is not None
    assert list_runs(tmp_path)[1].model == "bundled"


def test_damaged_folders_are_listed_as_damaged(tmp_path: Path) -> None:
    good = create_finished_run(tmp_path, status="completed")
    broken = create_finished_run(tmp_path, status="completed")
    (tmp_path / broken / "circuit.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_bytes(b"\xff")
    (tmp_path / "not a run").mkdir()
    (tmp_path / "heldout.json").write_text("{}")
    (tmp_path / ".new-x").mkdir()
    rows = {row.id: row for row in list_runs(tmp_path)}
    assert set(rows) == {good, broken, "empty", "odd", "not a run"}
    assert rows[good].status == "completed"
    assert {rows[name].status for name in (broken, "empty", "odd", "not a run")} == {"damaged"}
    assert "circuit.json is damaged" in (rows[broken].problem or "")
    assert "no run.json" in (rows["empty"].problem or "")


def test_no_directory_yet_is_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "none") == []


def test_a_directory_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(StoreError, match="--runs-dir"):
            create_run(folder, "ioi", BUNDLED, {})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match="read-only"):
        create_run(tmp_path / "runs", "ioi", BUNDLED, {})
