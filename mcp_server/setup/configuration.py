"""What setup changes in a client's configuration, and how it is written.

A change is planned from the file as it is, and only the members of our own entry are touched. The
result is read again and compared with what was intended before it replaces the file, and the old
file is kept as a backup.
"""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mcp_server.errors import SetupError
from mcp_server.setup import json_text, toml_text
from mcp_server.setup.clients import Client
from mcp_server.setup.json_text import MalformedTextError
from mcp_server.setup.machine import Machine

SERVER_NAME = "circuit-scout"
Outcome = Literal["added", "updated", "unchanged", "removed", "absent"]
_REMOTE_KEYS = ("url", "httpUrl", "serverUrl")
_FORMATS: Mapping[str, ModuleType] = {"json": json_text, "toml": toml_text}


@dataclass(frozen=True, kw_only=True)
class ConfigChange:
    """A change of one configuration.

    Attributes:
        path: the file, as the client names it.
        before: its content, or None if there is no file.
        after: its content after the change.
        outcome: what the change does.
    """

    path: Path
    before: bytes | None
    after: bytes
    outcome: Outcome


def plan_addition(
    client: Client, path: Path, script: Path, words: Sequence[str] | None
) -> ConfigChange:
    """Plan to add our server to a configuration, or to bring its entry up to date.

    The entry keeps every field that we do not write, and fields such as time limits that somebody
    changed.

    Args:
        client: the client.
        path: its configuration.
        script: the absolute path of our script.
        words: the words after `serve`. None keeps those of an existing entry.

    Raises:
        SetupError: if the file cannot be read or has another kind of entry under our name.
    """
    before, values = _read(client, path)
    entry = _find_entry(client, path, values)
    if entry is not None and any(key in entry for key in _REMOTE_KEYS):
        raise SetupError(
            f"{path} already has a server {SERVER_NAME!r} at an address.",
            "Remove that entry first: circuit-scout setup --remove.",
        )
    fields: dict[str, object] = {"command": str(script), "args": ["serve", *(words or ())]}
    member = (client.servers_key, SERVER_NAME)
    if entry is None:
        fields |= dict(client.defaults)
        return _edit(client, path, before, [(member, fields)], "added")
    old_words = entry.get("args")
    if words is None and isinstance(old_words, list) and old_words[:1] == ["serve"]:
        fields["args"] = old_words
    edits: list[tuple[tuple[str, ...], object]] = [
        ((*member, key), value)
        for key, value in {**dict(client.defaults), **fields}.items()
        if key not in entry or (key in fields and entry[key] != value)
    ]
    return _edit(client, path, before, edits, "updated")


def plan_removal(client: Client, path: Path) -> ConfigChange:
    """Plan to remove our server from a configuration.

    Raises:
        SetupError: if the file cannot be read.
    """
    before, values = _read(client, path)
    if before is None or _find_entry(client, path, values) is None:
        return ConfigChange(path=path, before=before, after=before or b"", outcome="absent")
    member = (client.servers_key, SERVER_NAME)
    after = _FORMATS[client.format].remove_member(before, member)
    del values[client.servers_key][SERVER_NAME]
    written = _FORMATS[client.format].read_values(after)
    # In TOML, a table of tables vanishes with the last of them.
    _check(path, {client.servers_key: {}, **written}, values)
    return ConfigChange(path=path, before=before, after=after, outcome="removed")


def write_change(change: ConfigChange, machine: Machine) -> Path | None:
    """Write a change.

    Returns:
        The path of the backup, or None if there was no file or nothing changed.

    Raises:
        SetupError: if the file was changed meanwhile, or cannot be written.
    """
    if change.outcome in ("unchanged", "absent"):
        return None
    target = change.path.resolve()  # a link to a file in a folder of dotfiles stays a link
    try:
        if _read_bytes(target) != change.before:
            raise SetupError(f"{change.path} was changed meanwhile.", "Run setup again.")
        backup = None if change.before is None else back_up(target, machine)
        _replace(target, change.after)
    except OSError as fault:
        raise _explain(fault, change.path, "written") from None
    return backup


def back_up(path: Path, machine: Machine) -> Path:
    """Copy a file or a folder, with its permissions, into our backups, and return the copy."""
    now = datetime.now(UTC)
    folder = machine.data / "backups" / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True, mode=0o700)
    if path.is_dir():
        return Path(shutil.copytree(path, folder / path.name, symlinks=True))
    return Path(shutil.copy2(path, folder / path.name))


def _read(client: Client, path: Path) -> tuple[bytes | None, dict[str, Any]]:
    """Return the content of a configuration, and its values."""
    try:
        data = _read_bytes(path)
    except OSError as fault:
        raise _explain(fault, path, "read") from None
    try:
        values = _FORMATS[client.format].read_values(data or b"")
    except MalformedTextError as fault:
        raise _malformed(client, path, fault) from None
    if not isinstance(values, dict):
        raise SetupError(
            f"{path} holds no object with settings, so that nothing was written.",
            f"Move the file away, or write {{}} into it; {client.title} cannot read it either.",
        )
    return data, values


def _find_entry(client: Client, path: Path, values: Mapping[str, Any]) -> dict[str, Any] | None:
    servers = values.get(client.servers_key, {})
    entry = servers.get(SERVER_NAME) if isinstance(servers, dict) else servers
    if entry is None or isinstance(entry, dict):
        return entry
    raise SetupError(
        f"{client.servers_key!r} in {path} is not made of named entries.",
        f"Write it as {client.title}'s documentation says, or remove it, and run setup again.",
    )


def _edit(
    client: Client,
    path: Path,
    before: bytes | None,
    edits: Sequence[tuple[tuple[str, ...], object]],
    outcome: Outcome,
) -> ConfigChange:
    text = _FORMATS[client.format]
    after = before or b""
    expected = copy.deepcopy(text.read_values(after))
    try:
        for member, value in edits:
            after = text.set_member(after, member, value)
            parent = expected
            for key in member[:-1]:
                parent = parent.setdefault(key, {})
            parent[member[-1]] = value
    except MalformedTextError as fault:
        raise _malformed(client, path, fault) from None
    _check(path, text.read_values(after), expected)
    if not edits:
        outcome = "unchanged"
    return ConfigChange(path=path, before=before, after=after, outcome=outcome)


def _check(path: Path, written: object, expected: object) -> None:
    """Check that an edit did what it should. If not, it is a bug, and nothing is written."""
    if written != expected:
        raise RuntimeError(f"the edit of {path} would change more than our entry")


def _malformed(client: Client, path: Path, fault: MalformedTextError) -> SetupError:
    return SetupError(
        f"{path} cannot be read, line {fault.line}: {fault.reason}. Nothing was written.",
        f"Mend the file ({client.title} cannot read it either), and run setup again.",
    )


def _explain(fault: OSError, path: Path, verb: str) -> SetupError:
    reason = fault.strerror or type(fault).__name__
    return SetupError(
        f"{path} cannot be {verb}: {reason}.",
        "Make it readable and writable for you, or leave this client out with --client.",
    )


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, content: bytes) -> None:
    """Replace a file in one step. It keeps its permissions, and is never readable for others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
