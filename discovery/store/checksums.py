"""Checksums by which a run finds damage to its own files.

Before a file of arrays is written, its sha256 is written into the journal, as an event of its own
kind. So a kill between the two leaves the file as the event before says, and any other difference
is damage. The journal itself is checked by run.json, which says how long the journal was after the
last stage or decision, and the sha256 of that part (`JournalExtent`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from discovery.errors import StoreError
from discovery.graph import JsonModel
from discovery.store.files import read_bytes

FILE_KIND = "file"
"""The kind of an event that only says what a file contains."""


class JournalExtent(JsonModel):
    """The part of a journal that was written before run.json.

    Attributes:
        events: how many events it has.
        size: how many bytes they take.
        sha256: the checksum of these bytes.
    """

    events: int
    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> JournalExtent:
        """Return the extent of a whole journal."""
        return cls(
            events=content.count(b"\n"),
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def check(self, path: Path, content: bytes) -> None:
        """Raise StoreError unless a journal begins with this part.

        Args:
            path: the journal.
            content: what is in it now.

        Raises:
            StoreError: if events were lost or changed.
        """
        if hashlib.sha256(content[: self.size]).hexdigest() == self.sha256:
            return
        found = content.count(b"\n")
        problem = "some of them were changed"
        if found < self.events:
            problem = f"{found} of them are left"
        raise StoreError(
            f"{path} is damaged: the run wrote {self.events} events, and {problem}.",
            "Restore the file, or start a new run: what the run measured and spent stands in it.",
        )


@dataclass(frozen=True, kw_only=True)
class FileDamage:
    """A file of a run that is not as the run wrote it.

    Attributes:
        file: its path inside the folder of the run, such as arrays/edges.safetensors.
        problem: what is wrong with it.
        stage: the stage that wrote it; None if that stage did not end.
    """

    file: str
    problem: Literal["is missing", "is not what was written"]
    stage: str | None


def file_event(file: str, content: bytes | None) -> dict[str, Any]:
    """Return the event that announces the content of a file; None means that it is removed."""
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return {"kind": FILE_KIND, "file": file, "sha256": digest}


def is_file_event(event: Mapping[str, Any]) -> bool:
    """Whether an event only says what a file contains."""
    return event.get("kind") == FILE_KIND


def find_unfinished_write(folder: Path, events: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the file that a kill kept from being written as the last event announced.

    Returns:
        None if the last event announces no file, if its file was written, or if the file is
        neither as announced nor as it was before, which is damage.
    """
    if not events or not is_file_event(events[-1]):
        return None
    announced = events[-1]
    file = announced["file"]
    present = _digest(folder / file)
    before = [event["sha256"] for event in events[:-1] if event.get("file") == file][-1:]
    return file if present != announced["sha256"] and present in (before or [None]) else None


def find_damage(folder: Path, events: Sequence[Mapping[str, Any]]) -> Iterator[FileDamage]:
    """Yield each file that is not as the journal says.

    Files of a run of an earlier version, which kept no checksums, are not checked.

    Args:
        folder: the folder of the run.
        events: its whole journal, after an unfinished write was settled.
    """
    last = {event["file"]: number for number, event in enumerate(events) if is_file_event(event)}
    for file, number in sorted(last.items()):
        expected = events[number]["sha256"]
        present = _digest(folder / file)
        if present != expected:
            yield FileDamage(
                file=file,
                problem="is missing" if present is None else "is not what was written",
                stage=_next_stage(events[number:]),
            )


def _next_stage(events: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the stage that ends first in these events."""
    return next((str(e["stage"]) for e in events if e.get("kind") == "stage"), None)


def _digest(path: Path) -> str | None:
    return hashlib.sha256(read_bytes(path)).hexdigest() if path.exists() else None
