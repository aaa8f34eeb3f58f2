"""The skills where clients look for them: one folder a skill, copied from this installation."""

from __future__ import annotations

import filecmp
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mcp_server.errors import SetupError
from mcp_server.resources.skills import find_skills_dir, list_skills
from mcp_server.setup.configuration import back_up
from mcp_server.setup.machine import Machine


@dataclass(frozen=True, kw_only=True)
class SkillChange:
    """A change of one skill in a client's folder.

    Attributes:
        path: the folder of the skill.
        outcome: what the change does.
    """

    path: Path
    outcome: Literal["added", "updated", "unchanged", "removed", "absent"]


def plan_skills(folder: Path, *, remove: bool) -> list[SkillChange]:
    """Plan to install all skills in a client's folder, or to remove them from it."""
    changes = []
    for name in list_skills():
        path = folder / name
        if remove:
            changes.append(SkillChange(path=path, outcome="removed" if path.exists() else "absent"))
        elif not path.exists():
            changes.append(SkillChange(path=path, outcome="added"))
        elif _is_same(find_skills_dir() / name, path):
            changes.append(SkillChange(path=path, outcome="unchanged"))
        else:
            changes.append(SkillChange(path=path, outcome="updated"))
    return changes


def write_skill(change: SkillChange, machine: Machine) -> Path | None:
    """Write a change.

    Returns:
        The backup of the old folder, if that was not exactly ours; else None.

    Raises:
        SetupError: if the folder cannot be written.
    """
    path = change.path
    source = find_skills_dir() / path.name
    backup = None
    try:
        if change.outcome in ("updated", "removed"):
            if not _is_same(source, path):
                backup = back_up(path, machine)
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path)
        if change.outcome in ("added", "updated"):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, path)
    except OSError as fault:
        reason = fault.strerror or type(fault).__name__
        raise SetupError(
            f"The skill {path} cannot be written: {reason}.",
            "Make the folder writable for you, or leave out --skills.",
        ) from None
    return backup


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same files with the same content."""
    if not other.is_dir():
        return False
    names = [_list_files(folder) for folder in (one, other)]
    if names[0] != names[1]:
        return False
    _, different, unreadable = filecmp.cmpfiles(one, other, names[0], shallow=False)
    return not different and not unreadable


def _list_files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
