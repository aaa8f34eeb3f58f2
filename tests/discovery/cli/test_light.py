"""What must answer at once loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
PROGRAM = """
import sys, json
from discovery import cli
assert cli.main(sys.argv[2:]) == 0
json.dump([name for name in json.loads(sys.argv[1]) if name in sys.modules], sys.stderr)
"""


@pytest.mark.parametrize(
    "line", ["--version", "runs list -q", "tasks list", "models list -q", "discover --help"]
)
def test_a_light_command_loads_nothing_heavy(line: str, root: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, json.dumps(HEAVY), *line.split()]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]")


def test_the_version_does_not_even_load_the_record(root: Path) -> None:
    program = "import sys\nfrom discovery import cli\ncli.main(['--version'])\nassert 'pydantic' not in sys.modules"
    assert (
        subprocess.run(
            [sys.executable, "-c", program], cwd=root, capture_output=True, check=False
        ).returncode
        == 0
    )
