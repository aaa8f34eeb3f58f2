"""Which paths a call may name: those inside the allowed directories, with symbolic links followed.

A refusal says the same whether the path exists or not, so that a call cannot explore the machine.
Texts that are shown to a client are redacted here too: they name no path of this machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from discovery.backends.loading.gguf.files import (
    find_gguf_parts,
    is_gguf_name,
    list_gguf_models,
)
from discovery.backends.loading.source import BUNDLED, MODEL_FORMATS
from discovery.store import SAE_FOLDER, RunRecord
from mcp_server.errors import PathNotAllowedError
from mcp_server.session.settings import PATH_ENCODINGS, ServerSettings

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_SAE_RELEASE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95}){1,5}")
_RUN_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,199}")
_MAX_DEPTH = 3  # levels below an allowed directory at which models are looked for
_MAX_MODELS = 200  # that are listed
_MAX_DIRECTORIES = 2000  # that are opened to find them
_MAX_NAME = 4096  # characters
_MAX_SHOWN_NAME = 80  # characters of a name in a refusal


class AllowedPaths:
    """The directories that may be read, and the names under which a client knows what is inside."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._directories = tuple(
            directory
            for directory in (settings.models_dir, settings.working_dir)
            if directory is not None
        )
        self._roots = tuple(directory.resolve() for directory in self._directories)

    def resolve_model(self, name: str) -> str:
        """Return the model to open: `bundled`, an absolute path, or a hub name.

        Raises:
            PathNotAllowedError: for a directory or file that may not be read, and for a name that
                cannot be one of the hub.
            ModelError: for a GGUF model of which parts are missing.
        """
        if name == BUNDLED:
            return name
        path = self._resolve_inside(name)
        if path is not None and self._is_readable_model(path):
            return str(path)
        if not _HUB_NAME.fullmatch(name) or self._is_other_path(name):
            raise self._make_refusal(
                "model directory or GGUF file",
                name,
                "Give 'bundled', a hub name, or a directory or file that list_models shows.",
            )
        return name

    def _is_readable_model(self, path: Path) -> bool:
        """Return whether a path inside the allowed directories may be opened as a model.

        The GGUF files that would be opened with it must be inside too, wherever their links lead.

        Raises:
            ModelError: if it is a GGUF model of which parts are missing.
        """
        if path.is_dir():
            models = list_gguf_models(path)
        elif is_gguf_name(path):
            models = [path]
        else:
            return False
        return all(
            self._resolve_inside(str(part)) is not None
            for model in models
            for part in find_gguf_parts(model)
        )

    def resolve_task_file(self, name: str) -> Path:
        """Return the absolute path of a task file.

        Raises:
            PathNotAllowedError: if there is no such file, or it may not be read.
        """
        path = self._resolve_inside(name)
        if path is None or not path.is_file():
            raise self._make_refusal(
                "task file",
                name,
                "Name a built-in task, give the pairs inline, or put the file into one of them.",
            )
        return path

    def resolve_text_file(self, name: str, alternative: str) -> Path:
        """Return the absolute path of a text that is read or trained on.

        Args:
            name: the path.
            alternative: what a call can give instead, for the message.

        Raises:
            PathNotAllowedError: if there is no such file, or it may not be read.
        """
        path = self._resolve_inside(name)
        if path is None or not path.is_file():
            raise self._make_refusal(
                "text file", name, f"{alternative}, or put the file into one of them."
            )
        return path

    def resolve_sae(self, name: str | None) -> str:
        """Return the sparse autoencoder to open.

        It is `bundled` (also for None), an absolute path, or release/sae_id of the hub. The run_id
        of a training stands for the folder that the training wrote.

        Raises:
            PathNotAllowedError: for a directory that may not be read, and for a name that cannot
                be one of the hub.
        """
        if name is None or name == BUNDLED:
            return BUNDLED
        trained = self._find_trained_sae(name)
        if trained is not None:
            return str(trained)
        path = self._resolve_inside(name)
        if path is not None and path.is_dir():
            return str(path)
        if not _SAE_RELEASE_NAME.fullmatch(name) or self._is_other_path(name):
            raise self._make_refusal(
                "SAE directory",
                name,
                "Give one in it (cfg.json, sae_weights.safetensors), the run_id of a training, or "
                "release/sae_id.",
            )
        return name

    def _find_trained_sae(self, run_id: str) -> Path | None:
        """Return the folder of a training's SAE, or the run's folder if it has none yet.

        Returns:
            None if there is no such run, or its folder leads out of the runs directory.
        """
        runs_dir = self.settings.runs_dir
        if not _RUN_ID.fullmatch(run_id) or not (runs_dir / run_id / "run.json").is_file():
            return None
        run_path = runs_dir.absolute() / run_id
        has_sae = (run_path / SAE_FOLDER / "cfg.json").is_file()
        path = run_path / SAE_FOLDER if has_sae else run_path
        return path if path.resolve().is_relative_to(runs_dir.resolve()) else None

    def format_path(self, path: str) -> str:
        """Return a path as a client may write it: relative to an allowed directory.

        The SAE of a training is written as the run_id of the training.
        """
        absolute = Path(path)
        if not absolute.is_absolute():
            return path
        runs_dir = self.settings.runs_dir.absolute()
        if absolute.name == SAE_FOLDER and absolute.parent.parent == runs_dir:
            return absolute.parent.name
        for root in (*self._roots, *(directory.absolute() for directory in self._directories)):
            if absolute.is_relative_to(root):
                return absolute.relative_to(root).as_posix()
        return absolute.name

    def redact_run_text(self, text: str, record: RunRecord) -> str:
        """Return a text of a run without paths, also if its model and task lie elsewhere."""
        return self.redact(text, _collect_paths(record))

    def redact(self, text: str, paths: Iterable[str]) -> str:
        """Return a text in which these paths are written as a client may write them.

        The directories of this server are not shown either.
        """
        for path in sorted(filter(_is_absolute_path, paths), key=len, reverse=True):
            for encode in PATH_ENCODINGS:
                text = text.replace(encode(path), encode(self.format_path(path)))
        return self.settings.redact_paths(text)

    def list_models(self) -> list[Path]:
        """Return the model directories and GGUF files that may be loaded, by name.

        In a large tree only those are returned that a short search finds.
        """
        directories_left = iter(range(_MAX_DIRECTORIES))
        models = [
            model
            for root in self._roots
            if root.is_dir()
            for model in _find_models(root, _MAX_DEPTH, directories_left)
        ]
        return [model for model in models if self._resolve_inside(str(model))][:_MAX_MODELS]

    def _resolve_inside(self, name: str) -> Path | None:
        """Return the path that a name has inside the allowed directories, or None."""
        if not name or "\0" in name or len(name) > _MAX_NAME:
            return None
        for root in self._roots:
            try:
                path = (root / name).resolve()
                if path.is_relative_to(root) and path.exists():
                    return path
            # The name is too long for the file system, or a loop of links.
            except (OSError, ValueError, RuntimeError):
                continue
        return None

    def _is_other_path(self, name: str) -> bool:
        """Return whether a plain name is also a path.

        It may be a link that leads out of an allowed directory, or a directory that a library would
        open instead of the model of the hub.
        """
        return any((directory / name).exists() for directory in (Path(), *self._roots))

    def _make_refusal(self, kind: str, name: str, fix: str) -> PathNotAllowedError:
        names = []
        if self.settings.models_dir:
            names.append("the models directory")
        if self.settings.working_dir:
            names.append("the working directory")
        place = " or ".join(names) or (
            "any directory: the server was started without --models-dir, so none may be read"
        )
        is_long = len(name) > _MAX_SHOWN_NAME
        shown = f"{name[: _MAX_SHOWN_NAME - 3]}..." if is_long else name
        return PathNotAllowedError(f"There is no {kind} {shown!r} in {place}.", fix)


def _collect_paths(record: RunRecord) -> set[str]:
    """Return every word with which a run was asked for; some of them are paths."""
    words: list[object] = [record.model.name, *_split_command(record.provenance.command or "")]
    for name in ("load", "text"):
        part = record.configuration.get(name)
        if isinstance(part, Mapping):
            words.extend(part.values())
    return {word for word in words if isinstance(word, str)}


def _is_absolute_path(word: str) -> bool:
    path = Path(word)
    return path.is_absolute() and path != path.parent


def _split_command(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation mark is open
        return command.split()


def _find_models(directory: Path, depth: int, directories_left: Iterator[int]) -> list[Path]:
    """Return the models in a tree, down to a depth, while any directory may still be opened."""
    if next(directories_left, None) is None:
        return []
    if any((directory / file).is_file() for file in MODEL_FORMATS):
        return [directory]
    files = list_gguf_models(directory)
    if not depth:
        return files
    try:
        children = [
            entry
            for entry in sorted(directory.iterdir())
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")
        ]
    except OSError:
        return files
    return files + [
        model for child in children for model in _find_models(child, depth - 1, directories_left)
    ]
