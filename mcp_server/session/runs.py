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
from mcp_server.errors import PlaceError, ServerError, reported
from mcp_server.session import lazy_discovery
from mcp_server.session.allowed_paths import Places
from mcp_server.session.devices import Devices, Work
from mcp_server.session.models import Loaded

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.tasks.task import Task

MOST_ALIVE = 16  # runs in one process, waiting ones included


@dataclass
class Background:
    """A run of this process.

    Attributes:
        run_id: None until its folder is there. begun: set then, and where it failed before. ended: set at its end.
        problem: what ended it early, as it may be told.
        expected: forward-pass equivalents that the whole run is estimated to take, or tokens of a training, once that is known.
    """

    work: Work
    run_id: str | None = None
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    problem: DiscoveryError | None = None
    expected: float | None = None
    since: float = field(default_factory=time.monotonic)
    thread: threading.Thread | None = None

    def expect(self, model: Backend, task: Task, memory: int | None) -> None:
        """Estimate the whole run."""
        self.work.say("estimate")
        self.expected = float(lazy_discovery.estimate(model, task, memory=memory).forward_equivalents)

    def tokens(self, done: float, total: float, label: str) -> None:
        """Progress of a training: what is done is known at each step, and how much there is."""
        self.expected = total
        self.work(done, total, label)

    @property
    def progress(self) -> tuple[float, float | None, str]:
        """Done, of about how much (None: not known), and what is done now."""
        done, _, doing = self.work.state
        return done, None if self.expected is None else max(self.expected, done), doing


