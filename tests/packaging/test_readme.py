"""README can't drift: its code runs, its commands exist, its verdicts and task names are those of the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from discovery.cli.parser import build_parser
from discovery.graph import VERDICTS
from discovery.tasks import BUILTIN
from discovery.tasks.pairs import PromptPair
from discovery.tasks.task_file import read_task_file
from mcp_server.server.command import parse_serve_arguments as serve

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def environment(tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "CIRCUIT_SCOUT_RUNS_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", blocks("bash"), ids=lambda text: text.split()[1])
def test_each_shell_block_runs(block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(rf"^({'|'.join(VERDICTS)}) \['a\d", done.stdout, flags=re.MULTILINE), (
        done.stdout
    )


@pytest.mark.parametrize("block", blocks("python"), ids=lambda text: "python")
def test_each_python_block_runs(block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_task_line_is_a_pair(tmp_path: Path) -> None:
    (line,) = blocks("json")
    path = tmp_path / "pairs.jsonl"
    path.write_text(line)
    (pair,) = read_task_file(path).values()
    assert isinstance(pair, PromptPair)


def test_the_commands_it_names_are_commands() -> None:
    named = re.findall(r"circuit-scout ((?:discover|tasks|runs|models|sae)\b[^`\n|#]*)", README)
    assert len(named) > 4
    parser = build_parser()
    for words in named:
        arguments = [
            word for word in shlex.split(words.replace("RUN_ID", "some-run")) if word != "…"
        ]
        parser.parse_args(arguments)


def test_the_servers_it_starts_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that makes a token comes first, and every other one that needs it finds it in the environment."""
    lines = re.findall(
        r"^(?:export .*|.*circuit-scout serve.*|claude mcp add --transport http.*)$",
        README,
        flags=re.MULTILINE,
    )
    exported = [
        n for n, line in enumerate(lines) if line.startswith("export CIRCUIT_SCOUT_TOKEN=$(openssl")
    ]
    assert len(exported) == 1
    assert all(exported[0] < n for n, line in enumerate(lines) if "$CIRCUIT_SCOUT_TOKEN" in line)
    assert not re.search(r"--token \S*\$\(", README), "a token that nobody sees"
    monkeypatch.setenv("CIRCUIT_SCOUT_TOKEN", "0" * 48)
    for words in re.findall(r"^circuit-scout serve(.*)$", README, flags=re.MULTILINE):
        serve(shlex.split(words))


def test_the_verdicts_and_tasks_are_all_explained() -> None:
    table = re.findall(r"^\| (\w+) \|", README, flags=re.MULTILINE)
    assert [word for word in table if word in VERDICTS] == list(VERDICTS)
    assert all(f"`{name}`" in README for name in BUILTIN)


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
