"""Shows that a refactoring changed no number.

    python -m benchmarks.records capture DIR
    python -m benchmarks.records compare DIR DIR

`capture` runs the agent on the four built-in tasks and on the twelve hand-built models, with one
thread and a fixed memory limit, and keeps the run folders as DIR/NAME/RUN_ID (four minutes on one
core). `compare` compares the runs in two such folders bit for bit, prints what differs, and exits
with status 1 if anything does. It compares the circuits, the pairs, the arrays, and what each event
of the journal measured. It ignores what may change between two equal runs: times, memory, ids,
provenance, wording, and the folder from which a model was loaded.

Capture once before the first edit and once after the last one, on the same machine and with the
same versions of the libraries.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.output import print_progress
from discovery import discover, load_model, load_task
from discovery.store.checksums import is_file_event
from discovery.tasks import BUNDLED_TASKS

MEMORY_LIMIT = 3 * 2**30  # bytes; a free choice would follow the memory of the machine
PAIRS = 160  # of each hand-built model
MODELS_FOLDER = "models"
VOLATILE_KEYS = frozenset(
    {"run_id", "provenance", "seconds", "seconds_left", "rate", "peak_memory_bytes", "created"}
)
WORDING_KEYS = frozenset({"reasons", "label", "split"})
MAX_SHOWN = 5  # differences of one run


def capture(folder: Path) -> None:
    """Run the agent on every case, and keep the run folders.

    The hand-built models are saved in the folder too, so that their runs can be resumed.

    Raises:
        FileExistsError: if the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Name a folder that does not exist yet.")
    torch.set_num_threads(1)
    bundled = load_model("bundled")
    for name in BUNDLED_TASKS:
        task = load_task(name, bundled)
        run = discover(bundled, task, memory=MEMORY_LIMIT, runs_dir=folder / f"bundled-{name}")
        print_progress(f"bundled-{name}", run.circuit.verdict)
    for name in sorted(KNOWN_CIRCUITS):
        directory = folder / MODELS_FOLDER / name
        model, task = build_known_circuit(name).load(directory, PAIRS)
        run = discover(model, task, memory=MEMORY_LIMIT, runs_dir=folder / name)
        print_progress(name, run.circuit.verdict)


def compare(first: Path, second: Path) -> dict[str, list[str]]:
    """Return the differences of each run in two folders of runs.

    Raises:
        FileNotFoundError: if a folder holds no runs.
    """
    names_by_folder = [find_run_names(folder) for folder in (first, second)]
    differences: dict[str, list[str]] = {}
    for name in sorted(names_by_folder[0] | names_by_folder[1]):
        missing = [
            str(folder)
            for folder, names in zip((first, second), names_by_folder, strict=True)
            if name not in names
        ]
        if missing:
            differences[name] = [f"the run is missing in {folder}" for folder in missing]
        else:
            runs = (find_run(first / name), find_run(second / name))
            differences[name] = list(compare_runs(*runs))
    return differences


def find_run_names(folder: Path) -> set[str]:
    """Return the names of the cases in a folder.

    Raises:
        FileNotFoundError: if there are none.
    """
    names = set()
    if folder.is_dir():
        names = {path.name for path in folder.iterdir() if path.is_dir()} - {MODELS_FOLDER}
    if not names:
        raise FileNotFoundError(f"{folder} holds no runs. Make them with the command capture.")
    return names


def find_run(folder: Path) -> Path:
    """Return the one run folder in a case's folder.

    Raises:
        ValueError: if there is none, or more than one.
    """
    runs = [path for path in folder.iterdir() if path.is_dir()]
    if len(runs) != 1:
        raise ValueError(f"{folder} holds {len(runs)} run folders. It should hold one.")
    return runs[0]


def compare_runs(first: Path, second: Path) -> Iterator[str]:
    """Yield what differs between two run folders."""
    readers: Mapping[str, Callable[[Path], Any]] = {
        "circuit.json": read_circuit,
        "task.jsonl": read_pairs,
        "events.jsonl": read_measurements,
    }
    for file, read in readers.items():
        yield from find_differences(read(first / file), read(second / file), file)
    yield from compare_arrays(first / "arrays", second / "arrays")


