"""The settings of a server; `circuit-scout serve --help` lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from discovery.sites import BackendName
from discovery.store import default_runs_dir

Toolset = Literal["models", "measure", "techniques", "features", "circuits", "runs"]
TOOLSETS: tuple[Toolset, ...] = get_args(Toolset)
ImagePolicy = Literal["include", "omit"]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server was asked to run. The settings never change while it runs.

    Attributes:
        runs_dir: the directory in which runs are kept.
        models_dir: the directory whose models and task files may be read.
        working_dir: another directory that may be read: the one in which a local server was
            started. None over HTTP.
        read_only: whether the server only measures. Then nothing is downloaded, no run is started
            or stopped, and no look at held-out pairs is taken, because looks are recorded.
        images: whether results carry pictures.
        toolsets: the groups of tools that are offered.
        backend: what load_model uses if a call names no backend.
        device: what load_model uses if a call names no device.
        dtype: what load_model uses if a call names no dtype.
        memory: bytes that a measurement may take; None sets no limit.
        is_local: whether the client runs on this machine as the same user (stdio), so that paths
            of its runs help it.
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
        """Return a message without the paths of this machine."""
        directories = [
            (self.runs_dir, "the runs directory"),
            (self.models_dir, "the models directory"),
            (self.working_dir, "the working directory"),
        ]
        names = {
            str(form): name
            for path, name in directories
            if path is not None
            for form in _path_forms(path)
        }
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(f"{path}/", "").replace(path, names[path])
        for home in _path_forms(Path.home()):
            text = text.replace(f"{home}/", "~/")
        return text


def _path_forms(path: Path) -> set[Path]:
    """Return the ways in which a message may write a directory; none for the root.

    A path is written as it was given, or with its symbolic links followed.
    """
    return {form for form in (path.absolute(), path.resolve()) if form != form.parent}
