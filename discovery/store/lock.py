"""The lock of a run folder, so that only one process writes to it.

The operating system frees the lock when its process ends, however it ends. The lock is on the file
`.lock`; `.lock-owner.json` beside it says which process holds it, and means nothing if nobody does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from discovery.errors import StoreError
from discovery.store.files import explain_disk_errors, read_json, write_json
from discovery.store.journal import utc_timestamp

# `is_being_written` holds the lock for a moment, so a writer waits a little for it. Two processes
# that call it at the same time must not take each other for a writer, so they wait a little too.
_LOCK_TIMEOUT_SECONDS = 0.5
_PROBE_TIMEOUT_SECONDS = 0.1


class RunLock:
    """The exclusive right to write to a folder, from construction until `release`.

    Raises:
        StoreError: if another process, or this one, already has it; the message names the process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = _lock(folder)
        with explain_disk_errors(folder):
            try:
                self._lock.acquire(timeout=_LOCK_TIMEOUT_SECONDS)
            except Timeout:
                raise _locked_error(folder) from None
        try:
            write_json(_owner_path(folder), {"pid": os.getpid(), "since": utc_timestamp()})
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):
                _owner_path(self.folder).unlink(missing_ok=True)
            self._lock.release()


def is_being_written(folder: Path) -> bool:
    """Return whether some process is writing to a folder now."""
    if not (folder / ".lock").exists():
        return False
    lock = _lock(folder)
    try:
        lock.acquire(timeout=_PROBE_TIMEOUT_SECONDS, poll_interval=_PROBE_TIMEOUT_SECONDS / 20)
    except Timeout:
        return True
    except OSError:  # this user may not write to the folder
        return False
    lock.release()
    return False


def _lock(folder: Path) -> FileLock:
    # The server may open a run in one thread and close it in another, so no thread owns the lock.
    return FileLock(folder / ".lock", thread_local=False)


def _owner_path(folder: Path) -> Path:
    return folder / ".lock-owner.json"


def _locked_error(folder: Path) -> StoreError:
    try:
        note = read_json(_owner_path(folder))
        owner = f"process {note['pid']}, since {note['since']}"
        if note["pid"] == os.getpid():
            owner += " (this process)"
    except (StoreError, KeyError, TypeError):
        owner = "another process"
    return StoreError(
        f"The run {folder.name} is being written by {owner}.",
        "Wait until it is done, or stop that process and resume the run. "
        "The lock is freed when the process ends.",
    )
