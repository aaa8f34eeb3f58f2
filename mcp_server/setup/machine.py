"""What setup has to know of the machine: its system, home, environment, project and script."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mcp_server.errors import SetupError

# Parts of paths of environments that uv makes for one `uvx` call and may delete at any time.
_PASSING_ENVIRONMENTS = ("archive-v0", "environments-v2", "builds-v0")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine and a user on it.

    Attributes:
        platform: the operating system, as `sys.platform` names it: linux, darwin, win32.
        home: the user's home directory.
        environment: the environment variables.
        project: the directory of the project, for the scope `project`.
        data: the directory of our own data, in which backups are kept.
    """

    platform: str
    home: Path
    environment: Mapping[str, str]
    project: Path
    data: Path

    @classmethod
    def here(cls) -> Machine:
        """Return this machine, with the current directory as the project."""
        return cls(
            platform=sys.platform,
            home=Path.home(),
            environment=dict(os.environ),
            project=Path.cwd(),
            data=platformdirs.user_data_path("circuit-scout", appauthor=False),
        )

    @property
    def app_data(self) -> Path:
        """The directory in which desktop applications keep their configuration."""
        if self.platform == "darwin":
            return self.home / "Library" / "Application Support"
        if self.platform == "win32":
            default = self.home / "AppData" / "Roaming"
            return Path(self.environment.get("APPDATA") or default)
        return Path(self.environment.get("XDG_CONFIG_HOME") or self.home / ".config")

    def variable_path(self, name: str, default: Path) -> Path:
        """Return the path in an environment variable, or the default if it is not set."""
        value = self.environment.get(name)
        return Path(value).expanduser() if value else default

    def has_command(self, name: str) -> bool:
        """Return whether a command is on the path."""
        return shutil.which(name, path=self.environment.get("PATH", "")) is not None

    def short_name(self, path: Path) -> str:
        """Return a path for a person, with ~ for the home directory."""
        if path.is_relative_to(self.home):
            return str(Path("~") / path.relative_to(self.home))
        return str(path)


def find_script() -> Path:
    """Return the absolute path of the installed script `circuit-scout`.

    Clients get this path because the PATH of a client that is started from a desktop is not that
    of a shell.

    Raises:
        SetupError: if this environment has no script, or is one that uv may delete at any time.
    """
    name = "circuit-scout.exe" if sys.platform == "win32" else "circuit-scout"
    script = Path(sysconfig.get_path("scripts")) / name
    if not script.is_file():
        raise SetupError(
            f"There is no script {script}, which clients have to start.",
            "Install the project, see the README: uv tool install --constraints constraints.txt .",
        )
    if any(part in _PASSING_ENVIRONMENTS for part in script.parts):
        raise SetupError(
            f"{script} is in an environment of uvx, which may be deleted at any time.",
            "Install the project to stay: uv tool install --constraints constraints.txt .",
        )
    return script
