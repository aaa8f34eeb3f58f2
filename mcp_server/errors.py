"""What an assistant can fix about a call to the server, on top of what `discovery.errors` already names.

    DiscoveryError
    └── ServerError              a fault of the call, not of the model or the task
        └── UnknownModelError    a `model_id` that is not loaded: from before a restart, dropped, or misspelt

The server answers a `DiscoveryError` with its text. Anything else is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence

from discovery.errors import DiscoveryError


class ServerError(DiscoveryError):
    """A call that the server cannot carry out as it was made."""


class UnknownModelError(ServerError):
    """A `model_id` under which no model is loaded.

    Args:
        model_id: the handle given.
        loaded: the handles that would have worked.

        >>> print(UnknownModelError("gpt2-cpu", ["bundled-cpu"]))
        No model is loaded as 'gpt2-cpu'; loaded: bundled-cpu.
        Call load_model with the same `model` as before: the same arguments give the same model_id.
    """

    def __init__(self, model_id: str, loaded: Sequence[str]) -> None:
        super().__init__(
            f"No model is loaded as {model_id!r}; loaded: {', '.join(loaded) or 'none'}.",
            "Call load_model with the same `model` as before: the same arguments give the same model_id.",
        )
        self.model_id = model_id
