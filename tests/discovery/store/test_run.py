"""The folder of a run: what is written is read, by one writer and any number of readers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from discovery.errors import StoreError
from discovery.graph import Cost
from discovery.store import ModelSource, Run, create_run, open_run
from tests.discovery.graph.example import ioi_circuit

PAIRS = [
    {"clean": [1, 2], "split": "discovery"},
    {"clean": [3, 4], "split": "heldout", "note": "\u2028"},
]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    source = ModelSource(name="bundled")
    with create_run(tmp_path, "ioi", source, {"seed": 0}, pairs=PAIRS) as run:
        yield run


def reader(run: Run) -> Run:
    return open_run(run.path.parent, run.id)


def test_everything_that_is_written_is_read_by_another_opener(run: Run) -> None:
    run.append_event({"stage": "heads"})
    run.save_circuit(ioi_circuit())
    run.save_arrays("head_out-1", {"values": np.ones((2, 3))}, metadata={"axes": "layer head"})
    run.save_figure("heads", b"\x89PNG")
    run.save_report("<p>é</p>")
    other = reader(run)
    assert [pair["split"] for pair in other.load_pairs()] == ["discovery", "heldout"]
    assert other.load_pairs()[1]["note"] == "\u2028"
    assert [event["stage"] for event in other.events()] == ["heads"]
    assert other.load_circuit() == ioi_circuit()
    assert other.array_ids() == ["head_out-1"]
    assert other.load_arrays("head_out-1")["values"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert other.array_metadata("head_out-1.safetensors") == {"axes": "layer head"}
    assert other.figure_names() == ["heads"]
    assert other.load_figure("heads.png") == other.load_figure("heads") == b"\x89PNG"
    assert {entry.name for entry in run.path.iterdir() if not entry.name.startswith(".")} == {
        "run.json",
        "task.jsonl",
        "events.jsonl",
        "circuit.json",
        "arrays",
        "figures",
        "report.html",
    }
    assert {path.name for path in (run.path / "arrays").iterdir()} == {"head_out-1.safetensors"}


def test_run_json_holds_the_configuration_and_the_status(run: Run) -> None:
    run.update(status="completed", cost=Cost(forward_equivalents=12.5), note="added")
    data = json.loads((run.path / "run.json").read_text())
    assert (data["schema"], data["run_id"], data["status"]) == (
        "circuit-scout/run/1",
        run.id,
        "completed",
    )
    assert (data["configuration"], data["model"]["name"], data["task"]) == (
        {"seed": 0},
        "bundled",
        "ioi",
    )
    assert data["cost"]["forward_equivalents"] == 12.5
    assert data["note"] == "added"
    assert data["updated"] >= data["created"]


WRITES: list[Callable[[Run], object]] = [
    lambda run: run.update(status="failed"),
    lambda run: run.append_event({}),
    lambda run: run.save_file("rows.jsonl", b""),
    lambda run: run.save_circuit(ioi_circuit()),
    lambda run: run.save_arrays("x", {}),
    lambda run: run.save_figure("x", b""),
    lambda run: run.save_report(""),
]


@pytest.mark.parametrize("write", WRITES)
def test_only_the_opener_with_the_lock_may_write(run: Run, write: Callable[[Run], object]) -> None:
    with pytest.raises(StoreError, match="reading only"):
        write(reader(run))
    run.close()
    with pytest.raises(StoreError, match="reading only"):
        write(run)


def test_a_second_writer_is_refused_until_the_first_closes(run: Run) -> None:
    with pytest.raises(StoreError, match=f"process {os.getpid()}"):
        open_run(run.path.parent, run.id, write=True)
    run.close()
    with open_run(run.path.parent, run.id, write=True) as again:
        assert again.append_event({}) == 0


def test_a_run_that_nobody_writes_to_any_more_was_interrupted(run: Run) -> None:
    assert run.status == reader(run).status == "running"
    run.close()
    assert reader(run).status == "interrupted"
    with open_run(run.path.parent, run.id, write=True) as again:
        assert again.status == "running"
        again.update(status="completed")
    assert reader(run).status == "completed"


def test_a_writer_cleans_up_after_a_kill(run: Run) -> None:
    run.append_event({"number": 0})
    run.close()
    for leftover in (run.path / ".circuit.json.1f.tmp", run.path / "arrays" / ".x.2e.tmp"):
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_text("half")
    with open(run.path / "events.jsonl", "ab") as file:
        file.write(b'{"index": 1, "nu')
    with open_run(run.path.parent, run.id, write=True) as again:
        assert not list(run.path.rglob("*.tmp"))
        assert again.append_event({"number": 1}) == 1
        assert [event["number"] for event in again.events()] == [0, 1]


def test_a_writer_that_finds_damage_releases_the_lock(run: Run) -> None:
    run.close()
    (run.path / "events.jsonl").write_text('{"index": 5}\n{"index": 1}\n')
    for _ in range(2):
        with pytest.raises(StoreError, match="line 1"):
            open_run(run.path.parent, run.id, write=True)


@pytest.mark.parametrize("name", ["../run", "a/b", "..", "", ".x", "/etc/passwd"])
def test_no_name_leads_out_of_the_folder(run: Run, name: str) -> None:
    for attempt in (
        lambda: run.save_arrays(name, {}),
        lambda: run.load_arrays(name),
        lambda: run.save_figure(name, b""),
        lambda: run.load_figure(name),
    ):
        with pytest.raises(StoreError, match="cannot be a name"):
            attempt()


def test_no_link_leads_out_of_the_folder(run: Run) -> None:
    (run.path.parent / "secret.png").write_bytes(b"secret")
    (run.path / "figures").mkdir()
    (run.path / "figures" / "x.png").symlink_to(run.path.parent / "secret.png")
    with pytest.raises(StoreError, match="leads out"):
        run.load_figure("x")


def test_the_error_for_a_missing_file_lists_those_that_exist(run: Run) -> None:
    run.save_figure("heads", b"")
    with pytest.raises(StoreError, match=r"no figures/curve\.png\.\nThere are: heads"):
        run.load_figure("curve")
    with pytest.raises(StoreError, match="no circuit yet"):
        run.load_circuit()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '{"run_id": "x", "schema": "circuit-scout/run/2"}',
        '{"run_id": "x", "status": "?"}',
    ],
)
def test_a_damaged_run_json_is_reported(run: Run, content: str) -> None:
    (run.path / "run.json").write_text(content)
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        _ = run.record
