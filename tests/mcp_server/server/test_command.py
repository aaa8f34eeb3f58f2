"""The flags of `circuit-scout serve`, and their variables in the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from discovery.cli.arguments import UsageError
from mcp_server.__main__ import main
from mcp_server.server.command import parse_serve_arguments
from mcp_server.session.settings import TOOLSETS

FLAGS = ("--http", "--token", "--toolsets", "--read-only", "--models-dir", "--runs-dir", "--images")


def test_the_defaults_are_a_local_server(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings, endpoint = parse_serve_arguments([])
    assert endpoint is None
    assert (settings.working_dir, settings.models_dir, settings.runs_dir) == (
        tmp_path,
        None,
        runs_dir,
    )
    assert (settings.read_only, settings.images, settings.toolsets) == (
        False,
        "include",
        ("models", "measure", "techniques", "features", "circuits", "runs"),
    )


def test_every_flag_has_its_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = {
        "HTTP": "127.0.0.1:8123",
        "TOKEN": "0123456789abcdef",
        "TOOLSETS": "runs,models",
        "READ_ONLY": "1",
        "IMAGES": "omit",
    }
    for name, value in {
        **twins,
        "MODELS_DIR": str(tmp_path),
        "RUNS_DIR": str(tmp_path / "runs"),
    }.items():
        monkeypatch.setenv(f"CIRCUIT_SCOUT_{name}", value)
    settings, endpoint = parse_serve_arguments([])
    assert endpoint is not None
    assert (endpoint.host, endpoint.port, endpoint.token) == ("127.0.0.1", 8123, "0123456789abcdef")
    assert (settings.toolsets, settings.read_only, settings.images) == (
        ("models", "runs"),
        True,
        "omit",
    )
    assert (settings.models_dir, settings.runs_dir, settings.working_dir) == (
        tmp_path,
        tmp_path / "runs",
        None,
    )
    assert parse_serve_arguments(["--images", "include"])[0].images == "include"
    assert parse_serve_arguments(["--toolsets", "all,measure"])[0].toolsets == TOOLSETS


@pytest.mark.parametrize(
    "words",
    [
        ["--http", "8000"],
        ["--http", "a:99999"],
        ["--token", "short"],
        ["--toolsets", "mesure"],
        ["--toolsets", "all,mesure"],
        ["--images", "no"],
        ["--models-dir", "nowhere"],
        ["extra"],
        ["--tokn", "x"],
    ],
)
def test_what_is_not_allowed_is_said(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        parse_serve_arguments(words)
    assert main(["serve", *words]) == 2
    assert "fix:" in capfd.readouterr().err


def test_help_names_every_flag(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    text = capfd.readouterr().out
    assert [flag for flag in FLAGS if flag not in text] == []
    assert main(["--help"]) == 0
    assert "serve" in capfd.readouterr().out


def test_the_server_starts_without_the_measuring_half(root: Path) -> None:
    heavy = [
        "torch",
        "transformers",
        "transformer_lens",
        "nnsight",
        "sae_lens",
        "matplotlib",
        "scipy",
        "pandas",
    ]
    program = (
        "import mcp_server.server.command as command, sys; command.build_server(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"


def test_a_server_started_in_a_home_may_read_nothing_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some clients start every server there, so it is no choice of what may be read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for directory in (tmp_path, Path(tmp_path.anchor)):
        monkeypatch.chdir(directory)
        assert parse_serve_arguments([])[0].working_dir is None
        assert parse_serve_arguments(["--models-dir", str(tmp_path)])[0].models_dir == tmp_path
