"""Which paths a call may name: those inside the allowed directories, symbolic links followed first.

A refusal says the same whether the path exists or not.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from discovery.backends.loading.source import MODEL_FORMATS
from discovery.store import RunRecord
from mcp_server.errors import PathNotAllowedError
from mcp_server.session.settings import ServerSettings

BUNDLED = "bundled"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_SAE_RELEASE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95}){1,5}")
_RUN_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,199}")
_SAE_FOLDER = "sae"  # in the folder of its training
_MAX_DEPTH, _MAX_MODELS, _MAX_DIRECTORIES = (
    3,
    200,
    2000,
)  # levels down, models listed, directories opened
_ENCODINGS: tuple[Callable[[str], str], ...] = (
    str,
    html.escape,
    lambda path: json.dumps(path)[1:-1],
)


class AllowedPaths:
    """The directories that may be read."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.roots = tuple(
            root.resolve()
            for root in (settings.models_dir, settings.working_dir)
            if root is not None
        )

    def resolve_model(self, name: str) -> str:
        """The model to open: `bundled`, a directory as an absolute path, or a hub name.

        Raises:
            PlaceError: for a directory that may not be read, or a name that no hub has.
        """
        if name == BUNDLED:
            return name
        found = self._resolve_inside(name)
        if found is not None and found.is_dir():
            return str(found)
        if not _HUB_NAME.fullmatch(name) or self._is_other_path(name):
            raise self._make_refusal(
                "model directory",
                name,
                "Give 'bundled', a hub name, or one that list_models shows.",
            )
        return name

    def resolve_task_file(self, name: str) -> Path:
        """A task file.

        Raises:
            PlaceError: where there is none at that place, or it may not be read.
        """
        found = self._resolve_inside(name)
        if found is None or not found.is_file():
            raise self._make_refusal(
                "task file",
                name,
                "Name a built-in task, give the pairs inline, or put the file into one of them.",
            )
        return found

    def resolve_text_file(self, name: str, instead: str) -> Path:
        """A text to be read, or to train on.

        Raises:
            PlaceError: where there is none at that place, or it may not be read.
        """
        found = self._resolve_inside(name)
        if found is None or not found.is_file():
            raise self._make_refusal(
                "text file", name, f"{instead}, or put the file into one of them."
            )
        return found

    def resolve_sae(self, name: str | None) -> str:
        """A sparse autoencoder: `bundled` (also where None is named), a directory or the folder of a training as an absolute path, or
        release/sae_id of the hub.

        Raises:
            PlaceError: for a directory that may not be read, or a name that no hub has.
        """
        if name is None or name == BUNDLED:
            return BUNDLED
        if _RUN_ID.fullmatch(name) and (self.settings.runs_dir / name / "run.json").is_file():
            run = self.settings.runs_dir.absolute() / name
            trained = run / _SAE_FOLDER if (run / _SAE_FOLDER / "cfg.json").is_file() else run
            if trained.resolve().is_relative_to(self.settings.runs_dir.resolve()):
                return str(trained)
        found = self._resolve_inside(name)
        if found is not None and found.is_dir():
            return str(found)
        if not _SAE_RELEASE_NAME.fullmatch(name) or self._is_other_path(name):
            raise self._make_refusal(
                "SAE directory",
                name,
                "Give one in it (cfg.json, sae_weights.safetensors), the run_id of a training, or release/sae_id.",
            )
        return name

    def format_path(self, path: str) -> str:
        """A path as the assistant may write it: relative to an allowed directory."""
        if not Path(path).is_absolute():
            return path
        if (
            Path(path).name == _SAE_FOLDER
            and Path(path).parent.parent == self.settings.runs_dir.absolute()
        ):
            return Path(path).parent.name  # the id of the training
        given = (
            root.absolute()
            for root in (self.settings.models_dir, self.settings.working_dir)
            if root is not None
        )
        for root in (*self.roots, *given):
            if Path(path).is_relative_to(root):
                return Path(path).relative_to(root).as_posix()
        return Path(path).name

    def redact_run_text(self, text: str, record: RunRecord) -> str:
        """What a run left, without the paths of this machine: also where its model and task lie elsewhere."""
        return self.redact(text, _collect_paths(record))

    def redact(self, text: str, paths: Iterable[str]) -> str:
        """A text in which these paths are shown as a call may name them, and this server's own are not shown."""
        for path in sorted(filter(_is_absolute_path, paths), key=len, reverse=True):
            for written in _ENCODINGS:
                text = text.replace(written(path), written(self.format_path(path)))
        return self.settings.redact_paths(text)

    def list_model_directories(self) -> list[Path]:
        """The model directories that may be loaded, by name; of a large tree those that a short look finds."""
        looked = iter(range(_MAX_DIRECTORIES))
        return [
            found
            for root in self.roots
            if root.is_dir()
            for found in _find_model_directories(root, _MAX_DEPTH, looked)
        ][:_MAX_MODELS]

    def _resolve_inside(self, name: str) -> Path | None:
        """What a name is inside the allowed directories, or None."""
        if not name or "\0" in name or len(name) > 4096:
            return None
        for root in self.roots:
            try:
                path = (root / name).resolve()
                if path.is_relative_to(root) and path.exists():
                    return path
            except (
                OSError,
                ValueError,
                RuntimeError,
            ):  # too long for the file system, or a loop of links
                continue
        return None

    def _is_other_path(self, name: str) -> bool:
        """Whether a plain name is also a path: a link that leads out, or a directory that would be opened instead of the hub's model."""
        return any((place / name).exists() for place in (Path(), *self.roots))

    def _make_refusal(self, what: str, name: str, cure: str) -> PathNotAllowedError:
        allowed = [
            label
            for path, label in (
                (self.settings.models_dir, "the models directory"),
                (self.settings.working_dir, "the working directory"),
            )
            if path
        ]
        where = (
            " or ".join(allowed)
            or "any directory: the server was started without --models-dir, so none may be read"
        )
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        return PathNotAllowedError(f"There is no {what} {shown!r} in {where}.", cure)


def _collect_paths(record: RunRecord) -> set[str]:
    """The paths that a run was asked with, among other words."""
    parts = [
        part
        for name in ("load", "text")
        if isinstance(part := record.configuration.get(name), Mapping)
    ]
    asked = [
        record.model.name,
        *(value for part in parts for value in part.values()),
        *_split_command(record.provenance.command or ""),
    ]
    return {word for word in asked if isinstance(word, str)}


def _is_absolute_path(word: str) -> bool:
    return Path(word).is_absolute() and Path(word) != Path(word).parent


def _split_command(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an open quotation mark
        return command.split()


def _find_model_directories(place: Path, deep: int, looked: Iterator[int]) -> list[Path]:
    if next(looked, None) is None:
        return []
    if any((place / file).is_file() for file in MODEL_FORMATS):
        return [place]
    if not deep:
        return []
    try:
        inner = [
            entry
            for entry in sorted(place.iterdir())
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")
        ]
    except OSError:
        return []
    return [found for entry in inner for found in _find_model_directories(entry, deep - 1, looked)]
