"""How jobs travel: as one session of nnsight, to a server or to nnsight's own simulation of one in this process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from discovery.backends.nnsight.backend import import_nnsight
from discovery.backends.remote import server_code


class Service(Protocol):
    """What runs jobs on a model.

    Attributes:
        address: where it computes, as it is recorded; None in this process.
        requests: how many were sent.
    """

    @property
    def address(self) -> str | None: ...
    @property
    def requests(self) -> int: ...

    def run(self, net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What each job found."""


@dataclass
class SimulatedService:
    """Serialised as for a server, deserialised with this project's modules hidden, and run in this process."""

    address: str | None = None
    requests: int = 0

    def run(self, net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from nnsight.intervention.backends.local import LocalSimulationBackend

        self.requests += 1
        with _restore_sys_path(), torch.no_grad():
            return run_session(net, jobs, LocalSimulationBackend(net))


def run_session(net: Any, jobs: list[dict[str, Any]], backend: Any) -> list[dict[str, Any]]:
    """One session: its body, the functions and the jobs travel."""
    nnsight = import_nnsight()
    nnsight.register(server_code.__name__)
    save, serve = nnsight.save, server_code.run_jobs
    answers: list[dict[str, Any]] = []
    with net.session(backend=backend):
        answers = save(serve(net, jobs))
    return answers


@contextlib.contextmanager
def _restore_sys_path() -> Iterator[None]:
    """The simulation puts what it hid behind everything else in sys.path."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
