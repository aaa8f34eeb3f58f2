"""Real clients read what `circuit-scout setup` and the generator of plugins write.

Claude Code runs in `make conformance`. Codex and Gemini CLI run if `codex` or `gemini` is on the
path: they are large (npm: @openai/codex, @google/gemini-cli), so that CI leaves them out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.setup.clients import CLIENTS
from mcp_server.setup.configuration import plan_addition, write_change
from mcp_server.setup.machine import Machine
from mcp_server.setup.skill_folders import plan_skills, write_skill

EXAMPLES = Path(__file__).resolve().parents[1] / "mcp_server" / "setup" / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def skip_without(command: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(command) is None, reason=f"{command} is not here")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    return Machine(
        platform=sys.platform,
        home=home,
        environment={},
        project=project,
        data=tmp_path / "data",
    )


@pytest.fixture
def script(tmp_path: Path, root: Path) -> Path:
    """A script that runs this checkout."""
    path = tmp_path / "bin" / "circuit-scout"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m mcp_server "$@"\n')
    path.chmod(0o755)
    return path


def configure(name: str, machine: Machine, script: Path) -> None:
    """Set up one client, beginning with its example file, and install the skills."""
    client = next(client for client in CLIENTS if client.name == name)
    path = client.user_config(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(EXAMPLES / f"{name}.{client.format}", path)
    write_change(plan_addition(client, path, script, None), machine)
    folder = client.skills_path(machine, "user")
    assert folder is not None
    for change in plan_skills(folder, remove=False):
        write_skill(change, machine)


def run_client(machine: Machine, script: Path, *words: str, stderr: bool = False) -> str:
    """Run a client in an empty project, with a home of its own and our script on its path.

    Returns:
        Its standard output, or its standard error, to which Gemini CLI writes.
    """
    environment = {
        "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(machine.home),
        "OMP_NUM_THREADS": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "MCP_TIMEOUT": "120000",
    }
    done = subprocess.run(
        words, cwd=machine.project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr if stderr else done.stdout


@skip_without("claude")
def test_claude_code_starts_the_server_that_setup_wrote(machine: Machine, script: Path) -> None:
    configure("claude-code", machine, script)
    output = run_client(machine, script, "claude", "mcp", "get", "circuit-scout")
    assert "User config" in output
    assert "Connected" in output
    assert str(script) in output


@skip_without("claude")
def test_claude_code_installs_the_plugin_and_starts_its_server(
    machine: Machine, script: Path, root: Path
) -> None:
    run_client(machine, script, "claude", "plugin", "marketplace", "add", str(root))
    install = ["claude", "plugin", "install", "circuit-scout@circuit-scout"]
    run_client(machine, script, *install)
    details = run_client(machine, script, "claude", "plugin", "details", "circuit-scout")
    assert "find-circuit" in details
    servers = run_client(machine, script, "claude", "mcp", "list")
    [line] = [line for line in servers.splitlines() if "circuit-scout" in line]
    assert "Connected" in line


@skip_without("codex")
def test_codex_reads_the_server_that_setup_wrote(machine: Machine, script: Path) -> None:
    configure("codex", machine, script)
    servers = json.loads(run_client(machine, script, "codex", "mcp", "list", "--json"))
    ours = next(server for server in servers if server["name"] == "circuit-scout")
    assert ours["enabled"]
    assert ours["transport"]["command"] == str(script)
    assert ours["transport"]["args"] == ["serve"]
    assert (ours["startup_timeout_sec"], ours["tool_timeout_sec"]) == (30, 600)
    assert {server["name"] for server in servers} == {"circuit-scout", "context7", "figma"}


@skip_without("gemini")
def test_gemini_reads_the_server_and_the_skills(machine: Machine, script: Path) -> None:
    configure("gemini", machine, script)
    # Its status depends on whether the folder is trusted.
    servers = run_client(machine, script, "gemini", "mcp", "list", stderr=True)
    assert f"circuit-scout: {script} serve" in servers
    assert "pythonTools" in servers
    skills = run_client(machine, script, "gemini", "skills", "list")
    assert "find-circuit [Enabled]" in skills


@skip_without("gemini")
def test_gemini_accepts_the_extension(machine: Machine, script: Path, root: Path) -> None:
    validate = ["gemini", "extensions", "validate", str(root)]
    assert "successfully validated" in run_client(machine, script, *validate, stderr=True)
