"""How jobs are run: in one nnsight session, on a server or in nnsight's own simulation of one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from discovery.backends.nnsight.backend import import_nnsight
from discovery.backends.remote import server_code
from discovery.backends.remote.jobs import Job


class Service(Protocol):
    """Something that runs jobs on a model.

    Attributes:
        address: where it computes, as it is recorded; None if that is this process.
        requests: the number of requests that have been sent.
    """

    @property
    def address(self) -> str | None: ...
    @property
    def requests(self) -> int: ...

    def run(self, model: Any, jobs: list[Job]) -> list[dict[str, Any]]:
        """Run jobs on nnsight's wrapper of a model, and return the answer of each."""


@dataclass
class SimulatedService:
    """Runs jobs in this process as a server would.

    They are serialised, and deserialised while this project's modules are hidden.
    """

    address: str | None = None
    requests: int = 0

    def run(self, model: Any, jobs: list[Job]) -> list[dict[str, Any]]:
        from nnsight.intervention.backends.local import LocalSimulationBackend

        self.requests += 1
        with _restore_sys_path(), torch.no_grad():
            return run_session(model, jobs, LocalSimulationBackend(model))


def run_session(model: Any, jobs: list[Job], backend: Any) -> list[dict[str, Any]]:
    """Run jobs in one nnsight session; its body, the server code and the jobs are sent.

    Args:
        model: nnsight's wrapper of the model.
        jobs: what to run.
        backend: nnsight's backend, which sends the session.
    """
    nnsight = import_nnsight()
    nnsight.register(server_code.__name__)
    # The session's body is sent with its local variables, so all that it uses must be local.
    save = nnsight.save
    run_jobs = server_code.run_jobs
    answers: list[dict[str, Any]] = []
    with model.session(backend=backend):
        answers = save(run_jobs(model, jobs))
    return answers


@contextlib.contextmanager
def _restore_sys_path() -> Iterator[None]:
    """Restore the order of sys.path: the simulation removes entries and appends them at its end."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
