"""What a computation costs, in multiply-adds of matmuls, and the meter that adds it up.

A *forward-pass equivalent* is the work of one prompt through all layers and positions, attention scores included, with
unembedding at the answer position only (INTERFACES). It does not depend on the machine, so two methods can be compared
by it anywhere. A backward pass counts 2.

What a measurement cost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from discovery.backends.info import ModelInfo
from discovery.backends.remote.status import StatusListener
from discovery.errors import BudgetError
from discovery.progress import Progress, ProgressCallback, report_progress

BACKWARD_COST = 2  # forward passes that one backward pass counts


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
    """Multiply-adds of one row.

    Args:
        positions: how many are computed.
        before: earlier positions whose keys and values are reused.
        start, stop, middle, narrow: as in `Batch`.
        columns: vocabulary entries unembedded at the answer position.
    """
    layers = (info.n_layers if stop is None else stop) - start
    scores = 2 * info.n_heads * info.d_head * positions * (n_prefix + positions)
    attention = positions * info.macs_attention + scores
    skipped = attention if after_attention and layers > 0 else 0
    behind = (
        info.n_heads * info.d_head * info.d_model + info.macs_mlp
    )  # the last layer's output projection and MLP, at one position
    spared = (positions - 1) * behind if last_position_only and layers > 0 else 0
    return (
        layers * (attention + positions * info.macs_mlp) - skipped - spared + info.d_model * columns
    )


def prompt_macs(info: ModelInfo, length: int) -> int:
    """Multiply-adds of one prompt: one forward-pass equivalent."""
    return row_macs(info, length, columns=info.n_logits)


def forward_equivalents(info: ModelInfo, macs: int, lengths: Iterable[int]) -> float:
    """Return the forward-pass equivalents of one row for each prompt.

    Args:
        info: the model.
        macs: multiply-adds that each row takes.
        lengths: the number of tokens of each row's prompt; the row counts as a share of its pass.
    """
    return sum(macs / prompt_macs(info, length) for length in lengths)


@dataclass
class Meter:
    """Adds up work and stops it where a budget ends.

    Attributes:
        limit: forward-pass equivalents allowed; None is unlimited.
        spent: forward-pass equivalents done so far.
        passes: batches run.
        progress: told after each batch; may raise Interrupted.
        expected: what the present piece of work was estimated to cost, for progress.
    """

    limit: float | None = None
    spent: float = 0.0
    passes: int = 0
    progress: ProgressCallback | None = None
    label: str = ""
    _done: float = 0.0
    _expected: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, label: str, expected: float) -> None:
        """Name the piece of work that starts now and what it is estimated to cost.

        Raises:
            BudgetError: where the budget does not reach it; nothing has been run then.
        """
        if self.limit is not None and expected > 0 and self.spent + expected > self.limit:
            raise BudgetError(
                f"{label} needs {expected:.0f} forward-pass equivalents, "
                f"and {max(self.limit - self.spent, 0):.0f} of {self.limit:.0f} are left.",
                "Raise the budget, or use fewer pairs.",
            )
        self.label, self._done, self._expected = label, 0.0, expected
        self._report()

    def add(self, equivalents: float) -> None:
        """Count work that was done."""
        with self._lock:
            self.spent += equivalents
            self.passes += 1
            self._done += equivalents
        self._report()

    @property
    def listener(self) -> StatusListener | None:
        """Reports what a batch of a remote model waits for; None if nobody follows the progress."""
        return None if self.progress is None else self._report

    def _report(self, waiting_for: str | None = None) -> None:
        progress = Progress(
            step=self.label,
            done=self._done,
            total=max(self._expected, self._done),
            waiting_for=waiting_for,
        )
        report_progress(self.progress, progress)


@dataclass(frozen=True)
class MeasurementCost:
    """Work and time.

    Attributes:
        forward_equivalents: matmul multiply-adds, in full passes of the same prompts, cached passes included.
        seconds: wall-clock time.
    """

    forward_equivalents: float
    seconds: float
