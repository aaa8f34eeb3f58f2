"""The clients that setup knows: where each keeps its servers, and where it looks for skills.

Each entry cites the client's own documentation. `tests/mcp_server/setup/examples` has an example
file of each, and `tests/conformance/test_real_clients.py` lets the command lines of Claude Code,
Codex and Gemini CLI read what setup writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mcp_server.setup.machine import Machine

ClientName = Literal[
    "claude-code", "cursor", "vscode", "claude-desktop", "codex", "gemini", "windsurf"
]
Scope = Literal["user", "project"]

_STDIO = (("type", "stdio"),)
# Codex waits 10 seconds for a server to start and 60 for a tool, unless the entry says otherwise:
# https://developers.openai.com/codex/mcp. A sweep of a model may take minutes.
_CODEX_LIMITS = (("startup_timeout_sec", 30), ("tool_timeout_sec", 600))


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client.

    Attributes:
        name: the name on the command line.
        title: the name for a person.
        format: the format of the configuration.
        servers_key: the key under which the configuration has its servers.
        defaults: fields that a new entry has besides `command` and `args`.
        commands: commands on the path that show that the client is installed.
        traces: returns files and folders that show that it is installed.
        user_config: returns the configuration for all projects.
        project_config: the configuration in a project's directory, or None if there is none.
        user_skills: returns the folder of skills for all projects, or None if there is none.
        project_skills: the folder of skills in a project's directory, or None if there is none.
        next_step: what a person has to do until the client uses the server.
    """

    name: ClientName
    title: str
    format: Literal["json", "toml"] = "json"
    servers_key: str = "mcpServers"
    defaults: tuple[tuple[str, object], ...] = ()
    commands: tuple[str, ...]
    traces: Callable[[Machine], tuple[Path, ...]]
    user_config: Callable[[Machine], Path]
    project_config: str | None
    user_skills: Callable[[Machine], Path] | None
    project_skills: str | None
    next_step: str

    def config_path(self, machine: Machine, scope: Scope) -> Path | None:
        """Return the configuration in a scope, or None if the client has none there."""
        if scope == "user":
            return self.user_config(machine)
        return None if self.project_config is None else machine.project / self.project_config

    def skills_path(self, machine: Machine, scope: Scope) -> Path | None:
        """Return the folder of skills in a scope, or None if the client has none there."""
        if scope == "user":
            return None if self.user_skills is None else self.user_skills(machine)
        return None if self.project_skills is None else machine.project / self.project_skills

    def is_installed(self, machine: Machine) -> bool:
        """Return whether the client is on this machine, as far as files and the path show."""
        return any(map(machine.has_command, self.commands)) or any(
            path.exists() for path in self.traces(machine)
        )


def _claude_code_config(machine: Machine) -> Path:
    # With CLAUDE_CONFIG_DIR, the file lies in that directory.
    folder = machine.variable_path("CLAUDE_CONFIG_DIR", machine.home)
    return folder / ".claude.json"


def _claude_code_folder(machine: Machine) -> Path:
    return machine.variable_path("CLAUDE_CONFIG_DIR", machine.home / ".claude")


def _codex_folder(machine: Machine) -> Path:
    return machine.variable_path("CODEX_HOME", machine.home / ".codex")


def _gemini_folder(machine: Machine) -> Path:
    # GEMINI_CLI_HOME stands for the home directory: docs/reference/configuration.md there.
    return machine.variable_path("GEMINI_CLI_HOME", machine.home) / ".gemini"


def _shared_skills(machine: Machine) -> Path:
    return machine.home / ".agents" / "skills"


