"""The errors that a caller can fix, as one tree of exceptions.

    DiscoveryError                 the base class
    ├── SiteError                  a site or node does not exist (in this model)
    ├── TaskError                  a task file or a pair breaks a rule
    ├── ModelError                 a directory or name is not a model that can be loaded
    │   ├── BackendMismatchError   the backend computes other logits than Hugging Face does
    │   └── RemoteError            a job failed on another machine
    ├── FeatureError               a sparse autoencoder cannot be loaded or does not fit the model
    ├── MeasurementError           the arguments of a measurement do not fit together
    │   └── NotFiniteError         a metric is NaN or infinite
    ├── BudgetError                the budget is smaller than the estimated cost
    ├── MemoryLimitError           not even one row fits in the allowed memory
    └── StoreError                 a run folder is locked, missing or damaged

    Interrupted                    the user stopped the work (Ctrl-C, SIGTERM, a cancel); no error

Any other exception is a bug. A message has two lines: the cause, and the cure, which says what to
do about it.
"""

from __future__ import annotations

from collections.abc import Sequence


class DiscoveryError(Exception):
    """An error in the input, which the caller can fix.

    Attributes:
        cause: one sentence that names the value that was given and what is allowed.
        cure: one sentence that says what to do next.
        detail: the message of another library, if the error came from one. The command line and a
            notebook show it. The server only logs it, because whoever reads its answers may not own
            the machine.
        run_id: the run that the error ended, if it can be resumed.
    """

    run_id: str | None = None

    def __init__(self, cause: str, cure: str, *, detail: str = "") -> None:
        super().__init__(f"{cause}\n{cure}")
        self.cause = cause
        self.cure = cure
        self.detail = detail
        if detail:
            self.add_note(f"Details: {detail}")


class SiteError(DiscoveryError):
    """A site or node is misspelt, or this model does not have it."""


class TaskError(DiscoveryError):
    """A task, a pair or a split breaks a rule."""


class ModelError(DiscoveryError):
    """A name or directory is not a model that can be loaded."""


class BackendMismatchError(ModelError):
    """The backend's logits differ from those of the Hugging Face module that it wraps."""


class RemoteError(ModelError, RuntimeError):
    """The code that was sent to a server raised an exception there.

    It is a RuntimeError too, because in this process the code would have raised such an error.
    """


class FeatureError(DiscoveryError):
    """A sparse autoencoder cannot be loaded, does not fit the model, or lacks a feature."""


class MeasurementError(DiscoveryError):
    """The arguments of a measurement contradict one another or the model."""


class NotFiniteError(MeasurementError):
    """A metric was NaN or infinite.

    NaN marks missing grid cells, so it is never stored as a measurement.
    """


class BudgetError(DiscoveryError):
    """The budget is smaller than the cost of what must be done."""


class MemoryLimitError(DiscoveryError):
    """The memory limit is too small for a single prompt."""


class StoreError(DiscoveryError):
    """A run folder is missing, damaged, or locked by another process."""


class Interrupted(Exception):  # noqa: N818  (an event, not an error)
    """The user stopped the work. What was finished is on disk, and the run can be resumed.

    Attributes:
        run_id: the run to resume, if there is one.
    """

    run_id: str | None = None


def first_line(fault: Exception) -> str:
    """Return the first line of another library's exception, or the exception's name.

    If that line only announces the next one (it ends with a colon), the next is added.
    """
    lines = [line.strip() for line in str(fault).strip().splitlines()] or [type(fault).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def require_choice(
    name: str,
    value: object,
    choices: Sequence[str],
    error: type[DiscoveryError] = MeasurementError,
) -> None:
    """Check that an argument is one of its choices.

    Raises:
        DiscoveryError: the given kind of error; it names the argument and what is allowed.
    """
    if value not in choices:
        raise error(f"{name} {value!r} is not known.", f"Allowed: {', '.join(choices)}.")
