"""How a text is read and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass

from discovery.errors import MeasurementError
from discovery.methods.features.counts import require_counts


@dataclass(frozen=True)
class Sampling:
    """How a text is read and what is kept of it.

    Attributes:
        k: strongest contexts. bins: of equal share. per_bin: contexts of each.
        window: tokens of a pass. around: tokens on either side of a peak that are shown and tell contexts apart.
        skip: positions at the start of each window that are left out. most: positions to read at most. seed: of the even sample.
    """

    k: int = 10
    bins: int = 4
    per_bin: int = 3
    window: int = 128
    around: int = 10
    skip: int = 1
    most: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"k": 1, "bins": 0, "per_bin": 1, "window": 2, "around": 0, "skip": 0, "most": 1, "seed": 0}
        require_counts(**{name: (getattr(self, name), bound) for name, bound in least.items() if name != "most" or self.most is not None})
        if self.skip >= self.window:
            raise MeasurementError(f"skip is {self.skip}, and a window has {self.window} tokens.", "Leave some of each window.")

    @property
    def sample(self) -> int:
        """Contexts of the even sample."""
        return max(256, 16 * self.bins * self.per_bin) if self.bins else 0
