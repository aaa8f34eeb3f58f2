"""The frame of every tool that measures: find the model, wait for its device, run, report progress.

A tool hands a function to `run_measurement`, which calls it in a worker thread while the model's
device is free for it. The function receives a `Measurement`: the model, the session and the job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from discovery.tasks import BUILTIN
from discovery.tasks.pairs import PromptPair
from discovery.tasks.task_file import read_task_file
from mcp_server.session import DeviceJob, Session, lazy_discovery
from mcp_server.session.models import LoadedModel
from mcp_server.tools.arguments import PairList, TaskName, ToolContext, to_task_input

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.features import SAE
    from discovery.tasks.task import Task

T = TypeVar("T")


def session_of(context: ToolContext) -> Session:
    """Return the session that a call belongs to."""
    return context.request_context.lifespan_context


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a tool works with while it holds the device.

    Attributes:
        session: the session of the call.
        model: the loaded model, whose device is held.
        job: the progress callback for `discovery`; it also stops the work of a cancelled call.
    """

    session: Session
    model: LoadedModel
    job: DeviceJob

    @property
    def backend(self) -> Backend:
        """The model itself."""
        return self.model.backend

    @property
    def memory(self) -> int | None:
        """Bytes that the measurement may take; None sets no limit."""
        return self.session.settings.memory

    def load_task(self, task: TaskName | PairList, pairs: int, seed: int) -> tuple[Task, list[str]]:
        """Load the pairs to measure, with a note if not all of the caller's own pairs are used.

        Callers write as many pairs as they need, so it should not go unseen that some are left out.

        Raises:
            TaskError: if something is wrong with the task; gives the line or the pair.
        """
        source = to_task_input(task)
        loaded_task = self.session.get_task(self.model, source, pairs, seed)
        is_builtin = isinstance(source, str) and source in BUILTIN
        if is_builtin or len(loaded_task) < pairs:
            return loaded_task, []
        resolved = self.session.resolve_task_source(source)
        n_given = len(resolved)
        if isinstance(resolved, str):
            lines = read_task_file(Path(resolved)).values()
            n_given = sum(isinstance(line, PromptPair) for line in lines)
        if n_given <= len(loaded_task):
            return loaded_task, []
        note = f"{len(loaded_task)} of {n_given} pairs were drawn; pairs={n_given} takes all."
        return loaded_task, [note]

    def open_sae(self, name: str | None) -> tuple[SAE, str]:
        """Open a sparse autoencoder, and return it with its name as the assistant may write it.

        Raises:
            PathNotAllowedError: if it may not be read.
            FeatureError: if it does not belong to the model.
        """
        source = self.session.allowed_paths.resolve_sae(name)
        sae = lazy_discovery.open_sae(source, self.backend)
        return sae, self.session.allowed_paths.format_path(source)


async def run_measurement(
    context: ToolContext, model_id: str, description: str, measure: Callable[[Measurement], T]
) -> T:
    """Run `measure` on the model's device and report its progress to the client.

    One measurement at a time runs on a device. A cancelled call stops its measurement.

    Args:
        context: the call of the tool.
        model_id: the handle of the model.
        description: what is measured, shown as progress and to calls that wait for the device.
        measure: the measurement; it runs in a worker thread.

    Raises:
        UnknownModelError: if the model is not loaded.
        BusyError: if too many calls wait for the device.
        Interrupted: if the measurement is stopped.
    """
    session = session_of(context)
    model = session.models.get(model_id)

    def run(job: DeviceJob) -> T:
        return measure(Measurement(session=session, model=model, job=job))

    return await session.devices.run(context, model.device, description, run)
