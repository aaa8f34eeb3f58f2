"""What a model that computes elsewhere is waiting for, told to whoever shows progress.

A backend is given no progress: it runs a batch. Where the batch waits in a queue on another machine, what is known of that goes to whoever
listens while it runs (the engine does, for its meter; and a command that loads a model), else into the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

STATUS_SEPARATOR = " · "  # between a piece of work and what it waits for
StatusListener = Callable[[str], None]  # may raise Interrupted, which ends the waiting

LOG = logging.getLogger("circuit_scout.ndif")
_listener: ContextVar[StatusListener | None] = ContextVar("listener", default=None)


@contextmanager
def listen_to_status(listener: StatusListener | None) -> Iterator[None]:
    """Tell this one in here; None tells the log."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def report_status(status: str) -> None:
    """Say what is waited for.

    Raises:
        Interrupted: from the listener.
    """
    listener = _listener.get()
    if listener is None:
        LOG.info(status)
    else:
        listener(status)
