"""Discoveries and trainings in the background: each in a thread that outlives the call which began it.

A run is known by the id of its folder as soon as that is there. It waits for its device, works, and leaves its folder completed,
interrupted (resumable) or failed. A folder is written by one process at a time, which its lock sees to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from discovery.errors import DiscoveryError, Interrupted
from discovery.store import Run, open_run
from mcp_server.errors import PathNotAllowedError, ServerError, log_bug
from mcp_server.session import lazy_discovery
from mcp_server.session.allowed_paths import AllowedPaths
from mcp_server.session.devices import DeviceJob, DeviceQueues
from mcp_server.session.models import LoadedModel

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.tasks.task import Task

MAX_RUNS_AT_WORK = 16  # runs in one process, waiting ones included


@dataclass
class BackgroundRun:
    """A run of this process.

    Attributes:
        run_id: None until its folder is there. begun: set then, and where it failed before. ended: set at its end.
        problem: what ended it early, as it may be told.
        expected: forward-pass equivalents that the whole run is estimated to take, or tokens of a training, once that is known.
    """

    job: DeviceJob
    run_id: str | None = None
    start_event: threading.Event = field(default_factory=threading.Event)
    end_event: threading.Event = field(default_factory=threading.Event)
    problem: DiscoveryError | None = None
    estimated_total: float | None = None
    since: float = field(default_factory=time.monotonic)
    thread: threading.Thread | None = None

    def estimate_total(self, model: Backend, task: Task, memory: int | None) -> None:
        """Estimate the whole run."""
        self.job.show_status("estimate")
        self.estimated_total = float(
            lazy_discovery.estimate_cost(model, task, memory=memory).forward_equivalents
        )

    def report_tokens(self, done: float, total: float, label: str) -> None:
        """Progress of a training: what is done is known at each step, and how much there is."""
        self.estimated_total = total
        self.job(done, total, label)

    @property
    def progress(self) -> tuple[float, float | None, str]:
        """Done, of about how much (None: not known), and what is done now."""
        done, _, doing = self.job.progress
        return (
            done,
            None if self.estimated_total is None else max(self.estimated_total, done),
            doing,
        )


class BackgroundRuns:
    """Starts, resumes, finds and stops them."""

    def __init__(self, devices: DeviceQueues, places: AllowedPaths) -> None:
        self._devices, self._allowed_paths = devices, places
        self._settings = places.settings
        self._runs: dict[str, BackgroundRun] = {}
        self._starting: list[BackgroundRun] = []
        self._guard = threading.Lock()

    def start_discovery(
        self, loaded: LoadedModel, task: Task, load: dict[str, Any], options: dict[str, Any]
    ) -> BackgroundRun:
        """Begin a discovery; returns once its folder is there. Blocks for that long."""

        def carry(made: BackgroundRun, begin: Callable[[str], None]) -> None:
            def begun(run_id: str) -> None:
                begin(run_id)
                made.estimate_total(loaded.backend, task, options.get("memory"))

            lazy_discovery.discover(
                loaded.backend,
                task,
                **options,
                runs_dir=self._settings.runs_dir,
                progress=made.job,
                on_begin=begun,
                load=load,
            )

        return self._start_run(loaded, carry)

    def start_training(
        self, loaded: LoadedModel, text: Any, options: dict[str, Any]
    ) -> BackgroundRun:
        """Begin the training of an SAE; returns once its folder is there. Blocks for that long."""
        how = loaded.asked
        load = {"model": how.source, **how.load_arguments}

        def carry(made: BackgroundRun, begin: Callable[[str], None]) -> None:
            runs_dir = self._settings.runs_dir
            lazy_discovery.train_sae(
                loaded.backend,
                text,
                **options,
                runs_dir=runs_dir,
                progress=made.report_tokens,
                on_begin=begin,
                load=load,
            )

        return self._start_run(loaded, carry)

    def _start_run(
        self, loaded: LoadedModel, carry: Callable[[BackgroundRun, Callable[[str], None]], None]
    ) -> BackgroundRun:
        """A run in a thread of its own, which takes the device once its folder is there."""
        made = BackgroundRun(self._devices.new_job())
        with self._guard:
            self._check_capacity()
            self._starting = [other for other in self._starting if not other.start_event.is_set()]
            self._starting.append(made)

        def carried() -> None:
            with _DeviceHold(self._devices, loaded.device) as device:

                def begin(run_id: str) -> None:
                    made.run_id = run_id
                    self._runs[run_id] = made
                    made.start_event.set()
                    device.acquire(f"run {run_id}", made.job)

                carry(made, begin)

        return self._launch(made, carried)

    def resume(self, run_id: str) -> BackgroundRun:
        """Go on with an interrupted run; one that is at work in this process is returned as it is.

        Raises:
            StoreError: no such run, or another process writes to it.
            PlaceError: where its model may not be loaded by this server.
        """
        with self._guard:  # looked up and entered in one step: of two calls, one resumes
            if run_id in self._runs and not self._runs[run_id].end_event.is_set():
                return self._runs[run_id]
            self._check_capacity()
            record = open_run(self._settings.runs_dir, run_id).record
            how = dict(record.configuration.get("load") or {})  # type: ignore[arg-type]  # JSON
            command = "sae train" if record.kind == "sae" else "discover"
            try:
                self._allowed_paths.resolve_model(str(how.get("model")))
            except PathNotAllowedError:
                raise PathNotAllowedError(
                    f"The model of the run {run_id} is in no directory that this server may read.",
                    f"Start the server with --models-dir on it, or go on at a terminal: circuit-scout {command} --resume {run_id}",
                ) from None
            run = open_run(
                self._settings.runs_dir, run_id, write=True
            )  # held from here to the run's end
            made = self._runs[run_id] = BackgroundRun(self._devices.new_job(), run_id)
        made.start_event.set()
        memory: Any = record.configuration.get("memory")

        def carry() -> None:
            with _DeviceHold(self._devices, record.provenance.device or "cpu") as device, run:
                device.acquire(f"run {run_id}", made.job)
                if record.kind == "sae":
                    lazy_discovery.continue_training(run, progress=made.report_tokens)
                else:
                    lazy_discovery.resume_open_run(
                        run,
                        progress=made.job,
                        on_open=lambda model, task: made.estimate_total(model, task, memory),
                    )

        return self._launch(made, carry)

    def find(self, run_id: str) -> BackgroundRun | None:
        """The run, where this process has it at work."""
        found = self._runs.get(run_id)
        return found if found is not None and not found.end_event.is_set() else None

    def problem(self, run_id: str) -> DiscoveryError | None:
        """What ended a run of this process early."""
        found = self._runs.get(run_id)
        return found.problem if found else None

    def open(self, run_id: str) -> Run:
        """A run's folder, for reading.

        Raises:
            PlaceError: where it is a link that leads out of the runs directory.
        """
        found = open_run(self._settings.runs_dir, run_id)
        if not found.path.resolve().is_relative_to(self._settings.runs_dir.resolve()):
            raise PathNotAllowedError(
                f"The run {run_id} leads out of the runs directory.",
                "Copy its folder there, instead of a link to it.",
            )
        return found

    def close(self, seconds: float) -> bool:
        """Stop every run and wait a moment for them to end; whether they did."""
        self._devices.closing.set()
        end = time.monotonic() + seconds
        alive = [
            made for made in [*self._runs.values(), *self._starting] if not made.end_event.is_set()
        ]
        return all(made.end_event.wait(max(0.0, end - time.monotonic())) for made in alive)

    def _check_capacity(self) -> None:
        alive = {
            id(other): other
            for other in [*self._runs.values(), *self._starting]
            if not other.end_event.is_set()
        }
        if len(alive) >= MAX_RUNS_AT_WORK:
            raise ServerError(
                f"{len(alive)} runs are at work or waiting already.",
                "Wait for one (run_status), or stop one (cancel_run).",
            )

    def _launch(self, made: BackgroundRun, carry: Callable[[], None]) -> BackgroundRun:
        made.thread = threading.Thread(
            target=_run_guarded, args=(made, carry), name="discovery-run", daemon=True
        )
        made.thread.start()
        made.start_event.wait()
        if made.problem is not None:
            raise made.problem
        return made


class _DeviceHold:
    """A device that is taken in the middle of a run and given back at its end."""

    def __init__(self, devices: DeviceQueues, device: str) -> None:
        self._devices, self._device = devices, device
        self._held: Any = None

    def __enter__(self) -> _DeviceHold:
        return self

    def acquire(self, what: str, work: DeviceJob) -> None:
        held = self._devices.hold(self._device, what, work)
        held.__enter__()
        self._held = held

    def __exit__(self, *fault: Any) -> None:
        if self._held is not None:
            self._held.__exit__(None, None, None)


def _run_guarded(made: BackgroundRun, carry: Callable[[], None]) -> None:
    try:
        carry()
    except Interrupted:
        made.problem = (
            ServerError("The run was stopped.", "Go on with its run_id.")
            if not made.start_event.is_set()
            else None
        )
    except DiscoveryError as fault:
        made.problem = fault
    except Exception as fault:  # noqa: BLE001  # the thread's end: told by id, as a tool's would be
        made.problem = ServerError(
            log_bug("a run", fault), "Report it; the run can be tried again."
        )
    finally:
        made.end_event.set()
        made.start_event.set()
