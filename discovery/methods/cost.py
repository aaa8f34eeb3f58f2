"""What a measurement cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Work and time.

    Attributes:
        forward_equivalents: matmul multiply-adds, in full passes of the same prompts, cached passes included.
        seconds: wall-clock time.
    """

    forward_equivalents: float
    seconds: float
