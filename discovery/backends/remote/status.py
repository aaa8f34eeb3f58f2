"""The status of a model that runs on another machine, passed on to whoever shows progress.

A backend only runs batches and knows nothing of progress. If a batch waits in a queue on another
machine, the backend reports the status here. It goes to the listener that is set at that time: the
engine sets one for its meter, and so does a command that loads a model. Without a listener the
status goes into the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

StatusListener = Callable[[str], None]  # may raise Interrupted, which ends the waiting

LOG = logging.getLogger("circuit_scout.ndif")
_listener: ContextVar[StatusListener | None] = ContextVar("listener", default=None)


@contextmanager
def listen_to_status(listener: StatusListener | None) -> Iterator[None]:
    """Send every status that is reported in the block to `listener`; None sends it to the log."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def report_status(status: str) -> None:
    """Report what a batch or a load is waiting for on the other machine.

    Raises:
        Interrupted: from the listener.
    """
    listener = _listener.get()
    if listener is None:
        LOG.info(status)
    else:
        listener(status)
