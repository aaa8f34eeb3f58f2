"""The session of a server process, shared by all its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from discovery.errors import TaskError
from discovery.store import RunSummary, list_runs
from discovery.tasks import BUILTIN, load_task
from mcp_server.session.allowed_paths import AllowedPaths
from mcp_server.session.artifacts import ArtifactStore
from mcp_server.session.devices import DeviceQueues
from mcp_server.session.models import MAX_CACHED_TASKS, LoadedModel, ModelCache
from mcp_server.session.runs import BackgroundRuns
from mcp_server.session.settings import ServerSettings

if TYPE_CHECKING:
    from discovery.tasks.task import Task

TaskInput = str | Sequence[Mapping[str, Any]]

_MAX_SOURCE = 4096  # characters of a task's name or path


class Session:
    """Everything that outlives a call.

    Attributes:
        settings: how the server was asked to run.
        allowed_paths: which paths a call may name.
        devices: the queue of each device.
        models: the loaded models.
        runs: the runs of this process.
        artifacts: files of results that clients can fetch.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.allowed_paths = AllowedPaths(settings)
        self.devices = DeviceQueues()
        self.models = ModelCache(self.allowed_paths)
        self.runs = BackgroundRuns(self.devices, self.allowed_paths)
        self.artifacts = ArtifactStore()

    def get_task(
        self, loaded: LoadedModel, source: TaskInput, pairs: int | None, seed: int
    ) -> Task:
        """Return a task for a model: built-in, from a file that may be read, or inline pairs.

        Built-in tasks are kept with the model, because drawing their pairs takes time.

        Raises:
            TaskError: if something is wrong with the task; gives the line or the pair.
        """
        resolved = self.resolve_task_source(source)
        if not isinstance(resolved, str) or resolved not in BUILTIN:
            return load_task(resolved, loaded.backend, pairs=pairs, seed=seed)
        key = (resolved, pairs, seed)
        if key in loaded.tasks:
            return loaded.tasks[key]
        task = load_task(resolved, loaded.backend, pairs=pairs, seed=seed)
        if len(loaded.tasks) >= MAX_CACHED_TASKS:
            loaded.tasks.pop(next(iter(loaded.tasks)))
        loaded.tasks[key] = task
        return task

    def resolve_task_source(self, source: TaskInput) -> TaskInput:
        """Return the source in the form that `load_task` takes: a file as its absolute path.

        Raises:
            TaskError: if the source is an empty or overlong text.
            PathNotAllowedError: if it is neither a built-in task nor a file that may be read.
        """
        if not isinstance(source, str) or source in BUILTIN:
            return source
        if not source.strip() or len(source) > _MAX_SOURCE:
            raise TaskError(
                "The task is an empty or overlong text.",
                f"Give a built-in task ({', '.join(BUILTIN)}), a task file, or inline pairs.",
            )
        return str(self.allowed_paths.resolve_task_file(source))

    def list_run_summaries(self) -> list[RunSummary]:
        """Return every run, the newest first, without the paths of this machine."""
        return [self._redact_summary(run) for run in list_runs(self.settings.runs_dir)]

    def _redact_summary(self, run: RunSummary) -> RunSummary:
        problem = self.allowed_paths.redact(run.problem, [run.model or ""]) if run.problem else None
        return replace(
            run,
            model=self.allowed_paths.format_path(run.model) if run.model else None,
            problem=problem,
        )

    def close(self, seconds: float) -> bool:
        """Stop every run, and return whether all of them ended within these seconds."""
        return self.runs.close(seconds)
