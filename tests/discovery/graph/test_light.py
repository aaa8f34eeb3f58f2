"""The light half of `discovery` answers before torch is imported: the server's first `tools/list` depends on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import discovery

HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "nnsight",
    "sae_lens",
    "matplotlib",
    "scipy",
    "pandas",
)


@pytest.mark.parametrize(
    "module", ["discovery.errors", "discovery.sites", "discovery.graph", "discovery.store"]
)
def test_it_needs_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    root = Path(discovery.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{module} imports {done.stderr}"
