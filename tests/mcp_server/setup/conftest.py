"""A machine of its own for each test, so that no configuration of the user is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_server.setup.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    project = tmp_path / "project"
    home.mkdir()
    project.mkdir()
    return Machine(
        platform="linux",
        home=home,
        environment={"PATH": str(tmp_path / "bin")},
        project=project,
        data=tmp_path / "data",
    )
