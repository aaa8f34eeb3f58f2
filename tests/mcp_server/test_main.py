"""The console script passes its words on, and the server's errors are errors of `discovery`."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

from discovery.errors import DiscoveryError
from mcp_server import __main__ as entry
from mcp_server import errors


def test_main_hands_its_words_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from discovery import cli

    received: list[list[str]] = []

    def record(words: list[str]) -> int:
        received.append(words)
        return 2

    monkeypatch.setattr(cli, "main", record)
    monkeypatch.setattr(sys, "argv", ["circuit-scout", "runs", "list"])
    assert (entry.main(), entry.main(("doctor", "--json"))) == (2, 2)
    assert received == [["runs", "list"], ["doctor", "--json"]]


def test_the_module_and_the_script_are_one_command(root: Path) -> None:
    script = Path(sys.executable).with_name("circuit-scout")
    outputs = [
        subprocess.run(
            [*command, "--version"], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for command in ([str(script)], [sys.executable, "-m", "mcp_server"])
    ]
    assert outputs[0] == outputs[1] != ""


def test_an_unknown_handle_says_what_is_loaded_and_what_to_call() -> None:
    assert issubclass(errors.ServerError, DiscoveryError)
    assert doctest.testmod(errors).failed == 0
    assert "loaded: none" in errors.UnknownModelError("gpt2", []).cause
