"""`circuit-scout setup` as a user runs it, with a home of its own."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery import cli
from mcp_server.__main__ import main
from mcp_server.resources.skills import find_skills_dir, list_skills
from mcp_server.setup import machine as machine_module

Setup = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home with Claude Code and Codex, from which nothing leads out."""
    home, project = tmp_path / "home", tmp_path / "project"
    for folder in (home / ".claude", home / ".codex", project):
        folder.mkdir(parents=True)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(project)
    script = tmp_path / "bin" / "circuit-scout"
    script.parent.mkdir()
    script.touch()
    monkeypatch.setattr(machine_module.sysconfig, "get_path", lambda name: str(script.parent))
    return home


@pytest.fixture
def setup(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Setup:
    def run(*words: str) -> tuple[int, str, str]:
        commands: list[list[str]] = []

        def record(words: list[str]) -> int:
            commands.append(words)
            return 0

        monkeypatch.setattr(cli, "main", record)
        status = main(["setup", *words])
        captured = capfd.readouterr()
        is_change = status == 0 and not {"--dry-run", "--remove"} & {*words}
        assert commands == ([["doctor"]] if is_change else [])
        return status, captured.out, captured.err

    return run


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_clients_that_are_here_are_configured(setup: Setup, home: Path) -> None:
    status, output, _ = setup()
    assert status == 0
    assert [line.split()[:3] for line in output.splitlines()] == [
        ["Claude", "Code", "added"],
        ["Codex", "added", "~/.codex/config.toml"],
    ]
    [entry] = json.loads((home / ".claude.json").read_text())["mcpServers"].values()
    script = Path(entry["command"])
    assert script.is_absolute()
    assert script.name == "circuit-scout"
    assert (
        "circuit-scout"
        in tomllib.loads((home / ".codex" / "config.toml").read_text())["mcp_servers"]
    )
    before = files_below(home)
    status, output, _ = setup()
    assert (status, output.count("unchanged")) == (0, 2)
    assert files_below(home) == before
    status, output, _ = setup("--remove")
    assert (status, output.count("removed")) == (0, 2)
    assert json.loads((home / ".claude.json").read_text()) == {"mcpServers": {}}


def test_a_dry_run_shows_the_change_and_writes_nothing(setup: Setup, home: Path) -> None:
    (home / ".claude.json").write_text('{"mcpServers": {\n  "a": {"env": {"KEY": "secret"}}}}')
    before = files_below(home)
    status, output, errors = setup("--dry-run", "--skills")
    assert status == 0
    assert output.count("added") == 2 + 2 * len(list_skills())
    assert '+  "circuit-scout": {' in errors
    assert "Nothing was written" in errors
    assert "+[mcp_servers.circuit-scout]" in errors
    assert files_below(home) == before


def test_a_project_has_files_of_its_own(setup: Setup, home: Path) -> None:
    names = "claude-code,cursor,vscode,codex,gemini"
    models = Path.cwd() / "models"
    models.mkdir()
    words = ["--client", names, "--scope", "project", "--skills", "--", "--models-dir", "models"]
    status, _, _ = setup(*words)
    assert status == 0
    skills = {f"{folder}/skills/find-circuit/SKILL.md" for folder in (".agents", ".claude")}
    assert files_below(Path.cwd()) >= skills | {
        ".mcp.json",
        ".cursor/mcp.json",
        ".vscode/mcp.json",
        ".codex/config.toml",
        ".gemini/settings.json",
    }
    assert files_below(home) == set()
    [entry] = json.loads(Path(".mcp.json").read_text())["mcpServers"].values()
    assert entry["args"] == ["serve", "--models-dir", str(models)]


def test_skills_are_installed_updated_and_removed(setup: Setup, home: Path) -> None:
    setup("--skills", "--client", "claude-code")
    for name in list_skills():
        source, copy = find_skills_dir() / name, home / ".claude" / "skills" / name
        assert files_below(copy) == files_below(source)
        assert filecmp.cmpfiles(source, copy, files_below(source), shallow=False)[1:] == ([], [])
    status, output, _ = setup("--skills", "--client", "claude-code")
    assert output.count("unchanged") == 1 + len(list_skills())
    skill = home / ".claude" / "skills" / "find-circuit" / "SKILL.md"
    skill.write_text("mine")
    status, output, errors = setup("--skills", "--client", "claude-code")
    assert (status, output.count("updated")) == (0, 1)
    assert skill.read_text() != "mine"
    [kept] = (home / ".local" / "share" / "circuit-scout" / "backups").rglob("SKILL.md")
    assert kept.read_text() == "mine"
    assert str(kept.parent) in errors.replace("\n", "")
    setup("--skills", "--client", "claude-code", "--remove")
    assert list((home / ".claude" / "skills").iterdir()) == []


def test_a_file_that_is_broken_does_not_stop_the_others(setup: Setup, home: Path) -> None:
    (home / ".claude.json").write_text('{"a": \n')
    status, output, errors = setup()
    assert status == 2
    assert "Claude Code  failed" in output
    assert "Codex        added" in output
    assert "line 1: this is not JSON" in errors
    assert "fix:" in errors
    assert (home / ".claude.json").read_text() == '{"a": \n'


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--client", "emacs"], "--client is 'emacs'; allowed: claude-code"),
        (["--client", ","], "names no client"),
        (["--scope", "local"], "--scope is 'local'; allowed: user, project"),
        (["--client", "windsurf", "--scope", "project"], "one configuration for all projects"),
        (["--clients", "x"], "does not take --clients x"),
        (["--", "--http", "127.0.0.1:1"], "--http cannot be set up"),
        (["--", "--models-dir", "none"], "is not a directory"),
    ],
)
def test_what_is_not_allowed_is_told(words: list[str], text: str, setup: Setup) -> None:
    status, _, errors = setup(*words)
    assert status == 2
    assert text in errors
    assert "fix:" in errors


def test_a_home_is_no_project(setup: Setup, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    status, _, errors = setup("--scope", "project")
    assert status == 2
    assert "is your home directory" in errors


def test_no_client_is_a_clear_error(setup: Setup, home: Path) -> None:
    for name in (".claude", ".codex"):
        (home / name).rmdir()
    status, _, errors = setup()
    assert status == 2
    assert "None of these is on this machine: Claude Code, Cursor" in errors
    status, _, _ = setup("--client", "gemini")
    assert status == 0, "a client can be configured before it is installed"


def test_a_script_that_may_vanish_is_refused(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "uv" / "archive-v0" / "x" / "bin"
    monkeypatch.setattr(machine_module.sysconfig, "get_path", lambda name: str(folder))
    status, _, errors = setup()
    assert status == 2
    assert "There is no script" in errors
    folder.mkdir(parents=True)
    (folder / "circuit-scout").touch()
    status, _, errors = setup()
    assert status == 2
    assert "may be deleted at any time" in errors


def test_the_help_names_every_flag(setup: Setup, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", "--help"]) == 0
    text = capfd.readouterr().out
    flags = ("--client", "--scope", "--dry-run", "--remove", "--skills")
    assert [flag for flag in flags if flag not in text] == []


def test_setup_loads_no_heavy_library(home: Path, root: Path) -> None:
    program = (
        "import sys; from mcp_server.__main__ import main; "
        "assert main(['setup', '--dry-run', '--client', 'cursor', '--skills']) == 0; "
        "print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert process.stdout.splitlines()[-1:] == ["[]"], process.stderr
