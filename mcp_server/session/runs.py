"""Discoveries and trainings in the background.

Each has a thread that outlives the call that began it.

A run is known by the id of its folder, as soon as the folder exists. The run then waits for its
device and works. At its end the folder says completed, interrupted (the run can be resumed) or
failed. Only one process at a time writes to a folder; the lock of the folder ensures that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from discovery.errors import DiscoveryError, Interrupted
from discovery.progress import Progress, ProgressListener
from discovery.sites import MetricName, Universe
from discovery.store import Run, RunRecord, open_run
from mcp_server.errors import PathNotAllowedError, ServerError, log_bug
from mcp_server.session import lazy_discovery
from mcp_server.session.allowed_paths import AllowedPaths
from mcp_server.session.devices import DeviceJob, DeviceQueues, JobProgress
from mcp_server.session.job_memory import run_and_return_memory
from mcp_server.session.models import LoadedModel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from discovery.agent import Outlook
    from discovery.backends.loading.load_arguments import LoadArguments
    from discovery.features.training.text import TrainingInput
    from discovery.tasks.task import Task

MAX_RUNS_AT_WORK = 16  # in one process, waiting runs included


@dataclass(kw_only=True)
class BackgroundRun:
    """A run of this process.

    Attributes:
        job: how far the run is, and the way to stop it.
        run_id: the id of its folder; None until the folder exists.
        start_event: set when the folder exists, and when the run failed before that.
        end_event: set when the run has ended.
        problem: what ended the run early, as it may be shown.
        outlook: what a discovery has spent and what is left of it; None before it is planned.
    """

    job: DeviceJob
    run_id: str | None = None
    start_event: threading.Event = field(default_factory=threading.Event)
    end_event: threading.Event = field(default_factory=threading.Event)
    problem: DiscoveryError | None = None
    outlook: Outlook | None = None

    @property
    def progress(self) -> JobProgress:
        """How far the run is."""
        return self.job.progress

    def note_outlook(self, outlook: Outlook) -> None:
        """Note what a discovery has spent and what is left of it."""
        self.outlook = outlook
        self.job.expect(outlook.total - outlook.earlier)


class _TrainingProgress(ProgressListener):
    """Passes on the progress of a training, whose only step is the whole of it."""

    def __init__(self, job: DeviceJob) -> None:
        self._job = job

    def update(self, progress: Progress) -> None:
        self._job.expect(progress.total)
        self._job.update(progress)


OnBegin = Callable[[str], None]
"""Called with the run's id when its folder exists; returns when the run has its device."""


