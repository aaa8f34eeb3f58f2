"""The settings of a server; `circuit-scout serve --help` lists them."""

from __future__ import annotations

import html
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from discovery.sites import BackendName
from discovery.store import default_runs_dir
from discovery.store.directory import default_cache_dir

Toolset = Literal["models", "measure", "techniques", "features", "circuits", "runs"]
TOOLSETS: tuple[Toolset, ...] = get_args(Toolset)
ImagePolicy = Literal["include", "omit"]
PATH_ENCODINGS: tuple[Callable[[str], str], ...] = (
    str,
    html.escape,
    lambda path: json.dumps(path)[1:-1],
)
"""The ways in which a document may write a path."""

_HOME = "~"
_CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_CACHE", "TORCH_HOME")


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
        """Return a text without the paths of this machine.

        Not shown are this server's directories, the installation, the caches, the directory in
        which the server was started, and the home directory.
        """
        return self._hidden_pattern.sub(self._name_of, text)

    def _name_of(self, match: re.Match[str]) -> str:
        name = self._hidden_paths[match[1]]
        if not match[2]:
            return name
        return "~/" if name == _HOME else ""

    @cached_property
    def _hidden_pattern(self) -> re.Pattern[str]:
        """Finds the paths of `_hidden_paths`; a name that only begins like one is another one."""
        paths = sorted(self._hidden_paths, key=len, reverse=True)
        return re.compile(rf"({'|'.join(map(re.escape, paths))})(?:(/)|(?![\w-]|\.\w))")

    @cached_property
    def _hidden_paths(self) -> dict[str, str]:
        """Each path that no client may see, as a text may write it, and its name."""
        directories: list[tuple[Path | str | None, str]] = [
            (Path.home(), _HOME),
            (Path.cwd(), "the server's directory"),
            (sys.prefix, "the Python environment"),
            (Path(__file__).parents[2], "the installation"),
            (default_cache_dir(), "the cache"),
            *((os.environ.get(name), "the cache") for name in _CACHE_VARIABLES),
            (self.working_dir, "the working directory"),
            (self.models_dir, "the models directory"),
            (self.runs_dir, "the runs directory"),
        ]
        return {
            encode(str(form)): name
            for path, name in directories
            if path
            for form in _path_forms(Path(path))
            for encode in PATH_ENCODINGS
        }


def _path_forms(path: Path) -> set[Path]:
    """Return the ways in which a message may write a directory; none for the root.

    A path is written as it was given, or with its symbolic links followed.
    """
    return {form for form in (path.absolute(), path.resolve()) if form != form.parent}