CLIENTS = (
    # https://code.claude.com/docs/en/mcp, "MCP installation scopes": ~/.claude.json for all
    # projects, .mcp.json in the root of one. https://code.claude.com/docs/en/skills: skills.
    Client(
        name="claude-code",
        title="Claude Code",
        defaults=_STDIO,
        commands=("claude",),
        traces=lambda machine: (_claude_code_config(machine), _claude_code_folder(machine)),
        user_config=_claude_code_config,
        project_config=".mcp.json",
        user_skills=lambda machine: _claude_code_folder(machine) / "skills",
        project_skills=".claude/skills",
        next_step="Start a new session. /mcp shows the server.",
    ),
    # https://cursor.com/docs/context/mcp: ~/.cursor/mcp.json and .cursor/mcp.json.
    # https://cursor.com/docs/context/skills: .agents/skills and ~/.agents/skills.
    Client(
        name="cursor",
        title="Cursor",
        defaults=_STDIO,
        commands=("cursor", "cursor-agent"),
        traces=lambda machine: (machine.home / ".cursor",),
        user_config=lambda machine: machine.home / ".cursor" / "mcp.json",
        project_config=".cursor/mcp.json",
        user_skills=_shared_skills,
        project_skills=".agents/skills",
        next_step="Switch the server on in Settings, Tools & MCP.",
    ),
    # https://code.visualstudio.com/docs/agents/reference/mcp-configuration: the key `servers`,
    # .vscode/mcp.json and mcp.json in the user's profile, whose folder is that of settings.json:
    # https://code.visualstudio.com/docs/configure/settings.
    # https://code.visualstudio.com/docs/agent-customization/agent-skills: skills.
    Client(
        name="vscode",
        title="VS Code",
        servers_key="servers",
        defaults=_STDIO,
        commands=("code",),
        traces=lambda machine: (machine.app_data / "Code" / "User",),
        user_config=lambda machine: machine.app_data / "Code" / "User" / "mcp.json",
        project_config=".vscode/mcp.json",
        user_skills=_shared_skills,
        project_skills=".agents/skills",
        next_step="Run the command MCP: List Servers, and start the server.",
    ),
    # https://modelcontextprotocol.io/docs/develop/connect-local-servers: the files of macOS and
    # Windows. The application for Linux keeps its own in the same place of XDG_CONFIG_HOME.
    # Skills are uploaded in the application.
    Client(
        name="claude-desktop",
        title="Claude Desktop",
        commands=("claude-desktop",),
        traces=lambda machine: (machine.app_data / "Claude",),
        user_config=lambda machine: machine.app_data / "Claude" / "claude_desktop_config.json",
        project_config=None,
        user_skills=None,
        project_skills=None,
        next_step="Quit the application and start it again.",
    ),
    # https://developers.openai.com/codex/mcp: ~/.codex/config.toml, and .codex/config.toml in a
    # trusted project. https://developers.openai.com/codex/skills: .agents/skills.
    Client(
        name="codex",
        title="Codex",
        format="toml",
        servers_key="mcp_servers",
        defaults=_CODEX_LIMITS,
        commands=("codex",),
        traces=lambda machine: (_codex_folder(machine),),
        user_config=lambda machine: _codex_folder(machine) / "config.toml",
        project_config=".codex/config.toml",
        user_skills=_shared_skills,
        project_skills=".agents/skills",
        next_step="Start a new session. /mcp shows the server.",
    ),
    # https://geminicli.com/docs/tools/mcp-server: ~/.gemini/settings.json and
    # .gemini/settings.json. https://geminicli.com/docs/cli/skills: the alias .agents/skills.
    Client(
        name="gemini",
        title="Gemini CLI",
        commands=("gemini",),
        traces=lambda machine: (_gemini_folder(machine),),
        user_config=lambda machine: _gemini_folder(machine) / "settings.json",
        project_config=".gemini/settings.json",
        user_skills=_shared_skills,
        project_skills=".agents/skills",
        next_step="Start a new session in a trusted folder. /mcp shows the server.",
    ),
    # https://docs.windsurf.com/windsurf/cascade/mcp: mcp_config.json, for all projects only.
    # https://docs.windsurf.com/windsurf/cascade/skills: .windsurf/skills and the global folder.
    Client(
        name="windsurf",
        title="Windsurf",
        commands=("windsurf",),
        traces=lambda machine: (machine.home / ".codeium" / "windsurf",),
        user_config=lambda machine: machine.home / ".codeium" / "windsurf" / "mcp_config.json",
        project_config=None,
        user_skills=lambda machine: machine.home / ".codeium" / "windsurf" / "skills",
        project_skills=".windsurf/skills",
        next_step="Press refresh in the MCP panel of Cascade.",
    ),
)
CLIENT_NAMES = tuple(client.name for client in CLIENTS)


def find_clients(machine: Machine) -> list[Client]:
    """Return the clients that are on a machine."""
    return [client for client in CLIENTS if client.is_installed(machine)]
