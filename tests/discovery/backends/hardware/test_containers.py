"""The memory that control groups leave, read from files in the layout of Linux."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery.backends.hardware import containers
from discovery.backends.hardware.memory import read_free_memory
from discovery.cli import installation

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = ("memory.max", "memory.current", "")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(containers, "CGROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(containers, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def write_group(
    folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int = 0
) -> None:
    """Write a group's files; `names` are those of limit and usage, and a prefix in memory.stat."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\n{names[2]}inactive_file {cached}\n{names[2]}active_file 1\n"
    )


def test_the_narrowest_of_the_groups_above_counts(groups: Path) -> None:
    (groups / "own").write_text("0::/job/step\n")
    write_group(groups / "cgroup" / "job" / "step", V2, "max", 500)
    assert containers.read_container_memory() is None
    write_group(groups / "cgroup" / "job", V2, "1000", 700, cached=100)
    assert containers.read_container_memory() == 1000 - 700 + 101
    write_group(groups / "cgroup" / "job" / "step", V2, "600", 590)
    assert containers.read_container_memory() == 11
    write_group(groups / "cgroup" / "job" / "step", V2, "600", 900)
    assert containers.read_container_memory() == 0


def test_the_first_version_and_a_container_that_sees_only_the_top(groups: Path) -> None:
    (groups / "own").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/0123\n")
    write_group(groups / "cgroup" / "memory", V1, "2000", 500)
    write_group(groups / "cgroup" / "cpu,cpuacct", V1, "1", 1)
    assert containers.read_container_memory() == 1501


def test_without_groups_nothing_is_limited(groups: Path) -> None:
    assert containers.read_container_memory() is None
    (groups / "own").write_text("0::/\n")
    assert containers.read_container_memory() is None


def test_it_bounds_what_is_free(groups: Path) -> None:
    unbounded = read_free_memory("cpu")
    (groups / "own").write_text("0::/\n")
    write_group(groups / "cgroup", V2, "3000000", 1000000, cached=0)
    assert read_free_memory("cpu") == 2000001 < unbounded
    check = installation.check_memory()
    assert (check.status, "may take 0.0 GB" in check.observation) == ("warning", True)
