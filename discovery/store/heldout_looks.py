"""Counts the circuits that were evaluated on the same held-out pairs.

Held-out pairs give an honest verdict once. Each further circuit that is tried on them is a
further chance to pass, so the record says how many there were (see Dwork et al. 2015, "The
reusable holdout"). The counts are kept in `heldout.json` in the runs directory: the pairs' key ->
the circuits' keys.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from discovery.errors import StoreError
from discovery.store.directory import resolve_runs_dir
from discovery.store.files import explain_disk_errors, read_json, write_json

_LOCK_TIMEOUT_SECONDS = 30.0  # recording a look takes milliseconds


def record_heldout_look(
    runs_dir: Path | str | None, pairs_fingerprint: str, circuit_key: str
) -> int:
    """Record that a circuit uses held-out pairs; return how many circuits have used them so far.

    The same circuit again gets the number of its first look. A run that is verified, repeated or
    resumed therefore does not count again.

    Args:
        runs_dir: the runs directory; None means the default one.
        pairs_fingerprint: a key of the held-out pairs.
        circuit_key: a key of the circuit, the same for the same nodes.

    Returns:
        How many different circuits had used these pairs when this one first did, itself included.

    Raises:
        StoreError: if `heldout.json` is damaged or cannot be written.
    """
    root = resolve_runs_dir(runs_dir)
    path = root / "heldout.json"
    with explain_disk_errors(path):
        root.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(root / ".heldout.lock", timeout=_LOCK_TIMEOUT_SECONDS):
                return _count_look(path, pairs_fingerprint, circuit_key)
        except Timeout:
            raise StoreError(
                f"{path} has been locked for {_LOCK_TIMEOUT_SECONDS:.0f} seconds.",
                "End the process that holds the lock, and try again.",
            ) from None


def _count_look(path: Path, pairs_fingerprint: str, circuit_key: str) -> int:
    looks_by_pairs = _read_looks(path) if path.exists() else {}
    looks = looks_by_pairs.setdefault(pairs_fingerprint, [])
    if circuit_key not in looks:
        looks.append(circuit_key)
        write_json(path, looks_by_pairs)
    return looks.index(circuit_key) + 1


def _read_looks(path: Path) -> dict[str, list[str]]:
    looks_by_pairs = read_json(path)
    if not isinstance(looks_by_pairs, dict) or not all(
        isinstance(looks, list) for looks in looks_by_pairs.values()
    ):
        raise StoreError(
            f"{path} is damaged: it is not a list of circuits for each set of pairs.",
            "Restore the file; without it nobody knows how often the pairs were used.",
        )
    return looks_by_pairs
