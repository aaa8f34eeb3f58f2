"""How this server was asked to run; see `circuit-scout serve --help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from discovery.sites import BackendName
from discovery.store import default_runs_dir

Toolset = Literal["models", "measure", "features", "circuits", "runs"]
TOOLSETS: tuple[Toolset, ...] = get_args(Toolset)
ImagePolicy = Literal["include", "omit"]


@dataclass(frozen=True)
class ServerSettings:
    """Fixed for the life of the server.

    Attributes:
        runs_dir: where runs are kept.
        models_dir: the directory whose models may be loaded.
        here: another directory that may be read: where a local server was started; None over HTTP.
        read_only: nothing is downloaded, no run is started or stopped, and no look at held-out pairs is taken, which would be counted.
        images: whether results carry pictures.
        toolsets: which groups of tools there are.
        backend, device, dtype: what load_model uses where a call does not say.
        memory: bytes that a measurement may take.
        local: whether the client runs on this machine, as this user (stdio), so that paths of its runs help it.
    """

    runs_dir: Path = field(default_factory=default_runs_dir)
    models_dir: Path | None = None
    working_dir: Path | None = None
    read_only: bool = False
    images: ImagePolicy = "include"
    toolsets: tuple[Toolset, ...] = TOOLSETS
    backend: BackendName = "auto"
    device: str = "auto"
    dtype: str = "float32"
    memory: int | None = None
    is_local: bool = True

    def redact_paths(self, text: str) -> str:
        """A message without the paths of this machine."""
        named = [
            (self.runs_dir, "the runs directory"),
            (self.models_dir, "the models directory"),
            (self.working_dir, "the working directory"),
        ]
        known = {
            str(form): name
            for path, name in named
            if path is not None
            for form in _path_forms(path)
        }
        for path in sorted(known, key=len, reverse=True):
            text = text.replace(f"{path}/", "").replace(path, known[path])
        for home in _path_forms(Path.home()):
            text = text.replace(f"{home}/", "~/")
        return text


def _path_forms(path: Path) -> set[Path]:
    """How messages may write a directory: as it was given, and with symbolic links followed; none for the root."""
    return {form for form in (path.absolute(), path.resolve()) if form != form.parent}
