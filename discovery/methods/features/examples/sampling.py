"""How a text is read and what is kept of it.

What is kept of a stream of contexts: the strongest, and an even sample of the rest. Memory does not grow with the text.

A context is known by its tokens around the peak, so that what a text says many times counts once, with its largest activation. The sample
is the contexts whose hashes are smallest: which ones these are depends on the seed alone, not on the order or number of repetitions
(a bottom-k sketch, Cohen and Kaplan 2007), so that quantiles are those of distinct contexts, and exact where all of them fit.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from discovery.errors import MeasurementError
from discovery.methods.features.arguments import require_counts


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
        least = {
            "k": 1,
            "bins": 0,
            "per_bin": 1,
            "window": 2,
            "around": 0,
            "skip": 0,
            "most": 1,
            "seed": 0,
        }
        require_counts(
            **{
                name: (getattr(self, name), bound)
                for name, bound in least.items()
                if name != "most" or self.most is not None
            }
        )
        if self.skip >= self.window:
            raise MeasurementError(
                f"skip is {self.skip}, and a window has {self.window} tokens.",
                "Leave some of each window.",
            )

    @property
    def sample_size(self) -> int:
        """Contexts of the even sample."""
        return max(256, 16 * self.bins * self.per_bin) if self.bins else 0


@dataclass(frozen=True)
class PeakContext:
    """A peak of a feature and what stands around it.

    Attributes:
        number: of the document. tokens: around the peak; activations: of each; peak: which of them it is.
    """

    document: int
    tokens: tuple[int, ...]
    activations: tuple[float, ...]
    peak: int

    @property
    def value(self) -> float:
        """The activation at the peak."""
        return self.activations[self.peak]


def context_key(tokens: Sequence[int], peak: int, seed: int) -> bytes:
    """What a context is known by."""
    return hashlib.blake2b(array("q", [seed, peak, *tokens]).tobytes(), digest_size=12).digest()


@dataclass
class ContextCollector:
    """The contexts of one feature.

    Attributes:
        most: the strongest kept. sample: how many of the even sample.
        seen: contexts offered, repetitions included. full: whether the sample had to leave some out.
    """

    n_strongest: int
    sample_size: int
    n_offered: int = 0
    has_overflowed: bool = False
    _top: dict[bytes, PeakContext] = field(default_factory=dict)
    _even: dict[bytes, PeakContext] = field(default_factory=dict)
    _least: float = 0.0  # what a context must exceed to be among the strongest
    _last: bytes = b""  # what a key must come before to be in the sample

    def offer(self, key: bytes, value: float, make_context: Callable[[], PeakContext]) -> None:
        """A context with its peak's size; it is only made where it is kept."""
        self.n_offered += 1
        size = abs(value)
        if len(self._top) < self.n_strongest or key in self._top or size > self._least:
            _put(self._top, key, size, make_context)
            if len(self._top) > self.n_strongest:
                del self._top[min(self._top, key=lambda one: (abs(self._top[one].value), one))]
            self._least = min(abs(context.value) for context in self._top.values())
        if len(self._even) < self.sample_size or key in self._even or key < self._last:
            _put(self._even, key, size, make_context)
            if len(self._even) > self.sample_size:
                self.has_overflowed = True
                del self._even[max(self._even)]
            self._last = max(self._even) if len(self._even) == self.sample_size else b""
        else:
            self.has_overflowed = True

    def strongest(self) -> list[PeakContext]:
        """The strongest, the first first."""
        return [
            self._top[key]
            for key in sorted(self._top, key=lambda one: (-abs(self._top[one].value), one))
        ]

    def even_sample(self) -> list[PeakContext]:
        """The sample in the order of its keys, which is no order at all."""
        return [self._even[key] for key in sorted(self._even)]


def _put(
    kept: dict[bytes, PeakContext], key: bytes, size: float, make_context: Callable[[], PeakContext]
) -> None:
    if key not in kept or size > abs(kept[key].value):
        kept[key] = make_context()
