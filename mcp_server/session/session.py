"""The session: one for each server process, shared by all its clients."""

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


class Session:
    """Everything that outlives a call."""

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
        """A task for a model: built-in, from a file that may be read, or inline pairs.

        Raises:
            TaskError: what is wrong with it, with the line or pair.
        """
        place = self.resolve_task_source(source)
        key = (place, pairs, seed) if isinstance(place, str) and place in BUILTIN else None
        if key is not None and key in loaded.tasks:
            return loaded.tasks[key]
        task = load_task(place, loaded.backend, pairs=pairs, seed=seed)
        if key is not None:
            if len(loaded.tasks) >= MAX_CACHED_TASKS:
                loaded.tasks.pop(next(iter(loaded.tasks)))
            loaded.tasks[key] = task
        return task

    def resolve_task_source(self, source: TaskInput) -> TaskInput:
        """What `load_task` is to be given.

        Raises:
            TaskError: for a text that is neither a built-in task nor a file that may be read.
        """
        if not isinstance(source, str):
            return source
        if source in BUILTIN:
            return source
        if not source.strip() or len(source) > 4096:
            raise TaskError(
                "The task is an empty or overlong text.",
                f"Built-in: {', '.join(BUILTIN)}; or a task file, or inline pairs.",
            )
        return str(self.allowed_paths.resolve_task_file(source))

    def list_run_summaries(self) -> list[RunSummary]:
        """Every run in the runs directory, the newest first, without the paths of this machine."""
        return [self._redact_summary(run) for run in list_runs(self.settings.runs_dir)]

    def _redact_summary(self, run: RunSummary) -> RunSummary:
        problem = self.allowed_paths.redact(run.problem, [run.model or ""]) if run.problem else None
        return replace(
            run,
            model=self.allowed_paths.format_path(run.model) if run.model else None,
            problem=problem,
        )

    def close(self, seconds: float = 1.5) -> bool:
        """Stop what is at work; whether it ended in time."""
        return self.runs.close(seconds)
