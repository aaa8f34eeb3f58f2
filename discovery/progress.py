"""How far a piece of work is, as a value that is handed to whoever shows or limits the work.

A measurement takes an optional callback `progress`. Every function of two kinds is accepted:

- a plain function `progress(done, total, label)`, which is the public form, and
- a `ProgressListener`, which receives the whole `Progress`: the step and the status of a remote
  model as separate fields, and the unit in which the work is counted.

Both may raise `Interrupted`, which ends the work after the present batch. This module needs no
torch, so that the command line and the server can use it at once.

    >>> waiting = Progress(step="head_out", done=2, total=8, waiting_for="NDIF: queued")
    >>> report_progress(lambda done, total, label: print(done, total, label), waiting)
    2 8 head_out · NDIF: queued
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ProgressUnit = Literal["forward-pass equivalents", "tokens"]

ProgressCallback = Callable[[float, float, str], None]
"""Called with what is done, the total, and a label; may raise Interrupted."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the present step is.

    Attributes:
        step: what is being computed, for example "resid_pre denoising".
        done: work done in this step, which counts from 0.
        total: the estimated work of the whole step. It is never below `done`, and equals `done`
            if there is no estimate.
        unit: what `done` and `total` count.
        waiting_for: the status of a model that runs elsewhere, for example "NDIF: queued"; None
            if nothing is waited for.
    """

    step: str
    done: float
    total: float
    unit: ProgressUnit = "forward-pass equivalents"
    waiting_for: str | None = None

    @property
    def label(self) -> str:
        """The step, and after it what the step waits for, as people read it."""
        return self.step if self.waiting_for is None else f"{self.step} · {self.waiting_for}"


class ProgressListener(ABC):
    """A progress callback that receives a `Progress` instead of three loose values."""

    @abstractmethod
    def update(self, progress: Progress) -> None:
        """Take note of the progress.

        Raises:
            Interrupted: if the work is to stop.
        """

    def __call__(self, done: float, total: float, label: str) -> None:
        """Accept the public form of a progress callback."""
        self.update(Progress(step=label, done=done, total=total))


def report_progress(callback: ProgressCallback | None, progress: Progress) -> None:
    """Hand the progress to a callback of either kind; None receives nothing.

    Raises:
        Interrupted: from the callback.
    """
    if isinstance(callback, ProgressListener):
        callback.update(progress)
    elif callback is not None:
        callback(progress.done, progress.total, progress.label)
