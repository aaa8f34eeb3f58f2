"""The light half of `discovery` loads no torch, so that the server can list its tools and the command line can answer at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LIGHT = [
    "discovery",
    "discovery.errors",
    "discovery.sites",
    "discovery.graph",
    "discovery.store",
    "discovery.tasks",
]
LIGHT += ["discovery.cli", "mcp_server", "mcp_server.errors", "mcp_server.__main__"]
HEAVY = [
    "torch",
    "transformers",
    "transformer_lens",
    "nnsight",
    "sae_lens",
    "matplotlib",
    "scipy",
    "pandas",
]


def loaded_by(statement: str, root: Path) -> list[str]:
    """The heavy libraries in a fresh interpreter after `statement`."""
    program = f"import sys, json\n{statement}\njson.dump([name for name in {HEAVY!r} if name in sys.modules], sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str, root: Path) -> None:
    assert loaded_by(f"import {module}", root) == []


def test_asking_for_a_name_that_is_not_there_loads_nothing(root: Path) -> None:
    assert (
        loaded_by(
            "import discovery\nassert not hasattr(discovery, 'no_such_name')\ndir(discovery)", root
        )
        == []
    )
