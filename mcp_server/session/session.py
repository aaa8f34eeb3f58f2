"""The session: one for each server process, shared by all its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from discovery.errors import TaskError
from discovery.store import RunSummary, list_runs
from discovery.tasks import BUILTIN, load_task
from mcp_server.session.allowed_paths import Places
from mcp_server.session.artifacts import Results
from mcp_server.session.devices import Devices
from mcp_server.session.models import TASKS_KEPT, Loaded, Models
from mcp_server.session.runs import Runs
from mcp_server.session.settings import Settings

if TYPE_CHECKING:
    from discovery.tasks.task import Task

TaskSource = str | Sequence[Mapping[str, Any]]


class Session:
    """Everything that outlives a call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.places = Places(settings)
        self.devices = Devices()
        self.models = Models(self.places)
        self.runs = Runs(self.devices, self.places)
        self.results = Results()

    def task(self, loaded: Loaded, source: TaskSource, pairs: int | None, seed: int) -> Task:
        """A task for a model: built-in, from a file that may be read, or inline pairs.

        Raises:
            TaskError: what is wrong with it, with the line or pair.
        """
        place = self.task_source(source)
        key = (place, pairs, seed) if isinstance(place, str) and place in BUILTIN else None
        if key is not None and key in loaded.tasks:
            return loaded.tasks[key]
        task = load_task(place, loaded.backend, pairs=pairs, seed=seed)
        if key is not None:
            if len(loaded.tasks) >= TASKS_KEPT:
                loaded.tasks.pop(next(iter(loaded.tasks)))
            loaded.tasks[key] = task
        return task

    def task_source(self, source: TaskSource) -> TaskSource:
        """What `load_task` is to be given.

        Raises:
            TaskError: for a text that is neither a built-in task nor a file that may be read.
        """
        if not isinstance(source, str):
            return source
        if source in BUILTIN:
            return source
        if not source.strip() or len(source) > 4096:
            raise TaskError("The task is an empty or overlong text.", f"Built-in: {', '.join(BUILTIN)}; or a task file, or inline pairs.")
        return str(self.places.task_file(source))

    def run_list(self) -> list[RunSummary]:
        """Every run in the runs directory, the newest first, without the paths of this machine."""
        return [self._shown(run) for run in list_runs(self.settings.runs_dir)]

    def _shown(self, run: RunSummary) -> RunSummary:
        problem = self.places.without(run.problem, [run.model or ""]) if run.problem else None
        return replace(run, model=self.places.shown(run.model) if run.model else None, problem=problem)

    def close(self, seconds: float = 1.5) -> bool:
        """Stop what is at work; whether it ended in time."""
        return self.runs.close(seconds)