class BackgroundRuns:
    """The runs of this process: starts, resumes, finds and stops them."""

    def __init__(self, devices: DeviceQueues, allowed_paths: AllowedPaths) -> None:
        self._devices = devices
        self._allowed_paths = allowed_paths
        self._settings = allowed_paths.settings
        self._runs: dict[str, BackgroundRun] = {}
        self._starting: list[BackgroundRun] = []
        self._guard = threading.Lock()

    def start_discovery(
        self,
        loaded: LoadedModel,
        task: Task,
        load: LoadArguments,
        *,
        metric: MetricName | None,
        seed: int,
        universe: Universe,
        budget: float | None,
    ) -> BackgroundRun:
        """Begin a discovery, and return when its folder exists.

        Args:
            loaded: the model.
            task: the prompt pairs.
            load: how the model and the task can be opened again, recorded in the run.
            metric: the metric; None is the task's own.
            seed: the seed of the run.
            universe: what may be ablated.
            budget: forward-pass equivalents that the run may take; None is unlimited.

        Raises:
            ServerError: if too many runs are at work.
            DiscoveryError: if the run cannot begin.
        """

        def work(background: BackgroundRun, begin: OnBegin) -> None:
            lazy_discovery.discover(
                loaded.backend,
                task,
                metric=metric,
                seed=seed,
                universe=universe,
                budget=budget,
                memory=self._settings.memory,
                runs_dir=self._settings.runs_dir,
                progress=background.job,
                on_begin=begin,
                on_outlook=background.note_outlook,
                load=load,
            )

        return self._start_run(loaded, work)

    def start_training(
        self, loaded: LoadedModel, text: TrainingInput, recipe: dict[str, Any]
    ) -> BackgroundRun:
        """Begin the training of an SAE, and return when its folder exists.

        Args:
            loaded: the model.
            text: what is trained on.
            recipe: the keyword arguments of `train_sae` that say how to train.

        Raises:
            ServerError: if too many runs are at work.
            DiscoveryError: if the training cannot begin.
        """

        def work(background: BackgroundRun, begin: OnBegin) -> None:
            lazy_discovery.train_sae(
                loaded.backend,
                text,
                **recipe,
                memory=self._settings.memory,
                runs_dir=self._settings.runs_dir,
                progress=_TrainingProgress(background.job),
                on_begin=begin,
                load=loaded.request.load_arguments,
            )

        return self._start_run(loaded, work)

    def _start_run(
        self, loaded: LoadedModel, work: Callable[[BackgroundRun, OnBegin], None]
    ) -> BackgroundRun:
        """Start a run in its own thread; it takes the device once its folder exists."""
        background = BackgroundRun(job=self._devices.new_job())
        with self._guard:
            self._require_capacity()
            self._starting = [run for run in self._starting if not run.start_event.is_set()]
            self._starting.append(background)

        def run() -> None:
            with _DeviceHold(self._devices, loaded.device) as device:

                def begin(run_id: str) -> None:
                    background.run_id = run_id
                    self._runs[run_id] = background
                    background.start_event.set()
                    device.acquire(f"run {run_id}", background.job)

                work(background, begin)

        return _launch(background, run)

    def resume(self, run_id: str, budget: float | None = None) -> BackgroundRun:
        """Continue an interrupted run. A run that is at work in this process is returned as it is.

        Args:
            run_id: the run.
            budget: the larger budget with which a discovery goes on; None keeps its own.

        Raises:
            StoreError: if there is no such run, or another process writes to it.
            PathNotAllowedError: if this server may not load the run's model.
        """
        with self._guard:  # found and entered in one step: of two calls, only one resumes
            existing = self.find(run_id)
            if existing is not None:
                return existing
            self._require_capacity()
            record = open_run(self._settings.runs_dir, run_id).record
            self._require_allowed_model(record, run_id)
            run = open_run(self._settings.runs_dir, run_id, write=True)  # locked until its end
            background = self._runs[run_id] = BackgroundRun(
                job=self._devices.new_job(), run_id=run_id
            )
        background.start_event.set()

        def work() -> None:
            with _DeviceHold(self._devices, record.provenance.device or "cpu") as device, run:
                device.acquire(f"run {run_id}", background.job)
                if record.kind == "sae":
                    progress = _TrainingProgress(background.job)
                    lazy_discovery.continue_training(run, progress=progress)
                    return
                lazy_discovery.resume_open_run(
                    run,
                    budget=budget,
                    progress=background.job,
                    on_outlook=background.note_outlook,
                )

        return _launch(background, work)

    def find(self, run_id: str) -> BackgroundRun | None:
        """Return the run if this process has it at work, else None."""
        background = self._runs.get(run_id)
        return None if background is None or background.end_event.is_set() else background

    def problem(self, run_id: str) -> DiscoveryError | None:
        """Return what ended a run of this process early, else None."""
        background = self._runs.get(run_id)
        return background.problem if background else None

    def open(self, run_id: str) -> Run:
        """Open a run's folder for reading.

        Raises:
            PathNotAllowedError: if the folder is a link that leads out of the runs directory.
        """
        run = open_run(self._settings.runs_dir, run_id)
        if not run.path.resolve().is_relative_to(self._settings.runs_dir.resolve()):
            raise PathNotAllowedError(
                f"The folder of the run {run_id} is a link that leads out of the runs directory.",
                "Copy the folder into the runs directory instead.",
            )
        return run

    def close(self, seconds: float) -> bool:
        """Stop every run, and return whether all of them ended within these seconds."""
        self._devices.closing.set()
        end = time.monotonic() + seconds
        return all(
            background.end_event.wait(max(0.0, end - time.monotonic()))
            for background in self._runs_at_work()
        )

    def _runs_at_work(self) -> list[BackgroundRun]:
        candidates = {id(run): run for run in (*self._runs.values(), *self._starting)}
        return [run for run in candidates.values() if not run.end_event.is_set()]

    def _require_capacity(self) -> None:
        """Raise ServerError if too many runs are at work."""
        n_runs = len(self._runs_at_work())
        if n_runs >= MAX_RUNS_AT_WORK:
            raise ServerError(
                f"{n_runs} runs are at work or waiting already.",
                "Wait for one (run_status), or stop one (cancel_run).",
            )

    def _require_allowed_model(self, record: RunRecord, run_id: str) -> None:
        """Raise PathNotAllowedError if this server may not load the model of a run."""
        load: Any = record.configuration.get("load") or {}
        command = "sae train" if record.kind == "sae" else "discover"
        try:
            self._allowed_paths.resolve_model(str(load.get("model")))
        except PathNotAllowedError:
            raise PathNotAllowedError(
                f"The model of the run {run_id} is in no directory that this server may read.",
                "Start the server with --models-dir on that directory, or resume the run in a "
                f"terminal: circuit-scout {command} --resume {run_id}",
            ) from None


class _DeviceHold:
    """A device that is acquired in the middle of a `with` block and released at its end."""

    def __init__(self, devices: DeviceQueues, device: str) -> None:
        self._devices = devices
        self._device = device
        self._hold: AbstractContextManager[None] | None = None

    def __enter__(self) -> _DeviceHold:
        return self

    def acquire(self, description: str, job: DeviceJob) -> None:
        hold = self._devices.hold(self._device, description, job, gives_way=True)
        hold.__enter__()
        self._hold = hold

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._hold is not None:
            self._hold.__exit__(None, None, None)


def _launch(background: BackgroundRun, work: Callable[[], None]) -> BackgroundRun:
    """Start the thread of a run, and return when the run has begun.

    Raises:
        DiscoveryError: if the run failed before it had a folder.
    """
    thread = threading.Thread(
        target=_run_guarded, args=(background, work), name="discovery-run", daemon=True
    )
    thread.start()
    background.start_event.wait()
    if background.problem is not None:
        raise background.problem
    return background


def _run_guarded(background: BackgroundRun, work: Callable[[], None]) -> None:
    """Do the work of a run, and note what ended it early."""
    try:
        run_and_return_memory(work)
    except Interrupted:
        if not background.start_event.is_set():
            background.problem = ServerError("The run was stopped.", "Go on with its run_id.")
    except DiscoveryError as error:
        background.problem = error
    # This is the end of the thread: the error is shown by its id, as for a tool.
    except Exception as error:  # noqa: BLE001
        background.problem = ServerError(
            log_bug("a run", error), "Report it; the run can be tried again."
        )
    finally:
        background.end_event.set()
        background.start_event.set()