class Runs:
    """Starts, resumes, finds and stops them."""

    def __init__(self, devices: Devices, places: Places) -> None:
        self._devices, self._places = devices, places
        self._settings = places.settings
        self._known: dict[str, Background] = {}
        self._starting: list[Background] = []
        self._guard = threading.Lock()

    def start(self, loaded: Loaded, task: Task, load: dict[str, Any], options: dict[str, Any]) -> Background:
        """Begin a discovery; returns once its folder is there. Blocks for that long."""

        def carry(made: Background, begin: Callable[[str], None]) -> None:
            def begun(run_id: str) -> None:
                begin(run_id)
                made.expect(loaded.backend, task, options.get("memory"))

            lazy_discovery.discover(
                loaded.backend, task, **options, runs_dir=self._settings.runs_dir, progress=made.work, on_begin=begun, load=load
            )

        return self._start(loaded, carry)

    def train(self, loaded: Loaded, text: Any, options: dict[str, Any]) -> Background:
        """Begin the training of an SAE; returns once its folder is there. Blocks for that long."""
        how = loaded.asked
        load = {"model": how.source, **how.how}

        def carry(made: Background, begin: Callable[[str], None]) -> None:
            runs_dir = self._settings.runs_dir
            lazy_discovery.train_sae(loaded.backend, text, **options, runs_dir=runs_dir, progress=made.tokens, on_begin=begin, load=load)

        return self._start(loaded, carry)

    def _start(self, loaded: Loaded, carry: Callable[[Background, Callable[[str], None]], None]) -> Background:
        """A run in a thread of its own, which takes the device once its folder is there."""
        made = Background(self._devices.work())
        with self._guard:
            self._check_room()
            self._starting = [other for other in self._starting if not other.begun.is_set()]
            self._starting.append(made)

        def carried() -> None:
            with _Holding(self._devices, loaded.device) as device:

                def begin(run_id: str) -> None:
                    made.run_id = run_id
                    self._known[run_id] = made
                    made.begun.set()
                    device.take(f"run {run_id}", made.work)

                carry(made, begin)

        return self._launch(made, carried)

    def resume(self, run_id: str) -> Background:
        """Go on with an interrupted run; one that is at work in this process is returned as it is.

        Raises:
            StoreError: no such run, or another process writes to it.
            PlaceError: where its model may not be loaded by this server.
        """
        with self._guard:  # looked up and entered in one step: of two calls, one resumes
            if run_id in self._known and not self._known[run_id].ended.is_set():
                return self._known[run_id]
            self._check_room()
            record = open_run(self._settings.runs_dir, run_id).record
            how = dict(record.configuration.get("load") or {})  # type: ignore[arg-type]  # JSON
            command = "sae train" if record.kind == "sae" else "discover"
            try:
                self._places.model(str(how.get("model")))
            except PlaceError:
                raise PlaceError(
                    f"The model of the run {run_id} is in no directory that this server may read.",
                    f"Start the server with --models-dir on it, or go on at a terminal: circuit-scout {command} --resume {run_id}",
                ) from None
            run = open_run(self._settings.runs_dir, run_id, write=True)  # held from here to the run's end
            made = self._known[run_id] = Background(self._devices.work(), run_id)
        made.begun.set()
        memory: Any = record.configuration.get("memory")

        def carry() -> None:
            with _Holding(self._devices, record.provenance.device or "cpu") as device, run:
                device.take(f"run {run_id}", made.work)
                if record.kind == "sae":
                    lazy_discovery.go_on_training(run, progress=made.tokens)
                else:
                    lazy_discovery.go_on(run, progress=made.work, on_open=lambda model, task: made.expect(model, task, memory))

        return self._launch(made, carry)

    def find(self, run_id: str) -> Background | None:
        """The run, where this process has it at work."""
        found = self._known.get(run_id)
        return found if found is not None and not found.ended.is_set() else None

    def problem(self, run_id: str) -> DiscoveryError | None:
        """What ended a run of this process early."""
        found = self._known.get(run_id)
        return found.problem if found else None

    def open(self, run_id: str) -> Run:
        """A run's folder, for reading.

        Raises:
            PlaceError: where it is a link that leads out of the runs directory.
        """
        found = open_run(self._settings.runs_dir, run_id)
        if not found.path.resolve().is_relative_to(self._settings.runs_dir.resolve()):
            raise PlaceError(f"The run {run_id} leads out of the runs directory.", "Copy its folder there, instead of a link to it.")
        return found

    def close(self, seconds: float) -> bool:
        """Stop every run and wait a moment for them to end; whether they did."""
        self._devices.closing.set()
        end = time.monotonic() + seconds
        alive = [made for made in [*self._known.values(), *self._starting] if not made.ended.is_set()]
        return all(made.ended.wait(max(0.0, end - time.monotonic())) for made in alive)

    def _check_room(self) -> None:
        alive = {id(other): other for other in [*self._known.values(), *self._starting] if not other.ended.is_set()}
        if len(alive) >= MOST_ALIVE:
            raise ServerError(f"{len(alive)} runs are at work or waiting already.", "Wait for one (run_status), or stop one (cancel_run).")

    def _launch(self, made: Background, carry: Callable[[], None]) -> Background:
        made.thread = threading.Thread(target=_guarded, args=(made, carry), name="discovery-run", daemon=True)
        made.thread.start()
        made.begun.wait()
        if made.problem is not None:
            raise made.problem
        return made


class _Holding:
    """A device that is taken in the middle of a run and given back at its end."""

    def __init__(self, devices: Devices, device: str) -> None:
        self._devices, self._device = devices, device
        self._held: Any = None

    def __enter__(self) -> _Holding:
        return self

    def take(self, what: str, work: Work) -> None:
        held = self._devices.held(self._device, what, work)
        held.__enter__()
        self._held = held

    def __exit__(self, *fault: Any) -> None:
        if self._held is not None:
            self._held.__exit__(None, None, None)


def _guarded(made: Background, carry: Callable[[], None]) -> None:
    try:
        carry()
    except Interrupted:
        made.problem = ServerError("The run was stopped.", "Go on with its run_id.") if not made.begun.is_set() else None
    except DiscoveryError as fault:
        made.problem = fault
    except Exception as fault:  # noqa: BLE001  # the thread's end: told by id, as a tool's would be
        made.problem = ServerError(reported("a run", fault), "Report it; the run can be tried again.")
    finally:
        made.ended.set()
        made.begun.set()
