"""The light half of the project loads no heavy library.

The server must list its tools within a second, and light commands must answer at once. Each check
runs in a fresh interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY_LIBRARIES = [
    "torch",
    "transformers",
    "transformer_lens",
    "nnsight",
    "sae_lens",
    "matplotlib",
    "scipy",
    "pandas",
]
LIGHT_MODULES = [
    "discovery",
    "discovery.errors",
    "discovery.progress",
    "discovery.sites",
    "discovery.graph",
    "discovery.store",
    "discovery.tasks",
    "discovery.tasks.builtin",
    "discovery.cli",
    "mcp_server",
    "mcp_server.errors",
    "mcp_server.setup.command",
    "mcp_server.__main__",
]
LIGHT_COMMANDS = ["--version", "runs list -q", "tasks list", "models list -q", "discover --help"]


def find_loaded(statements: str, libraries: list[str], root: Path) -> list[str]:
    """Run statements in a fresh interpreter, and return the libraries that they loaded."""
    report = (
        f"import json, sys\njson.dump([name for name in {libraries!r} if name in sys.modules], "
        "sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{report}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    loaded: list[str] = json.loads(process.stderr)
    return loaded


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_loads_no_heavy_library(module: str, root: Path) -> None:
    assert find_loaded(f"import {module}", HEAVY_LIBRARIES, root) == []


def test_a_name_that_does_not_exist_loads_no_heavy_library(root: Path) -> None:
    statements = "import discovery\nassert not hasattr(discovery, 'no_such_name')\ndir(discovery)"
    assert find_loaded(statements, HEAVY_LIBRARIES, root) == []


@pytest.mark.parametrize("line", LIGHT_COMMANDS)
def test_a_light_command_loads_no_heavy_library(line: str, root: Path) -> None:
    statements = f"from discovery import cli\nassert cli.main({line.split()!r}) == 0"
    assert find_loaded(statements, HEAVY_LIBRARIES, root) == []


def test_the_version_does_not_load_pydantic(root: Path) -> None:
    statements = "from discovery import cli\nassert cli.main(['--version']) == 0"
    assert find_loaded(statements, ["pydantic"], root) == []


def test_the_figures_load_neither_pyplot_nor_torch(root: Path) -> None:
    """pyplot keeps global state, so that threads could not draw at the same time."""
    statements = (
        "import numpy\nfrom discovery.report import draw_layer_head_heatmap\n"
        "draw_layer_head_heatmap(numpy.zeros((2, 2)), title='x')"
    )
    assert find_loaded(statements, ["matplotlib.pyplot", "torch"], root) == []
