"""events.jsonl: the journal of a run, one durable line of strict JSON per event, from which it resumes.

Convention: each line has its `index` (from 0) and `time` (UTC), then what the writer says. A line ends with a
newline and is synced before `append` returns, so what a kill leaves after the last newline was never
acknowledged: reading leaves it out, and the next writer cuts it off. A last line that cannot be read (a
machine that lost power) counts as torn too. Damage before that is refused, for a journal with a hole lies.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from discovery.errors import StoreError
from discovery.graph.strict_json import dumps, loads
from discovery.store.files import explain_disk_errors, sync_folder

Event = dict[str, Any]
"""One line of a journal: `index` and `time`, and whatever the writer says."""

OnEvent = Callable[[Mapping[str, Any]], None]
"""Called with each event when it is written, without the state to resume from."""


def utc_timestamp() -> str:
    """The time in UTC, ISO 8601 to the millisecond, as every file of a run has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_events(path: Path) -> list[Event]:
    """Every whole event in `path`; none where there is no such file.

    Raises:
        StoreError: where a line before the last is damaged, naming it.
    """
    return _read_journal(path)[0]


class Journal:
    """The writer's end of a journal; one at a time, which the run's lock sees to.

    Raises:
        StoreError: on opening, where a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        events, self._size = _read_journal(path)
        self._count = len(events)
        self._lock = threading.Lock()
        with explain_disk_errors(path):
            if path.exists() and path.stat().st_size > self._size:
                os.truncate(path, self._size)

    def append(self, event: Mapping[str, Any]) -> int:
        """Write one event, durably.

        Args:
            event: what to say, as JSON; `index` and `time` are added here.

        Returns:
            its index.

        Raises:
            StoreError: where the disk refuses, or another process wrote meanwhile; the journal is then as it was before.
        """
        if "index" in event or "time" in event:
            raise ValueError("`index` and `time` of an event are the journal's to give")
        with self._lock, explain_disk_errors(self.path):
            line = (dumps({"index": self._count, "time": utc_timestamp(), **event}) + "\n").encode(
                "ascii"
            )
            descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666
            )
            try:
                self._write(descriptor, line)
            finally:
                os.close(descriptor)
            if self._size == 0:
                sync_folder(self.path.parent)
            self._size += len(line)
            self._count += 1
            return self._count - 1

    def _write(self, descriptor: int, line: bytes) -> None:
        if os.fstat(descriptor).st_size != self._size:
            raise StoreError(
                f"{self.path} was changed by somebody else.",
                "Let only one process write to a run; resume it to go on.",
            )
        os.lseek(descriptor, self._size, os.SEEK_SET)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, self._size)
            raise


def _read_journal(path: Path) -> tuple[list[Event], int]:
    """The whole events of a journal, and how many bytes they take."""
    with explain_disk_errors(path):
        content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")[:-1]
    events: list[Event] = []
    size = 0
    for number, line in enumerate(lines):
        try:
            events.append(_parse_event(line, number, path))
        except StoreError:
            if number < len(lines) - 1:
                raise
            break
        size += len(line) + 1
    return events, size


def _parse_event(line: bytes, number: int, path: Path) -> Event:
    value = loads(line, f"{path}, line {number + 1},")
    if not isinstance(value, dict) or value.get("index") != number:
        raise StoreError(
            f"{path}, line {number + 1}, is damaged: it is not event {number}.",
            "Restore the file, or start the run anew.",
        )
    return value
