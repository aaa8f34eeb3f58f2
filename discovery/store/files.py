"""Files that are there whole or not at all, and faults of the disk told as cause and cure.

A write goes to a hidden file beside its place, is synced, and then takes the name in one step (POSIX
rename), so a kill at any moment leaves the old content or the new, never a piece.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from discovery.errors import StoreError
from discovery.graph.strict_json import dumps, loads

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RUNS_DIR_HINT = "or keep runs elsewhere: --runs-dir, or CIRCUIT_SCOUT_RUNS_DIR"
_CURES = {
    errno.ENOSPC: ("the disk is full", f"Free some space, {_RUNS_DIR_HINT}."),
    errno.EDQUOT: ("the disk quota is used up", f"Free some space, {_RUNS_DIR_HINT}."),
    errno.EFBIG: (
        "the file is larger than allowed here",
        f"Raise the limit on file sizes, {_RUNS_DIR_HINT}.",
    ),
    errno.EACCES: (
        "permission is denied",
        f"Give this user the right to write there, {_RUNS_DIR_HINT}.",
    ),
    errno.EPERM: (
        "permission is denied",
        f"Give this user the right to write there, {_RUNS_DIR_HINT}.",
    ),
    errno.EROFS: ("the file system is read-only", f"Mount it for writing, {_RUNS_DIR_HINT}."),
    errno.EEXIST: (
        "a part of the path is a file",
        "Name a directory with --runs-dir, or CIRCUIT_SCOUT_RUNS_DIR.",
    ),
    errno.ENOTDIR: (
        "a part of the path is a file",
        "Name a directory with --runs-dir, or CIRCUIT_SCOUT_RUNS_DIR.",
    ),
    errno.ENOENT: (
        "it is not there",
        "See `circuit-scout runs list`; if the run was deleted while it was at work, start it again.",
    ),
}


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's faults at `path` into a StoreError with cause and cure."""
    try:
        yield
    except OSError as fault:
        code = fault.errno or (
            errno.ENOENT if isinstance(fault, FileNotFoundError) else 0
        )  # safetensors gives no number
        reason, cure = _CURES.get(
            code, (fault.strerror or str(fault), f"Look at the disk, {_RUNS_DIR_HINT}.")
        )
        raise StoreError(f"{path} cannot be read or written: {reason}.", cure) from fault


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, durably and in one step; its folder is made if need be.

    Raises:
        StoreError: where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Replace `path` by `value` as strict JSON."""
    write_bytes(path, (dumps(value, indent=2) + "\n").encode("ascii"))


def read_bytes(path: Path) -> bytes:
    """The content of `path`.

    Raises:
        StoreError: where it is missing or cannot be read.
    """
    with explain_disk_errors(path):
        return path.read_bytes()


def read_json(path: Path) -> Any:
    """The strict JSON in `path`.

    Raises:
        StoreError: where it is missing, or is not JSON.
    """
    return loads(read_bytes(path), str(path))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what writes that were killed left behind in `folder` and one level below."""
    for pattern in (".*.tmp", "*/.*.tmp"):
        for leftover in folder.glob(pattern):
            with suppress(OSError):
                leftover.unlink()


def check_name(name: str, what: str) -> str:
    """`name`, if it can be the name of a file and of nothing else.

    Raises:
        StoreError: for a path, a hidden file, an empty or an overlong name.
    """
    if not _FILE_NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot be {what}.",
            "Use up to 128 letters, digits, dots, dashes and underscores, not starting with a dot.",
        )
    return name


def resolve_inside(folder: Path, *parts: str) -> Path:
    """The path of `parts` in `folder`, which no symbolic link may lead out of.

    Raises:
        StoreError: where it leads elsewhere.
    """
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{path} leads out of its run folder.", "Remove the symbolic link.")
    return path
