"""One run folder: everything that a run leaves behind, each file written in one step by one process.

    run.json         configuration, model source, provenance, status, cost
    task.jsonl       every pair used, with its split and token ids
    events.jsonl     one line per stage and decision
    circuit.json     the record
    arrays/  figures/  report.html

A run is opened for reading by anyone at any time, and for writing by one.
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
from discovery.graph.strict_json import dumps, loads
from discovery.store.arrays import Array, read_arrays, read_metadata, write_arrays
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
    """An open run folder; a context manager that gives the lock back.

    Attributes:
        path: the folder.
        id: its name.
    """

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        self.id = path.name
        self._lock = RunLock(path) if write else None
        self._journal: Journal | None = None
        if self._lock:
            try:
                remove_leftovers(path)
                self._journal = Journal(path / "events.jsonl")
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
        """Give the lock back; what is on disk stays."""
        if self._lock:
            self._lock.release()
        self._lock = self._journal = None

    def discard(self) -> None:
        """Remove the folder: of a run that measured nothing, and never could."""
        self._check_writable()
        with explain_disk_errors(self.path):
            shutil.rmtree(self.path)
        self.close()

    @property
    def is_writable(self) -> bool:
        """Whether this is the opener that may write."""
        return self._lock is not None

    @property
    def record(self) -> RunRecord:
        """run.json as it stands."""
        path = self.path / "run.json"
        try:
            return RunRecord.model_validate(read_json(path))
        except ValidationError as fault:
            first = fault.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise StoreError(
                f"{path} is damaged at {place or 'its top'}.",
                "Restore the file, or delete the run.",
                detail=first["msg"],
            ) from fault

    @property
    def status(self) -> RunStatus:
        """As recorded; a run that says `running` and that no process writes to was interrupted."""
        status = self.record.status
        return (
            "interrupted"
            if status == "running" and not self.is_writable and not is_being_written(self.path)
            else status
        )

    def update(self, **changes: Any) -> RunRecord:
        """Write run.json with `changes` to its fields."""
        self._check_writable()
        record = RunRecord.model_validate(
            {
                **self.record.model_dump(by_alias=True),
                **changes,
                "run_id": self.id,
                "updated": utc_timestamp(),
            }
        )
        write_json(self.path / "run.json", record)
        return record

    def append_event(self, event: Mapping[str, Any]) -> int:
        """Write one event durably; returns its index. See `Journal.append`."""
        self._check_writable()
        assert self._journal is not None
        return self._journal.append(event)

    def events(self) -> list[Event]:
        """Every event so far, without a torn last line."""
        return read_events(self.path / "events.jsonl")

    def save_pairs(self, pairs: Iterable[Mapping[str, Any]]) -> None:
        """Write task.jsonl: every pair used, with its split and token ids."""
        self._check_writable()
        write_pairs(self.path, pairs)

    def load_pairs(self) -> list[dict[str, Any]]:
        """The lines of task.jsonl.

        Raises:
            StoreError: where it is missing, or cut off.
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

    def save_circuit(self, circuit: CircuitGraph) -> None:
        """Write circuit.json."""
        self._write("circuit.json", circuit.to_json().encode("ascii"))

    def load_circuit(self) -> CircuitGraph:
        """The record. Raises StoreError where the run has not got that far."""
        path = self.path / "circuit.json"
        if self.record.kind == "sae":
            raise StoreError(
                f"The run {self.id} is the training of an SAE, and has no circuit.",
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
        """Write the numpy arrays of one result to arrays/<result_id>.safetensors; floats become `dtype`."""
        self._check_writable()
        path = self._file("arrays", result_id, ".safetensors")
        write_arrays(path, arrays, dtype, metadata or {})
        return path

    def load_arrays(self, result_id: str) -> dict[str, Array]:
        """The arrays of one result, by name."""
        return read_arrays(self._existing_file("arrays", result_id, ".safetensors"))

    def array_metadata(self, result_id: str) -> dict[str, str]:
        """What was noted with the arrays of one result."""
        return read_metadata(self._existing_file("arrays", result_id, ".safetensors"))

    def array_ids(self) -> list[str]:
        """Every result that has arrays."""
        return sorted(path.stem for path in (self.path / "arrays").glob("[!.]*.safetensors"))

    def save_figure(self, name: str, png: bytes) -> Path:
        """Write figures/<name>.png."""
        self._check_writable()
        path = self._file("figures", name, ".png")
        write_bytes(path, png)
        return path

    def load_figure(self, name: str) -> bytes:
        """The PNG of one figure."""
        return read_bytes(self._existing_file("figures", name, ".png"))

    def figure_names(self) -> list[str]:
        """Every figure."""
        return sorted(path.stem for path in (self.path / "figures").glob("[!.]*.png"))

    def save_report(self, html: str) -> Path:
        """Write report.html."""
        self._write("report.html", html.encode("utf-8"))
        return self.path / "report.html"

    def save_file(self, name: str, content: bytes) -> None:
        """Write a file of another kind into the folder, in one step."""
        self._write(check_name(name, "a file of a run"), content)

    def load_file(self, name: str) -> bytes | None:
        """The content of such a file; None where there is none."""
        path = resolve_inside(self.path, check_name(name, "a file of a run"))
        return read_bytes(path) if path.exists() else None

    def remove_file(self, name: str) -> None:
        """Remove such a file, if it is there."""
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
            there = sorted(other.stem for other in path.parent.glob(f"[!.]*{suffix}"))
            raise StoreError(
                f"The run {self.id} has no {folder}/{path.name}.",
                f"There are: {', '.join(there) or 'none'}.",
            )
        return path


def write_pairs(folder: Path, pairs: Iterable[Mapping[str, Any]]) -> None:
    """Write task.jsonl into a run's folder."""
    write_bytes(
        folder / "task.jsonl", "".join(dumps(pair) + "\n" for pair in pairs).encode("ascii")
    )
