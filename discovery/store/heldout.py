"""The ledger of looks: which circuits have been judged by which held-out pairs.

Held-out pairs judge honestly once. Every further circuit that is tried on them is a further draw from the
urn, so the record says how many there were (Dwork et al. 2015 on the reusable holdout). Kept per runs
directory, in `heldout.json`.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from discovery.errors import StoreError
from discovery.store.directory import default_runs_dir
from discovery.store.files import explain_disk_errors, read_json, write_json

_LOCK_TIMEOUT_SECONDS = 30.0  # seconds; a look takes milliseconds


def record_heldout_look(
    runs_dir: Path | str | None, pairs_fingerprint: str, circuit_key: str
) -> int:
    """Record that a circuit looks at held-out pairs, and say the how-manieth it is.

    The same circuit again gets the number of its first look: `runs verify`, replay and resume do not
    count, and give the record that they gave before.

    Args:
        runs_dir: where; None is the default.
        pairs_fingerprint: of the held-out pairs.
        circuit_key: of the circuit: the same for the same nodes.

    Returns:
        how many distinct circuits had looked at these pairs when this one first did, itself included.

    Raises:
        StoreError: where the ledger is damaged or cannot be written.
    """
    root = default_runs_dir() if runs_dir is None else Path(runs_dir).expanduser()
    path = root / "heldout.json"
    with explain_disk_errors(path):
        root.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(root / ".heldout.lock", timeout=_LOCK_TIMEOUT_SECONDS):
                return _count_look(path, pairs_fingerprint, circuit_key)
        except Timeout:
            raise StoreError(
                f"{path} has been locked for {_LOCK_TIMEOUT_SECONDS:.0f} seconds.",
                "End the process that hangs with it, and try again.",
            ) from None


def _count_look(path: Path, pairs_fingerprint: str, circuit_key: str) -> int:
    ledger = _read(path) if path.exists() else {}
    looks = ledger.setdefault(pairs_fingerprint, [])
    if circuit_key not in looks:
        looks.append(circuit_key)
        write_json(path, ledger)
    return looks.index(circuit_key) + 1


def _read(path: Path) -> dict[str, list[str]]:
    ledger = read_json(path)
    if not isinstance(ledger, dict) or not all(
        isinstance(looks, list) for looks in ledger.values()
    ):
        raise StoreError(
            f"{path} is damaged: it is not a ledger of looks.",
            "Restore the file; without it nobody knows how fresh the pairs are.",
        )
    return ledger
