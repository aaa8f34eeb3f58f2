"""events.jsonl: the journal of a run, from which it resumes.

Each event is one durable line of strict JSON: an `index` (from 0), a `time` (UTC), and then what
the writer gave. A line ends with a newline and is synced before `append` returns. What a kill
leaves after the last newline was therefore never acknowledged: reading leaves it out, and the
next writer cuts it off. A last line that cannot be read, as after a power cut, is treated the
same way. Damage before the last line is an error, because a journal with missing events would be
misleading.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from discovery.errors import StoreError
from discovery.graph.strict_json import dumps, loads
from discovery.store.checksums import JournalExtent
from discovery.store.files import explain_disk_errors, sync_folder

Event = dict[str, Any]
"""One line of a journal: `index` and `time`, and whatever the writer says."""

OnEvent = Callable[[Mapping[str, Any]], None]
"""Called with each event when it is written, without the state to resume from."""


def utc_timestamp() -> str:
    """Return the time in UTC, in ISO 8601 to the millisecond, as every file of a run has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_events(path: Path) -> list[Event]:
    """Return every complete event of a journal; none if there is no such file.

    Raises:
        StoreError: if a line before the last is damaged; the message names it.
    """
    return _read_journal(path)[0]


class Journal:
    """A journal that is open for writing. The run's lock makes sure that there is only one writer.

    Args:
        path: the file.
        extent: the part that must be there as it was; None if nothing is known of it.

    Raises:
        StoreError: if a line before the last is damaged, or if the extent is.
    """

    def __init__(self, path: Path, extent: JournalExtent | None = None) -> None:
        self.path = path
        if extent is not None:
            extent.check(path, _read_content(path))
        events, self._size = _read_journal(path)
        self._count = len(events)
        self._hash = hashlib.sha256(_read_content(path)[: self._size])
        self._lock = threading.Lock()
        with explain_disk_errors(path):
            if path.exists() and path.stat().st_size > self._size:
                os.truncate(path, self._size)

    def append(self, event: Mapping[str, Any]) -> int:
        """Write one event, durably.

        Args:
            event: the event as JSON; `index` and `time` are added here.

        Returns:
            The index of the event.

        Raises:
            StoreError: if the event cannot be written, or if another process has written to the
                journal. The journal is then as it was before.
        """
        if "index" in event or "time" in event:
            raise ValueError("`index` and `time` of an event are set by the journal")
        with self._lock, explain_disk_errors(self.path):
            text = dumps({"index": self._count, "time": utc_timestamp(), **event})
            line = (text + "\n").encode("ascii")
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            descriptor = os.open(self.path, flags, 0o666)
            try:
                self._write(descriptor, line)
            finally:
                os.close(descriptor)
            if self._size == 0:
                sync_folder(self.path.parent)
            self._size += len(line)
            self._hash.update(line)
            self._count += 1
            return self._count - 1

    @property
    def extent(self) -> JournalExtent:
        """What has been written up to now."""
        return JournalExtent(events=self._count, size=self._size, sha256=self._hash.hexdigest())

    def _write(self, descriptor: int, line: bytes) -> None:
        if os.fstat(descriptor).st_size != self._size:
            raise StoreError(
                f"{self.path} was changed by another process.",
                "Let only one process write to a run, and resume it.",
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
    """Return the complete events of a journal, and how many bytes they take."""
    content = _read_content(path)
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


def _read_content(path: Path) -> bytes:
    with explain_disk_errors(path):
        return path.read_bytes() if path.exists() else b""


def _parse_event(line: bytes, number: int, path: Path) -> Event:
    value = loads(line, f"{path}, line {number + 1},")
    if not isinstance(value, dict) or value.get("index") != number:
        raise StoreError(
            f"{path}, line {number + 1}, is damaged: it is not event {number}.",
            "Restore the file, or start a new run.",
        )
    return value
