"""What a container or a batch system leaves this process of the machine's memory, by Linux's control groups (version 1 and 2).

The machine's own count of free memory knows nothing of that limit, and whoever goes beyond it is killed without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMORY_FILES = (  # the limit, what is used of it, and where it says how much of that is only the files' cache
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def read_container_memory() -> int | None:
    """Bytes that may still be taken; None where nothing limits them."""
    return min(
        (left for folder in _cgroup_folders() if (left := _memory_left(folder)) is not None),
        default=None,
    )


def _cgroup_folders() -> Iterator[Path]:
    """The control groups that this process is in, each with those above it. In a container only the uppermost may be seen."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return  # no Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = CGROUP_ROOT / "memory" if controllers else CGROUP_ROOT
        folder = base / path.lstrip("/")
        yield from (one for one in (folder, *folder.parents) if one == base or base in one.parents)


def _memory_left(folder: Path) -> int | None:
    for most, used, cached in MEMORY_FILES:
        try:
            limit, now = (int((folder / name).read_text()) for name in (most, used))
            counts = dict(
                line.split() for line in (folder / "memory.stat").read_text().splitlines()
            )
        except (OSError, ValueError):  # other files, or no limit: "max"
            continue
        return max(0, limit - now + sum(int(counts.get(name, 0)) for name in cached))
    return None
