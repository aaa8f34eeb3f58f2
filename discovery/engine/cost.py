"""What a computation costs, in multiply-adds of matrix products, and the meter that adds it up.

A *forward-pass equivalent* is the work of one prompt through all layers and positions, attention
scores included, with unembedding at the answer position only (docs/definitions.md, "Cost"). It does
not depend on the machine, so methods can be compared by it. A backward pass counts as two forward
passes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from discovery.backends.info import ModelInfo
from discovery.backends.remote.status import StatusListener
from discovery.errors import BudgetError
from discovery.progress import Progress, ProgressCallback, report_progress

BACKWARD_COST = 2  # forward passes that one backward pass counts as


def row_macs(
    info: ModelInfo,
    positions: int,
    n_prefix: int = 0,
    *,
    start: int = 0,
    stop: int | None = None,
    after_attention: bool = False,
    last_position_only: bool = False,
    columns: int,
) -> int:
    """Return the multiply-adds of one row.

    Args:
        info: the model.
        positions: the number of positions that are computed.
        n_prefix: the number of earlier positions whose keys and values are reused.
        start: the first layer that is run.
        stop: the first layer that is not run; None means that all later ones are.
        after_attention: whether the start layer's attention is skipped.
        last_position_only: whether the last layer computes its output projection and its MLP at
            one position only.
        columns: the number of vocabulary entries that are unembedded at the answer position.
    """
    layers = (info.n_layers if stop is None else stop) - start
    scores = 2 * info.n_heads * info.d_head * positions * (n_prefix + positions)
    attention = positions * info.macs_attention + scores
    skipped = attention if after_attention and layers > 0 else 0
    projection_and_mlp = info.n_heads * info.d_head * info.d_model + info.macs_mlp
    is_restricted = last_position_only and layers > 0
    spared = (positions - 1) * projection_and_mlp if is_restricted else 0
    blocks = layers * (attention + positions * info.macs_mlp)
    return blocks - skipped - spared + info.d_model * columns


def prompt_macs(info: ModelInfo, length: int) -> int:
    """Return the multiply-adds of one prompt, which are one forward-pass equivalent."""
    return row_macs(info, length, columns=info.n_logits)


def forward_equivalents(info: ModelInfo, macs: int, lengths: Iterable[int]) -> float:
    """Return the forward-pass equivalents of several rows.

    Args:
        info: the model.
        macs: the multiply-adds of each row.
        lengths: for each row, the number of tokens of its prompt.
    """
    return sum(macs / prompt_macs(info, length) for length in lengths)


@dataclass(kw_only=True)
class Meter:
    """Adds up the work that is done, and refuses work that a budget does not allow.

    Attributes:
        limit: the forward-pass equivalents that are allowed; None means no limit.
        spent: the forward-pass equivalents that have been done.
        passes: the number of batches that have been run.
        refusals: how often work was refused because the limit did not allow it.
        progress: is called after each batch. It may raise Interrupted.
        label: the name of the step that is running.
    """

    limit: float | None = None
    spent: float = 0.0
    passes: int = 0
    refusals: int = 0
    progress: ProgressCallback | None = None
    label: str = ""
    _done: float = 0.0
    _expected: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, label: str, expected: float) -> None:
        """Announce the step that starts now.

        Args:
            label: its name, for the progress.
            expected: the forward-pass equivalents that it is estimated to cost.

        Raises:
            BudgetError: if that is more than is left. Nothing of the step has been run then.
        """
        if self.limit is not None and expected > 0 and self.spent + expected > self.limit:
            self.refusals += 1
            raise BudgetError(
                f"{label} needs {expected:.0f} forward-pass equivalents, "
                f"and {max(self.limit - self.spent, 0):.0f} of {self.limit:.0f} are left.",
                "Raise the budget, or use fewer pairs.",
            )
        self.label = label
        self._done = 0.0
        self._expected = expected
        self.report()

    def add(self, equivalents: float) -> None:
        """Count a batch that was run."""
        with self._lock:
            self.spent += equivalents
            self.passes += 1
            self._done += equivalents
        self.report()

    @property
    def listener(self) -> StatusListener | None:
        """Reports what a batch of a remote model waits for; None if nobody follows the progress."""
        return None if self.progress is None else self.report

    def report(self, waiting_for: str | None = None) -> None:
        """Call the progress callback, which may end the work or let others use the device.

        A batch that consists of several passes calls this between them. No pass of the model may be
        under way, except that of a remote model.

        Args:
            waiting_for: the status of the remote model whose pass is under way.

        Raises:
            Interrupted: from the callback.
        """
        progress = Progress(
            step=self.label,
            done=self._done,
            total=max(self._expected, self._done),
            waiting_for=waiting_for,
        )
        report_progress(self.progress, progress)


@dataclass(frozen=True)
class MeasurementCost:
    """What a measurement cost.

    Attributes:
        forward_equivalents: the work in forward-pass equivalents, cached passes included.
        seconds: the wall-clock time.
    """

    forward_equivalents: float
    seconds: float


class CostTimer:
    """Measures what the work on one meter costs from the moment the timer is made."""

    def __init__(self, meter: Meter, began: float | None = None) -> None:
        """Start the timer.

        Args:
            meter: counts the work.
            began: a `time.monotonic()` from which the seconds are counted instead, for a
                measurement that did something before it had a meter.
        """
        self._meter = meter
        self._spent_before = meter.spent
        self._began = time.monotonic() if began is None else began

    @property
    def cost(self) -> MeasurementCost:
        """The forward-pass equivalents and seconds so far."""
        return MeasurementCost(
            self._meter.spent - self._spent_before, time.monotonic() - self._began
        )
