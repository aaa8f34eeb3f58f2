"""Atomic writes, and errors of the disk as cause and cure.

A file is written under a hidden name in the same folder, synced, and then renamed in one step. A
kill at any moment therefore leaves either the old content or the new, never a part.
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
        "it does not exist",
        "See `circuit-scout runs list`. If the run was deleted while it ran, start it again.",
    ),
}


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about a path into a StoreError with cause and cure."""
    try:
        yield
    except OSError as fault:
        is_missing = isinstance(fault, FileNotFoundError)
        code = fault.errno or (errno.ENOENT if is_missing else 0)  # safetensors sets no errno
        unknown = (fault.strerror or str(fault), f"Check the disk, {_RUNS_DIR_HINT}.")
        reason, cure = _CURES.get(code, unknown)
        raise StoreError(f"{path} cannot be read or written: {reason}.", cure) from fault


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of a file, durably and in one step. A missing folder is created.

    Raises:
        StoreError: if the file cannot be written.
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
    """Replace the content of a file by a value as strict JSON, in one step.

    Raises:
        StoreError: if the file cannot be written.
    """
    write_bytes(path, (dumps(value, indent=2) + "\n").encode("ascii"))


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        StoreError: if the file is missing or cannot be read.
    """
    with explain_disk_errors(path):
        return path.read_bytes()


def read_json(path: Path) -> Any:
    """Return the value of a file of strict JSON.

    Raises:
        StoreError: if the file is missing or is not strict JSON.
    """
    return loads(read_bytes(path), str(path))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, if the operating system can (POSIX)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden files of killed writes in a folder and in its direct subfolders."""
    for pattern in (".*.tmp", "*/.*.tmp"):
        for leftover in folder.glob(pattern):
            with suppress(OSError):
                leftover.unlink()


def check_name(name: str, what: str) -> str:
    """Return a name if it is a plain file name.

    Args:
        name: the name.
        what: what it should name, for the message.

    Raises:
        StoreError: if it is a path, a hidden file, empty or too long.
    """
    if not _FILE_NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot be {what}.",
            "Use up to 128 letters, digits, dots, dashes and underscores, not starting with a dot.",
        )
    return name


def resolve_inside(folder: Path, *parts: str) -> Path:
    """Return a path inside a folder.

    Raises:
        StoreError: if a symbolic link leads out of the folder.
    """
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{path} leads out of its run folder.", "Remove the symbolic link.")
    return path
