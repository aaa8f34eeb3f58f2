"""The journal: strict lines, and no acknowledged event is lost by a kill or a full disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import discovery
from discovery.errors import StoreError
from discovery.store.journal import Journal, read_events

ROOT = Path(discovery.__file__).parents[1]


def journal_with_events(path: Path, count: int) -> Journal:
    journal = Journal(path)
    for number in range(count):
        assert journal.append({"stage": "heads", "number": number}) == number
    return journal


def numbers(path: Path) -> list[int]:
    return [event["number"] for event in read_events(path)]


def test_each_event_is_one_strict_line_with_index_and_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path) == []
    journal = journal_with_events(path, 1)
    journal.append({"effect": float("nan"), "text": "two\nlines é", "nodes": ("a9.h6",)})
    lines = path.read_text().split("\n")
    assert len(lines) == 3
    assert json.loads(lines[1])["effect"] is None
    first, second = read_events(path)
    assert (first["index"], second["index"]) == (0, 1)
    assert first["time"] <= second["time"]
    assert second["time"].endswith("Z")
    assert second["text"] == "two\nlines é"


@pytest.mark.parametrize("event", [{"index": 3}, {"time": "now"}, {"x": object()}])
def test_an_event_that_is_not_one_is_a_bug_and_writes_nothing(
    tmp_path: Path, event: dict[str, Any]
) -> None:
    journal = journal_with_events(tmp_path / "e", 1)
    with pytest.raises((ValueError, TypeError)):
        journal.append(event)
    assert journal.append({"number": 1}) == 1


@pytest.mark.parametrize(
    "tail",
    [
        b'{"index": 3, "t',
        b'{"index": 3}',
        b"\x00\x00\x00",
        b'{"index": 3, "x": "\xc3',
        b"\x00\x00\n",
        b"{}\n",
    ],
)
def test_an_incomplete_last_line_is_left_out_and_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "e"
    journal_with_events(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert numbers(path) == [0, 1, 2]
    assert path.read_bytes() == whole + tail, (
        "a reader repairs nothing: the writer may be in the middle of a line"
    )
    assert Journal(path).append({"number": 3}) == 3
    assert numbers(path) == [0, 1, 2, 3]
    assert path.read_bytes().startswith(whole)


def test_a_write_may_be_cut_off_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "e"
    journal_with_events(path, 2)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        survivors = numbers(path)
        assert survivors == list(range(whole[:length].count(b"\n")))
        assert Journal(path).append({"number": len(survivors)}) == len(survivors)
        assert numbers(path) == list(range(len(survivors) + 1))


@pytest.mark.parametrize("line", [0, 1])
@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"index": 7}', b'{"index": 1, "x": NaN}', b"\xff"]
)
def test_damage_in_the_middle_is_refused_with_its_line(
    tmp_path: Path, line: int, damage: bytes
) -> None:
    path = tmp_path / "e"
    journal_with_events(path, 3)
    lines = path.read_bytes().split(b"\n")
    lines[line] = damage
    path.write_bytes(b"\n".join(lines))
    for opener in (read_events, Journal):
        with pytest.raises(StoreError, match=f"line {line + 1},"):
            opener(path)


def test_a_failed_write_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e"
    journal = journal_with_events(path, 2)
    whole = path.read_bytes()
    write = os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) < 20:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, content[: len(content) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(StoreError, match="disk is full"):
            journal.append({"number": 2})
    assert path.read_bytes() == whole
    assert journal.append({"number": 2}) == 2
    assert numbers(path) == [0, 1, 2]


def test_a_journal_that_another_process_changed_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "e"
    journal = journal_with_events(path, 1)
    Journal(path).append({"number": 1})
    with pytest.raises(StoreError, match="changed by another process"):
        journal.append({"number": 1})
    assert numbers(path) == [0, 1]


def test_a_kill_at_any_moment_loses_no_acknowledged_event(tmp_path: Path) -> None:
    """A process appends long events, prints each and is killed. All that it printed is kept."""
    path = tmp_path / "e"
    code = (
        "import sys; from pathlib import Path; from discovery.store.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "while True: print(journal.append({'x': 'y' * 20_000}), flush=True)"
    )
    acknowledged = -1
    for pause in (0.02, 0.05, 0.08):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            first = int(child.stdout.readline())
            assert first in (acknowledged + 1, acknowledged + 2), (
                "at most one event was written but not printed"
            )
            time.sleep(pause)
            child.send_signal(signal.SIGKILL)
            acknowledged = max(
                [first, *(int(line) for line in child.stdout.read().split("\n") if line.strip())]
            )
        events = read_events(path)
        assert [event["index"] for event in events] == list(range(len(events)))
        assert acknowledged < len(events) <= acknowledged + 2
        acknowledged = len(events) - 1


@pytest.mark.skipif(os.name != "posix", reason="file-size limits are POSIX")
def test_a_real_limit_on_the_file_size_is_reported_and_survived(tmp_path: Path) -> None:
    path = tmp_path / "e"
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from discovery.store.journal import Journal; from discovery.errors import StoreError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "try:\n"
        "    while True: journal.append({'x': 'y' * 700})\n"
        "except StoreError as fault: sys.exit(str(fault))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "larger than allowed" in process.stderr
    assert len(read_events(path)) == 6
    assert path.read_bytes().endswith(b"\n"), "the part that fitted was removed again"
    assert Journal(path).append({}) == 6
