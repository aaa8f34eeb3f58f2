"""SIGTERM, taken as Ctrl-C is, so that a run which is told to stop closes its folder and can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in here: not an Exception, so that no library takes it for a fault and goes on.

    Where this is not the main thread, which alone may say so, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
