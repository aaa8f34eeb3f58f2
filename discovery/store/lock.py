"""One writer to a run folder: an operating-system lock, which a kill -9 frees, and a note of who holds it.

The lock is on `.lock`; `.lock-owner.json` beside it says which process to look for. The note is only ever
believed while the lock is held.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from discovery.errors import StoreError
from discovery.store.files import explain_disk_errors, read_json, write_json
from discovery.store.journal import utc_timestamp

_LOCK_TIMEOUT_SECONDS = 0.5  # seconds: `is_being_written` takes the lock for a moment
_PROBE_TIMEOUT_SECONDS = (
    0.1  # seconds: two that look at the same time must not take each other for a writer
)


class RunLock:
    """The exclusive right to write to `folder`, from construction until `release`.

    Raises:
        StoreError: where another opener has it, naming its process.
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
    """Whether some process is writing to `folder` now."""
    if not (folder / ".lock").exists():
        return False
    lock = _lock(folder)
    try:
        lock.acquire(timeout=_PROBE_TIMEOUT_SECONDS, poll_interval=_PROBE_TIMEOUT_SECONDS / 20)
    except Timeout:
        return True
    except OSError:  # a folder that we may not write to
        return False
    lock.release()
    return False


def _lock(folder: Path) -> FileLock:
    # Not per thread: the server opens a run in one thread and may close it in another.
    return FileLock(folder / ".lock", thread_local=False)


def _owner_path(folder: Path) -> Path:
    return folder / ".lock-owner.json"


def _locked_error(folder: Path) -> StoreError:
    try:
        note = read_json(_owner_path(folder))
        who = f"process {note['pid']}, since {note['since']}" + (
            " (this very process)" if note["pid"] == os.getpid() else ""
        )
    except (StoreError, KeyError, TypeError):
        who = "another process"
    return StoreError(
        f"The run {folder.name} is being written by {who}.",
        "Wait until it is done, or stop that process and resume; the lock frees itself when the process ends.",
    )
