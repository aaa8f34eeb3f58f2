"""Errors that an assistant can fix, beyond those of `discovery.errors`.

    DiscoveryError
    └── ServerError                 a fault of the call, not of the model or the task
        ├── UnknownModelError       a `model_id` that is not loaded: from before a restart, dropped,
        │                           or misspelt
        ├── PathNotAllowedError     a path outside the directories that may be read
        ├── BusyError               too many calls wait for the device already
        └── SetupError              a client's configuration or a study's folder cannot be written

The server answers a `DiscoveryError` with its text. Any other exception is a bug: its traceback
goes to standard error under an id, and the assistant receives only the id.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

from discovery.errors import DiscoveryError

LOG = logging.getLogger("circuit_scout.server")


class ServerError(DiscoveryError):
    """A call that the server cannot carry out as it was made."""


class UnknownModelError(ServerError):
    """A `model_id` under which no model is loaded.

    Args:
        model_id: the handle that was given.
        loaded: the handles that are loaded.
        call: the load_model call that gives this handle, if it is known.

        >>> print(UnknownModelError("gpt2-cpu", ["bundled-cpu"]))
        No model is loaded as 'gpt2-cpu'; loaded: bundled-cpu.
        Call load_model with the same `model` as before: the same arguments give the same model_id.
    """

    def __init__(self, model_id: str, loaded: Sequence[str], call: str | None = None) -> None:
        advice = f"Call {call}" if call else "Call load_model with the same `model` as before"
        super().__init__(
            f"No model is loaded as {model_id!r}; loaded: {', '.join(loaded) or 'none'}.",
            f"{advice}: the same arguments give the same model_id.",
        )
        self.model_id = model_id


class PathNotAllowedError(ServerError):
    """A path outside the directories that this server may read."""


class BusyError(ServerError):
    """More calls than may wait for one device."""


class SetupError(ServerError):
    """A client's configuration, or a study's folder, that cannot be written."""


def log_bug(place: str, error: BaseException) -> str:
    """Log a bug with its traceback, and return the text that may be shown.

    Args:
        place: what failed: the name of a tool, or "a run".
        error: the exception.
    """
    number = secrets.token_hex(4)
    traceback = (type(error), error, error.__traceback__)
    LOG.error("bug %s in %s", number, place, exc_info=traceback)
    return (
        f"Internal error {number} in {place}: a bug in Circuit Scout, not in the call.\n"
        "The server's log has its traceback under that id."
    )
