"""Everything a caller can fix, as one exception tree.

    DiscoveryError                 what was given, what is allowed, what to do next
    ├── SiteError                  a site or node name that does not exist (in this model)
    ├── TaskError                  a task file or pair that breaks a rule, with its line
    ├── ModelError                 a directory or name that is not a model we can load
    │   ├── BackendMismatchError   the backend computes other logits than Hugging Face does
    │   └── RemoteError            a job that failed on another machine
    ├── FeatureError               a sparse autoencoder that cannot be loaded, or does not fit the model
    ├── MeasurementError           arguments of a measurement that cannot hold
    │   └── NotFiniteError         a model that gives no number
    ├── BudgetError                the budget does not reach, with the estimate
    ├── MemoryLimitError           not even one row fits the memory allowed
    └── StoreError                 a run folder that is locked, missing or damaged

    Interrupted                    the user stopped the work (Ctrl-C, SIGTERM, a cancel): not an error

Anything else that is raised is a bug. Each message is one line of cause and one of cure.
"""

from __future__ import annotations


class DiscoveryError(Exception):
    """A fault of the input that the caller can mend.

    Args:
        cause: one sentence that names the value given and what is allowed.
        cure: one sentence that says what to do next.
        detail: what another library said, where the fault came from one. The command line and a notebook show it; the server, whose
            reader is not always the machine's owner, writes it into its log alone.

    Attributes:
        run_id: the run that it ended, where there is one that can be resumed.
    """

    run_id: str | None = None

    def __init__(self, cause: str, cure: str, *, detail: str = "") -> None:
        super().__init__(f"{cause}\n{cure}")
        self.cause = cause
        self.cure = cure
        self.detail = detail
        if detail:
            self.add_note(f"It was told: {detail}")


class SiteError(DiscoveryError):
    """A site or node that is misspelt, or that this model does not have."""


class TaskError(DiscoveryError):
    """A task, a pair or a split that breaks a rule."""


class ModelError(DiscoveryError):
    """A name or directory that is not a model we can load."""


class BackendMismatchError(ModelError):
    """The backend's logits are not those of the Hugging Face module it wraps."""


class RemoteError(ModelError, RuntimeError):
    """What was sent to a server raised an exception there; in this process it would have been a RuntimeError or its like."""


class FeatureError(DiscoveryError):
    """A sparse autoencoder that cannot be loaded or does not fit the model, or a feature it does not have."""


class MeasurementError(DiscoveryError):
    """A measurement whose arguments contradict one another or the model."""


class NotFiniteError(MeasurementError):
    """A metric that is infinite or no number: of a cell that would pass for one that a pair does not have."""


class BudgetError(DiscoveryError):
    """The budget is smaller than what must be done."""


class MemoryLimitError(DiscoveryError):
    """The memory limit is too small for a single prompt."""


class StoreError(DiscoveryError):
    """A run folder that is missing, damaged, or held by another process."""


class Interrupted(Exception):  # noqa: N818  (an event, not an error)
    """The work was stopped from outside; what was finished is on disk and can be resumed.

    Attributes:
        run_id: the run to resume, where there is one.
    """

    run_id: str | None = None


def first_line(fault: Exception) -> str:
    """What an exception of another library says first, or its name."""
    lines = [line.strip() for line in str(fault).strip().splitlines()] or [type(fault).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
