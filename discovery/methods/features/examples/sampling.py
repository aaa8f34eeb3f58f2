"""How a text is read, and which contexts of each feature are kept.

Of the contexts in which a feature fires, the strongest are kept and an even sample of all. So
memory does not grow with the length of the text.

A context is identified by its tokens around the peak. A passage that a text repeats counts once,
with its largest activation. The sample consists of the contexts with the smallest hashes (a
bottom-k sketch, Cohen and Kaplan 2007). Which contexts these are depends on the seed alone, and not
on their order or on how often they are repeated. So quantiles are those of distinct contexts, and
they are exact if all contexts fit into the sample.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from discovery.errors import MeasurementError
from discovery.methods.arguments import require_counts


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a text is read, and what is kept of it.

    Attributes:
        k: how many of the strongest contexts to keep.
        bins: number of quantile ranges.
        per_bin: contexts shown of each range.
        window: tokens that are run together.
        around: tokens on either side of a peak that belong to its context.
        skip: positions at the start of each window that are left out.
        most: positions to read at most; None reads the whole text.
        seed: seed of the even sample.
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
        require_counts(
            k=(self.k, 1),
            bins=(self.bins, 0),
            per_bin=(self.per_bin, 1),
            window=(self.window, 2),
            around=(self.around, 0),
            skip=(self.skip, 0),
        )
        if self.most is not None:
            require_counts(most=(self.most, 1))
        require_counts(seed=(self.seed, 0))
        if self.skip >= self.window:
            raise MeasurementError(
                f"skip is {self.skip}, and a window has {self.window} tokens.",
                "Give a smaller skip, so that some positions of each window are read.",
            )

    @property
    def sample_size(self) -> int:
        """Contexts in the even sample."""
        return max(256, 16 * self.bins * self.per_bin) if self.bins else 0


@dataclass(frozen=True)
class PeakContext:
    """A feature's peak in one window, with the tokens around it.

    Attributes:
        document: number of the document.
        tokens: the token ids around the peak.
        activations: the feature's activation at each token.
        peak: which of the tokens is the peak.
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
    """Return the hash by which a context is identified."""
    return hashlib.blake2b(array("q", [seed, peak, *tokens]).tobytes(), digest_size=12).digest()


@dataclass(kw_only=True)
class ContextCollector:
    """Keeps the strongest contexts of one feature, and an even sample of all.

    Attributes:
        n_strongest: how many of the strongest are kept.
        sample_size: how many contexts the sample holds.
        n_offered: contexts offered so far, repetitions included.
        has_overflowed: whether the sample had to leave contexts out.
    """

    n_strongest: int
    sample_size: int
    n_offered: int = 0
    has_overflowed: bool = False
    _strongest: dict[bytes, PeakContext] = field(default_factory=dict)
    _sample: dict[bytes, PeakContext] = field(default_factory=dict)
    _weakest_kept: float = 0.0  # a new context must exceed it to be among the strongest
    _last_key: bytes = b""  # a new key must be smaller to enter the full sample

    def offer(self, key: bytes, value: float, make_context: Callable[[], PeakContext]) -> None:
        """Offer a context, and keep it if it is strong enough or belongs to the sample.

        Args:
            key: the context's hash.
            value: the activation at its peak.
            make_context: builds the context; it is called only if the context is kept.
        """
        self.n_offered += 1
        size = abs(value)
        strongest = self._strongest
        has_place = len(strongest) < self.n_strongest or key in strongest
        if has_place or size > self._weakest_kept:
            _keep_larger(strongest, key, size, make_context)
            if len(strongest) > self.n_strongest:
                del strongest[min(strongest, key=lambda k: (abs(strongest[k].value), k))]
            self._weakest_kept = min(abs(context.value) for context in strongest.values())
        sample = self._sample
        if len(sample) < self.sample_size or key in sample or key < self._last_key:
            _keep_larger(sample, key, size, make_context)
            if len(sample) > self.sample_size:
                self.has_overflowed = True
                del sample[max(sample)]
            self._last_key = max(sample) if len(sample) == self.sample_size else b""
        else:
            self.has_overflowed = True

    def strongest(self) -> list[PeakContext]:
        """Return the strongest contexts, the largest first."""
        contexts = self._strongest
        order = sorted(contexts, key=lambda key: (-abs(contexts[key].value), key))
        return [contexts[key] for key in order]

    def even_sample(self) -> list[PeakContext]:
        """Return the sample in the order of its hashes, which is independent of the content."""
        return [self._sample[key] for key in sorted(self._sample)]


def _keep_larger(
    contexts: dict[bytes, PeakContext],
    key: bytes,
    size: float,
    make_context: Callable[[], PeakContext],
) -> None:
    """Keep a context unless the same context is there with a peak that is at least as large."""
    if key not in contexts or size > abs(contexts[key].value):
        contexts[key] = make_context()
