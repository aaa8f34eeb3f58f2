"""The lock of a run folder, between threads and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

import discovery
from discovery.errors import StoreError
from discovery.store.lock import RunLock, is_being_written

ROOT = Path(discovery.__file__).parents[1]


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `folder` until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from discovery.store.lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_a_second_writer_learns_who_holds_the_lock_and_a_kill_frees_it(tmp_path: Path) -> None:
    assert not is_being_written(tmp_path)
    with another_process(tmp_path) as child:
        assert is_being_written(tmp_path)
        with pytest.raises(StoreError, match=f"process {child.pid}, since 2") as caught:
            RunLock(tmp_path)
        assert "lock is freed" in caught.value.cure
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not is_being_written(tmp_path)
        lock = RunLock(tmp_path)
        assert is_being_written(tmp_path)
        lock.release()
    assert not is_being_written(tmp_path)


def test_not_even_the_same_process_may_write_twice(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(StoreError, match=rf"process {os.getpid()}, since .*this process"):
        RunLock(tmp_path)
    lock.release()
    lock.release()
    RunLock(tmp_path).release()


def test_another_thread_may_release_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert not is_being_written(tmp_path)
    RunLock(tmp_path).release()


def test_a_probe_of_the_lock_does_not_refuse_a_writer(tmp_path: Path) -> None:
    look = FileLock(tmp_path / ".lock", thread_local=False)  # as `is_being_written` takes it
    look.acquire()
    timer = threading.Timer(0.1, look.release)
    timer.start()
    RunLock(tmp_path).release()
    timer.join()


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="part of the path is a file"):
        RunLock(tmp_path / "file")


def test_two_probes_at_once_do_not_take_each_other_for_a_writer(tmp_path: Path) -> None:
    RunLock(tmp_path).release()
    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(lambda _: is_being_written(tmp_path), range(400)))
