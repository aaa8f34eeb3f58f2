"""The folder of one run. Each file in it is written in one step, and by one process.

    run.json         configuration, model source, provenance, status, cost
    task.jsonl       every pair used, with its split and token ids
    events.jsonl     one line per stage and decision
    circuit.json     the record
    arrays/  figures/  report.html

Any number of processes may have a run open for reading, and one may have it open for writing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from pydantic import ValidationError

from discovery.errors import StoreError
from discovery.graph import CircuitGraph
from discovery.graph.base import locate_first_error
from discovery.graph.strict_json import dumps, loads
from discovery.store.arrays import Array, pack_arrays, read_arrays, read_metadata
from discovery.store.checksums import (
    FileDamage,
    file_event,
    find_damage,
    find_unfinished_write,
    is_file_event,
)
from discovery.store.files import (
    check_name,
    explain_disk_errors,
    read_bytes,
    read_json,
    remove_leftovers,
    resolve_inside,
    write_bytes,
    write_json,
)
from discovery.store.journal import Event, Journal, read_events, utc_timestamp
from discovery.store.lock import RunLock, is_being_written
from discovery.store.run_record import RunRecord, RunStatus


class Run:
    """An open run folder. As a context manager it releases the lock at its end.

    Args:
        path: the folder.
        write: whether to open it for writing, which takes the lock.

    Attributes:
        path: the folder.
        id: the id of the run, which is the name of the folder.

    Raises:
        StoreError: if another process has it open for writing, or if its journal is damaged.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        self.id = path.name
        self._lock = RunLock(path) if write else None
        self._journal: Journal | None = None
        if self._lock:
            try:
                remove_leftovers(path)
                self._journal = Journal(path / "events.jsonl", self.record.journal)
                self._settle_last_write(self._journal)
            except BaseException:
                self._lock.release()
                raise

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. The files stay."""
        if self._lock:
            self._lock.release()
        self._lock = None
        self._journal = None

    def discard(self) -> None:
        """Remove the folder of a run that measured nothing."""
        self._check_writable()
        with explain_disk_errors(self.path):
            shutil.rmtree(self.path)
        self.close()

    @property
    def is_writable(self) -> bool:
        """Whether this object may write to the folder."""
        return self._lock is not None

    @property
    def record(self) -> RunRecord:
        """The present content of run.json.

        Raises:
            StoreError: if it is missing or damaged.
        """
        path = self.path / "run.json"
        try:
            return RunRecord.model_validate(read_json(path))
        except ValidationError as fault:
            place, message = locate_first_error(fault)
            raise StoreError(
                f"{path} is damaged at {place or 'its top'}.",
                "Restore the file, or delete the run.",
                detail=message,
            ) from fault

    @property
    def status(self) -> RunStatus:
        """The status. A run that says `running` was interrupted if no process writes to it."""
        status = self.record.status
        if status == "running" and not self.is_writable and not is_being_written(self.path):
            return "interrupted"
        return status

    def update(self, **changes: Any) -> RunRecord:
        """Write run.json with changed fields, and return its new content."""
        self._check_writable()
        assert self._journal is not None
        record = RunRecord.model_validate(
            {
                **self.record.model_dump(by_alias=True),
                **changes,
                "run_id": self.id,
                "updated": utc_timestamp(),
                "journal": self._journal.extent,
            }
        )
        write_json(self.path / "run.json", record)
        return record

    def append_event(self, event: Mapping[str, Any]) -> int:
        """Write one event durably, and return its index; see `Journal.append`.

        run.json then says how long the journal is.
        """
        self._check_writable()
        assert self._journal is not None
        index = self._journal.append(event)
        self.update()
        return index

    def events(self) -> list[Event]:
        """Return every event so far, without an incomplete last line.

        Events that only say what a file contains are left out; `find_damage` uses them.
        """
        return [event for event in self._all_events() if not is_file_event(event)]

    def check_journal(self) -> None:
        """Raise StoreError if the journal lost events that run.json counts, or if they changed."""
        extent = self.record.journal
        path = self.path / "events.jsonl"
        if extent is not None:
            extent.check(path, read_bytes(path) if path.exists() else b"")

    def find_damage(self) -> list[FileDamage]:
        """Return each file of arrays that is not as the run wrote it."""
        return list(find_damage(self.path, self._all_events()))

    def _all_events(self) -> list[Event]:
        return read_events(self.path / "events.jsonl")

    def _settle_last_write(self, journal: Journal) -> None:
        """Note that a write was not done which the last event announces, because of a kill."""
        events = self._all_events()
        file = find_unfinished_write(self.path, events)
        if file is not None:
            path = self.path / file
            journal.append(file_event(file, read_bytes(path) if path.exists() else None))

    def load_pairs(self) -> list[dict[str, Any]]:
        """Return the lines of task.jsonl.

        Raises:
            StoreError: if the file is missing or cut off.
        """
        path = self.path / "task.jsonl"
        *lines, rest = read_bytes(path).split(b"\n")
        if rest or not lines:
            raise StoreError(
                f"{path} is damaged: its last line is cut off.",
                "Restore the file, or start a new run.",
            )
        return [
            loads(line, f"{path}, line {number},") for number, line in enumerate(lines, start=1)
        ]

    def save_pairs(self, pairs: Iterable[Mapping[str, Any]]) -> None:
        """Write task.jsonl again; a run does so when it has drawn more reference prompts."""
        self._write("task.jsonl", format_pairs(pairs))

    def save_circuit(self, circuit: CircuitGraph) -> None:
        """Write circuit.json."""
        self._write("circuit.json", circuit.to_json().encode("ascii"))

    def load_circuit(self) -> CircuitGraph:
        """Return the record.

        Raises:
            StoreError: if the run has no record yet, if it trains an SAE, or if the record is
                damaged.
        """
        path = self.path / "circuit.json"
        if self.record.kind == "sae":
            raise StoreError(
                f"The run {self.id} trains an SAE and has no circuit.",
                f"See it: circuit-scout runs show {self.id}, or train_sae(run_id={self.id!r}).",
            )
        if not path.exists():
            raise StoreError(
                f"The run {self.id} has no circuit yet.",
                f"Resume it: circuit-scout discover --resume {self.id}",
            )
        return CircuitGraph.from_json(read_bytes(path), str(path))

    def save_arrays(
        self,
        result_id: str,
        arrays: Mapping[str, Array],
        *,
        dtype: DTypeLike = np.float32,
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write the arrays of one result to arrays/<result_id>.safetensors, and return its path.

        Args:
            result_id: the id of the result.
            arrays: numpy arrays by name.
            dtype: the dtype in which floating-point arrays are stored.
            metadata: what the arrays mean, such as axes and labels.
        """
        self._check_writable()
        assert self._journal is not None
        path = self._file("arrays", result_id, ".safetensors")
        content = pack_arrays(arrays, dtype, metadata or {})
        self._journal.append(file_event(f"arrays/{path.name}", content))
        write_bytes(path, content)
        return path

    def remove_arrays(self, file: str) -> None:
        """Remove a damaged file of arrays, as `find_damage` names it."""
        self._check_writable()
        assert self._journal is not None
        path = self._file("arrays", Path(file).name, ".safetensors")
        self._journal.append(file_event(f"arrays/{path.name}", None))
        with explain_disk_errors(path):
            path.unlink(missing_ok=True)

    def load_arrays(self, result_id: str) -> dict[str, Array]:
        """Return the arrays of one result, by name."""
        return read_arrays(self._existing_file("arrays", result_id, ".safetensors"))

    def array_metadata(self, result_id: str) -> dict[str, str]:
        """Return the metadata of the arrays of one result."""
        return read_metadata(self._existing_file("arrays", result_id, ".safetensors"))

    def array_ids(self) -> list[str]:
        """Return the id of every result that has arrays."""
        return sorted(path.stem for path in (self.path / "arrays").glob("[!.]*.safetensors"))

    def save_figure(self, name: str, png: bytes) -> Path:
        """Write figures/<name>.png, and return its path."""
        self._check_writable()
        path = self._file("figures", name, ".png")
        write_bytes(path, png)
        return path

    def load_figure(self, name: str) -> bytes:
        """Return the PNG of one figure."""
        return read_bytes(self._existing_file("figures", name, ".png"))

    def figure_names(self) -> list[str]:
        """Return the name of every figure."""
        return sorted(path.stem for path in (self.path / "figures").glob("[!.]*.png"))

    def save_report(self, html: str) -> Path:
        """Write report.html, and return its path."""
        self._write("report.html", html.encode("utf-8"))
        return self.path / "report.html"

    def save_file(self, name: str, content: bytes) -> None:
        """Write another file into the folder, in one step."""
        self._write(check_name(name, "a file of a run"), content)

    def load_file(self, name: str) -> bytes | None:
        """Return the content of a file in the folder; None if there is no such file."""
        path = resolve_inside(self.path, check_name(name, "a file of a run"))
        return read_bytes(path) if path.exists() else None

    def remove_file(self, name: str) -> None:
        """Remove a file in the folder, if it exists."""
        self._check_writable()
        with explain_disk_errors(self.path):
            (self.path / check_name(name, "a file of a run")).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        self._check_writable()
        write_bytes(self.path / name, content)

    def _check_writable(self) -> None:
        if not self.is_writable:
            raise StoreError(
                f"The run {self.id} is open for reading only.", "Open it with write=True."
            )

    def _file(self, folder: str, name: str, suffix: str) -> Path:
        return resolve_inside(
            self.path,
            folder,
            check_name(name.removesuffix(suffix), f"a name in {folder}/") + suffix,
        )

    def _existing_file(self, folder: str, name: str, suffix: str) -> Path:
        path = self._file(folder, name, suffix)
        if not path.exists():
            names = sorted(other.stem for other in path.parent.glob(f"[!.]*{suffix}"))
            raise StoreError(
                f"The run {self.id} has no {folder}/{path.name}.",
                f"There are: {', '.join(names) or 'none'}.",
            )
        return path


def format_pairs(pairs: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of task.jsonl, which `Run.load_pairs` reads back."""
    return "".join(dumps(pair) + "\n" for pair in pairs).encode("ascii")
