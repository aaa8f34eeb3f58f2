"""Atomic writes and safe names."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import discovery
from discovery.errors import StoreError
from discovery.store.files import (
    check_name,
    read_json,
    remove_leftovers,
    resolve_inside,
    write_bytes,
    write_json,
)


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": float("nan")})
    assert read_json(path) == {"b": None}
    assert path.read_bytes().endswith(b"}\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "says", "cure"),
    [
        (errno.ENOSPC, "disk is full", "Free some space"),
        (errno.EROFS, "read-only", "--runs-dir"),
        (errno.EACCES, "permission is denied", "CIRCUIT_SCOUT_RUNS_DIR"),
        (errno.EIO, os.strerror(errno.EIO), "Check the disk"),
    ],
)
def test_a_failed_write_is_reported_and_the_old_content_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, says: str, cure: str
) -> None:
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, step, refuse)
        with pytest.raises(StoreError, match=says) as caught:
            write_bytes(path, b"new")
    assert cure in caught.value.cure
    assert str(path) in caught.value.cause
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_kill_within_a_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_bytes(path, b"old")
    code = (
        "import os, sys; from pathlib import Path; from discovery.store.files import write_bytes\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "write_bytes(Path(sys.argv[1]), b'new')"
    )
    root = Path(discovery.__file__).parents[1]
    assert (
        subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False).returncode
        == 9
    )
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "../x",
        "/etc/passwd",
        "a\\b",
        "a\0",
        "a\n",
        "-rf",
        "x" * 129,
        "ä",
        "C:x",
    ],
)
def test_a_name_is_the_name_of_a_file_and_of_nothing_else(name: str) -> None:
    with pytest.raises(StoreError, match="cannot be a figure"):
        check_name(name, "a figure")


def test_a_link_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match="leads out"):
        resolve_inside(tmp_path / "run", "link")
    assert (
        resolve_inside(tmp_path / "run", "figures", "x.png")
        == tmp_path / "run" / "figures" / "x.png"
    )