def read_circuit(path: Path) -> Any:
    """Read a circuit.json without what may change between two equal runs."""
    return drop_volatile(json.loads(path.read_text())) if path.exists() else None


def read_pairs(path: Path) -> list[Any]:
    """Read the pairs of a run."""
    return _read_lines(path)


def read_measurements(path: Path) -> list[Any]:
    """Read the stage, the kind and the measured values of each event of a journal.

    Events that only hold the checksum of a file are left out; the arrays are compared themselves.
    """
    return [
        {
            "stage": event["stage"],
            "kind": event["kind"],
            "measured": drop_volatile(event.get("measured")),
        }
        for event in _read_lines(path)
        if not is_file_event(event)
    ]


def _read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def drop_volatile(value: Any, parent: str = "") -> Any:
    """Return a JSON value without times, memory, ids, provenance, wording and folders of models.

    Args:
        value: the JSON value.
        parent: the key under which it stands.
    """
    if isinstance(value, list):
        return [drop_volatile(item, parent) for item in value]
    if not isinstance(value, dict):
        return value
    dropped = VOLATILE_KEYS | WORDING_KEYS
    if parent == "reference":
        dropped |= {"source"}  # a sentence here, but a node at an edge
    stable = {key: drop_volatile(item, key) for key, item in value.items() if key not in dropped}
    if parent == "model" and "name" in stable:
        stable["name"] = Path(
            stable["name"]
        ).name  # a model that was loaded from a folder has its path
    return stable


def find_differences(first: Any, second: Any, path: str) -> Iterator[str]:
    """Yield the path and the two values of every difference between two JSON values."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            if key not in first or key not in second:
                yield f"{path}.{key} is only in the {'first' if key in first else 'second'} run"
            else:
                yield from find_differences(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            yield f"{path} has {len(first)} and {len(second)} items"
        for index, (item, other) in enumerate(zip(first, second, strict=False)):
            yield from find_differences(item, other, f"{path}[{index}]")
    elif repr(first) != repr(second):  # the texts of two floats differ if and only if a bit does
        yield f"{path} is {first!r} and {second!r}"


def compare_arrays(first: Path, second: Path) -> Iterator[str]:
    """Yield what differs between two folders of arrays."""
    files = {folder: {path.name for path in folder.glob("*")} for folder in (first, second)}
    for name in sorted(files[first] ^ files[second]):
        yield f"arrays/{name} is only in the {'first' if name in files[first] else 'second'} run"
    for name in sorted(files[first] & files[second]):
        arrays = load_file(first / name)
        other_arrays = load_file(second / name)
        for key in sorted(arrays.keys() | other_arrays.keys()):
            if not _same_bits(arrays.get(key), other_arrays.get(key)):
                yield f"arrays/{name}: {key} differs"


def _same_bits(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return False
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    # Bytes are compared, because NaN is not equal to itself.
    bits, other_bits = (array.reshape(-1).view(torch.uint8) for array in (first, second))
    return torch.equal(bits, other_bits)


def print_comparison(differences: Mapping[str, list[str]]) -> bool:
    """Print what differs, and return whether all runs are the same."""
    for name, lines in differences.items():
        outcome = f"differing values: {len(lines)}" if lines else "the same"
        sys.stdout.write(f"{name}: {outcome}\n")
        for line in lines[:MAX_SHOWN]:
            sys.stdout.write(f"    {line}\n")
        if len(lines) > MAX_SHOWN:
            sys.stdout.write(f"    and {len(lines) - MAX_SHOWN} more\n")
    n_different = sum(bool(lines) for lines in differences.values())
    sys.stdout.write(f"{n_different} of {len(differences)} runs differ\n")
    return n_different == 0


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    capture_parser = commands.add_parser("capture", help="run every case and keep the run folders")
    capture_parser.add_argument("folder", type=Path)
    compare_parser = commands.add_parser("compare", help="compare two captured folders")
    compare_parser.add_argument("first", type=Path)
    compare_parser.add_argument("second", type=Path)
    settings = parser.parse_args(arguments)
    try:
        if settings.command == "capture":
            capture(settings.folder)
            return 0
        return 0 if print_comparison(compare(settings.first, settings.second)) else 1
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
