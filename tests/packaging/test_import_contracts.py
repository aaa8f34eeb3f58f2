"""The import contracts hold, and import-linter reports an import that breaks one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> tuple[int, str]:
    """Run import-linter on the packages in `folder`, and return its exit status and its output."""
    process = subprocess.run(
        [LINT, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, process.stdout + process.stderr


@pytest.fixture
def package_copy(root: Path, tmp_path: Path) -> Path:
    """A copy of both packages, which a test may change."""
    for package in ("discovery", "mcp_server"):
        shutil.copytree(
            root / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__", "bundled"),
        )
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(root: Path) -> None:
    status, output = lint(root)
    assert status == 0, output


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        (
            "discovery/errors.py",
            "from discovery.sites import Node",
            "discovery: imports point downwards BROKEN",
        ),
        (
            "discovery/tasks/pairs.py",
            "import discovery.backends.base",
            "discovery: imports point downwards BROKEN",
        ),
        (
            "mcp_server/errors.py",
            "import mcp_server.__main__",
            "mcp_server: imports point downwards BROKEN",
        ),
        (
            "discovery/sites.py",
            "import mcp_server.errors",
            "discovery does not import the server or the MCP SDK BROKEN",
        ),
        (
            "discovery/sites.py",
            "from mcp import types",
            "discovery does not import the server or the MCP SDK BROKEN",
        ),
        (
            "mcp_server/session/settings.py",
            "from discovery.cli.arguments import UsageError",
            "Only mcp_server.server uses the command line BROKEN",
        ),
        (
            "discovery/metrics.py",
            "import transformer_lens.hook_points",
            "Only the loading of models imports transformer_lens BROKEN",
        ),
        (
            "discovery/backends/base.py",
            "def lazily():\n    import nnsight",
            "Only the nnsight backends import nnsight BROKEN",
        ),
        (
            "mcp_server/__main__.py",
            "import sae_lens",
            "Only discovery.features imports sae_lens BROKEN",
        ),
        ("discovery/brandnew.py", "", "discovery: imports point downwards BROKEN"),
        ("mcp_server/brandnew.py", "", "mcp_server: imports point downwards BROKEN"),
    ],
)
def test_a_forbidden_import_is_reported(
    package_copy: Path, module: str, line: str, contract: str
) -> None:
    with (package_copy / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    status, output = lint(package_copy)
    assert status == 1, output
    assert contract in " ".join(output.split())


def test_an_exception_without_an_import_is_reported(package_copy: Path) -> None:
    """Otherwise the list of exceptions would keep entries that allow imports nobody needs."""
    settings = package_copy / "pyproject.toml"
    unused = '    "discovery.metrics -> sae_lens",\n    "discovery.features.** -> sae_lens",\n'
    text = settings.read_text(encoding="utf-8")
    settings.write_text(
        text.replace('    "discovery.features.** -> sae_lens",\n', unused), encoding="utf-8"
    )
    status, output = lint(package_copy)
    assert status == 1, output
    assert "No matches for ignored import discovery.metrics -> sae_lens" in " ".join(output.split())
