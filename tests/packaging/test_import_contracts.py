"""The import contracts hold, and would not if someone broke them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINT = Path(sys.executable).with_name("lint-imports")


def lint(place: Path) -> tuple[int, str]:
    """Exit status and output of import-linter on the packages that stand in `place`."""
    done = subprocess.run(
        [LINT, "--no-cache"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def package_copy(root: Path, tmp_path: Path) -> Path:
    """A copy of the two floors that may be spoilt."""
    for package in ("discovery", "mcp_server"):
        shutil.copytree(
            root / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__", "bundled"),
        )
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def test_they_hold(root: Path) -> None:
    status, output = lint(root)
    assert status == 0, output


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        (
            "discovery/errors.py",
            "from discovery.sites import Node",
            "discovery: the staircase BROKEN",
        ),
        (
            "discovery/tasks/pairs.py",
            "import discovery.backends.base",
            "discovery: the staircase BROKEN",
        ),
        ("mcp_server/errors.py", "import mcp_server.__main__", "mcp_server: the staircase BROKEN"),
        ("discovery/sites.py", "import mcp_server.errors", "The science knows no protocol BROKEN"),
        ("discovery/sites.py", "from mcp import types", "The science knows no protocol BROKEN"),
        (
            "discovery/metrics.py",
            "import transformer_lens.hook_points",
            "transformer_lens only where models are loaded and wrapped BROKEN",
        ),
        (
            "discovery/backends/base.py",
            "def lazily():\n    import nnsight",
            "nnsight only in its backend BROKEN",
        ),
        ("mcp_server/__main__.py", "import sae_lens", "sae_lens only in features BROKEN"),
        ("discovery/brandnew.py", "", "discovery: the staircase BROKEN"),
        ("mcp_server/brandnew.py", "", "mcp_server: the staircase BROKEN"),
    ],
)
def test_a_breach_is_seen(house: Path, module: str, line: str, contract: str) -> None:
    with (house / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    status, output = lint(house)
    assert status == 1, output
    assert contract in " ".join(output.split())
