"""Damage to the arrays or the journal of a run is found; what a kill leaves is no damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from discovery.errors import StoreError
from discovery.store import ModelSource, Run, create_run, open_run
from discovery.store.checksums import FileDamage

NAME = "heads"
FILE = "arrays/heads.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run with one file of arrays, whose stage has ended."""
    with create_run(tmp_path, "ioi", ModelSource(name="bundled"), {"seed": 0}) as run:
        run.save_arrays(NAME, {"values": np.arange(40.0)})
        run.append_event({"stage": "heads", "kind": "stage"})
        yield run


def reopen(run: Run) -> Run:
    run.close()
    return open_run(run.path.parent, run.id, write=True)


def flip_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4] ^= 0xFF
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (lambda path: path.unlink(), "is missing"),
    "flipped": (flip_bits, "is not what was written"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not what was written"),
    "emptied": (lambda path: path.write_bytes(b""), "is not what was written"),
}


def test_a_run_as_it_was_written_has_no_damage(run: Run) -> None:
    run.save_arrays(NAME, {"values": np.ones(3)})
    run.save_arrays("edges", {"values": np.ones(3)})
    assert run.find_damage() == []
    with reopen(run) as again:
        assert again.find_damage() == []
        assert [event["stage"] for event in again.events()] == ["heads"]


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_arrays_are_named_with_the_stage_that_wrote_them(name: str, run: Run) -> None:
    damage, problem = DAMAGE[name]
    damage(run.path / FILE)
    with reopen(run) as again:
        (found,) = again.find_damage()
        assert found == FileDamage(file=FILE, problem=problem, stage="heads")
        again.remove_arrays(found.file)
        assert again.find_damage() == []
        again.save_arrays(NAME, {"values": np.ones(3)})
        assert again.find_damage() == []


def test_arrays_of_a_stage_that_did_not_end_have_no_stage(run: Run) -> None:
    run.save_arrays("edges", {"values": np.ones(3)})
    (run.path / "arrays" / "edges.safetensors").unlink()
    assert [damage.stage for damage in run.find_damage()] == [None]


@pytest.mark.parametrize("is_first_version", [True, False])
def test_a_kill_before_arrays_are_written_is_no_damage(
    is_first_version: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, content: bytes) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr("discovery.store.run.write_bytes", killed)
        with pytest.raises(SystemExit):
            run.save_arrays("new" if is_first_version else NAME, {"values": np.ones(3)})
    with reopen(run) as again:
        assert again.find_damage() == []
        again.append_event({"stage": "candidate", "kind": "stage"})
        assert again.find_damage() == []
    flip_bits(run.path / FILE)
    assert len(open_run(run.path.parent, run.id).find_damage()) == 1


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda content: b"", "0 of them"),
        (lambda content: content[: len(content) // 2], "2 of them"),
        (lambda content: content[: content[:-1].rindex(b"\n") + 1], "2 of them"),
        (lambda content: content.replace(b'"number": 7', b'"number": 9'), "some of them"),
    ],
)
def test_a_journal_that_lost_events_is_refused(
    damage: Callable[[bytes], bytes], left: str, run: Run
) -> None:
    run.append_event({"stage": "candidate", "kind": "stage", "number": 7, "text": "x" * 900})
    path = run.path / "events.jsonl"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match=rf"events.jsonl is damaged.* 3 events, and {left}"):
        reopen(run)
    assert path.read_bytes() == damaged  # what is left is kept
    with pytest.raises(StoreError, match="is damaged"):
        open_run(run.path.parent, run.id).check_journal()


def test_a_kill_between_an_event_and_run_json_is_no_damage(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(run, "update", lambda: None)
        run.append_event({"stage": "candidate", "kind": "stage"})
    with open(run.path / "events.jsonl", "ab") as file:
        file.write(b'{"index": 3, "sta')
    with reopen(run) as again:
        assert [event["stage"] for event in again.events()] == ["heads", "candidate"]
