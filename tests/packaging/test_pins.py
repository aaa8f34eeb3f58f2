"""constraints.txt pins versions that pyproject.toml allows, and this environment has them."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def pins(root: Path) -> dict[str, Version]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def requirements(root: Path) -> list[Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [
        Requirement(text)
        for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    ]


def test_each_requirement_is_pinned_within_its_range(root: Path) -> None:
    pinned = pins(root)
    outside = [
        str(need)
        for need in requirements(root)
        if pinned[canonicalize_name(need.name)] not in need.specifier
    ]
    assert outside == []


def test_pins_suit_any_machine(root: Path) -> None:
    """There is no local version (other indexes have no +cpu torch), no address and no path."""
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [
        line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)
    ] == []
    assert pins(root)["torch"] == Version("2.13.0")


@pytest.mark.parametrize("field", ["dependencies", "dev"])
def test_each_runtime_and_dev_requirement_has_a_pin_installed(field: str, root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = (
        project["dependencies"]
        if field == "dependencies"
        else project["optional-dependencies"]["dev"]
    )
    pinned = pins(root)
    installed = {
        need.name: Version(metadata.version(need.name)) for need in map(Requirement, texts)
    }
    differing = {
        name: str(version)
        for name, version in installed.items()
        if Version(version.public) != pinned[canonicalize_name(name)]
    }
    assert differing == {}, "run `make install`"
