"""How much memory a container or a batch system leaves to this process.

Linux limits the memory of a process by control groups (cgroups, version 1 and 2). The machine's
own count of free memory does not include such a limit, and the system kills a process that exceeds
it without a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryFiles:
    """The names under which one version of cgroups writes what a group's memory is.

    Attributes:
        limit: the file with the limit in bytes.
        usage: the file with the bytes in use, the cache of files included.
        cached: the entries of memory.stat that count this cache. The system drops it when memory
            is needed, so it counts as free.
    """

    limit: str
    usage: str
    cached: tuple[str, ...]


MEMORY_FILES = (
    MemoryFiles("memory.max", "memory.current", ("inactive_file", "active_file")),
    MemoryFiles(
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def read_container_memory() -> int | None:
    """Return how many more bytes this process may take, or None if nothing limits it."""
    free = [_free_memory(folder) for folder in _cgroup_folders()]
    return min((count for count in free if count is not None), default=None)


def _cgroup_folders() -> Iterator[Path]:
    """Yield the folders of this process's control groups and of all groups above them.

    Inside a container only the topmost folder may exist.
    """
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return  # the system is not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUP_ROOT / "memory" if controllers else CGROUP_ROOT
        folder = root / path.lstrip("/")
        for candidate in (folder, *folder.parents):
            if candidate == root or root in candidate.parents:
                yield candidate


def _free_memory(folder: Path) -> int | None:
    """Return the bytes that a control group leaves, or None if it sets no limit."""
    for files in MEMORY_FILES:
        try:
            limit = int((folder / files.limit).read_text())
            usage = int((folder / files.usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            counts = dict(line.split() for line in lines)
        except (OSError, ValueError):  # the other version's files, or the limit is the word "max"
            continue
        return max(0, limit - usage + sum(int(counts.get(name, 0)) for name in files.cached))
    return None
