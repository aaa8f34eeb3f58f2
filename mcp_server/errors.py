"""What an assistant can fix about a call to the server, on top of what `discovery.errors` already names.

    DiscoveryError
    └── ServerError              a fault of the call, not of the model or the task
        ├── UnknownModelError    a `model_id` that is not loaded: from before a restart, dropped, or misspelt
        ├── PlaceError           a path outside the directories that may be read
        └── BusyError            too much is waiting for the device already

The server answers a `DiscoveryError` with its text. Anything else is a bug: its traceback goes to standard error under an id, and only
the id to the assistant.
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
        model_id: the handle given.
        loaded: the handles that would have worked.
        call: the load_model call that gives this handle, where it can be told.

        >>> print(UnknownModelError("gpt2-cpu", ["bundled-cpu"]))
        No model is loaded as 'gpt2-cpu'; loaded: bundled-cpu.
        Call load_model with the same `model` as before: the same arguments give the same model_id.
    """

    def __init__(self, model_id: str, loaded: Sequence[str], call: str | None = None) -> None:
        how = f"Call {call}" if call else "Call load_model with the same `model` as before"
        super().__init__(
            f"No model is loaded as {model_id!r}; loaded: {', '.join(loaded) or 'none'}.",
            f"{how}: the same arguments give the same model_id.",
        )
        self.model_id = model_id


class PathNotAllowedError(ServerError):
    """A path outside the directories that this server may read."""


class BusyError(ServerError):
    """More calls than may wait for one device."""


def log_bug(what: str, error: BaseException) -> str:
    """Log a bug with its traceback; returns the text that may be shown, with the id to look for."""
    number = secrets.token_hex(4)
    LOG.error("bug %s in %s", number, what, exc_info=(type(error), error, error.__traceback__))
    return f"Internal error {number} in {what}: a bug in Circuit Scout, not in the call.\nThe server's log has its traceback under that id."
