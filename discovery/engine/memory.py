"""What measuring takes of memory, from a model's sizes alone: so it can be said before the model is loaded.

The engine divides the memory it may take: so much for the cached runs of some pairs, so much for a batch of rows, and the rest for what
joins parts. The shares are in whole percent, so that what is said to be needed is.

Freed memory that the C library keeps, given back before a process is seen to hold more than it may.

glibc puts blocks of up to 32 MB into a heap, which tears as tensors of many sizes come and go: it holds up to twice what is in use (seen
with GPT-NeoX). A process is judged by what it holds. Returning all of it after each batch would cost a twentieth of the time, so
it is done only where there is much of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from discovery.backends.hardware.memory import trim_heap
from discovery.backends.info import ModelDescription
from discovery.sites import MetricName

USED_PERCENT = (
    67  # percent of its limit that a sweep takes: 59 to 77, as `benchmarks.memory` measures it
)
CACHE_PERCENT, BATCH_PERCENT = (
    35,
    30,
)  # percent of the memory; the rest is for what joins parts, and for what the allocator does not give back
STREAMS_PER_LAYER, STREAMS_WITHOUT_MLP = (
    4,
    2,
)  # cached of a layer: the stream, in front of its MLP too, and what attention and MLP add
STREAMS_PER_ROW = 9  # streams of a row at once, beside what its MLP computes
SCORE_COPIES = 8  # of attention at once
VOCABULARY_COPIES: Mapping[MetricName, int] = {
    "logit_difference": 1,
    "probability_difference": 3,
    "kl_divergence": 8,
}  # held at once


def pair_bytes(model: ModelDescription, tokens: int, extra: int = 0) -> int:
    """The cached runs of one pair, both sides; `further` numbers a layer and position beyond what every sweep holds."""
    layer = (
        (STREAMS_WITHOUT_MLP if model.attn_only else STREAMS_PER_LAYER) * model.d_model
        + (model.n_heads + 2 * model.n_kv_heads) * model.d_head
        + extra
    )
    return (
        2
        * model.itemsize
        * (model.n_layers * tokens * layer + tokens * model.d_model + model.n_logits)
    )


def row_bytes(model: ModelDescription, first: int, end: int) -> int:
    """What one row of a batch takes at its peak, from position `first` to `end`; most models take less."""
    tokens = end - first
    wide = STREAMS_PER_ROW * model.d_model + model.macs_mlp // max(model.d_model, 1)
    scores = SCORE_COPIES * model.n_heads * tokens * end
    kept = (
        2 * model.n_layers * model.n_kv_heads * model.d_head * (first + end) if first else 0
    )  # given, and joined to the row's own
    return model.itemsize * (tokens * wide + scores + kept + 4 * model.n_logits)


def metric_bytes(model: ModelDescription, metric: MetricName) -> int:
    """Of the metric of one row, beside its logits: a divergence goes through the vocabulary several times, in float32 at the least."""
    return 4 * VOCABULARY_COPIES[metric] * model.n_logits


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a sweep of `resid_pre`, an output or heads takes beside the model's weights.

    Attributes:
        sweep_pair: a sweep of one pair after the other; sweep: of all pairs together.
        limit: the least memory limit with which all pairs are swept together; a sweep stays below it.
        tokens, pairs: for which this is so.
    """

    sweep_pair: int
    sweep: int
    limit: int
    tokens: int
    pairs: int

    @classmethod
    def of(cls, model: ModelDescription, tokens: int = 32, pairs: int = 32) -> MemoryNeed:
        """For prompts of so many tokens, where the model takes as many."""
        tokens = min(tokens, model.n_ctx)
        one, limit = sweep_bytes(model, tokens), sweep_bytes(model, tokens, pairs)
        return cls(one * USED_PERCENT // 100, limit * USED_PERCENT // 100, limit, tokens, pairs)


def sweep_bytes(
    model: ModelDescription, tokens: int, pairs: int = 1, metric: MetricName = "logit_difference"
) -> int:
    """The least memory limit, beside the weights, with which so many pairs of so many tokens are swept together."""
    caches, batch = (
        pairs * pair_bytes(model, tokens),
        row_bytes(model, 0, tokens) + metric_bytes(model, metric),
    )
    return max(-(-100 * caches // CACHE_PERCENT), -(-100 * batch // BATCH_PERCENT))


TRIM_PERCENT = 50  # percent of a limit, beyond which what is kept is given back
REGROWTH_PERCENT = 5  # percent of it, by which a process that truly holds more has to grow before that is tried anew


class HeapTrimmer:
    """Watches how much a process holds more than when the watch began."""

    def __init__(self, limit: int) -> None:
        """Begin.

        Args:
            limit: bytes by which the process should not grow.
        """
        self._process = psutil.Process()
        self._regrowth = limit * REGROWTH_PERCENT // 100
        self._threshold = self._held() + limit * TRIM_PERCENT // 100

    def trim_if_grown(self) -> None:
        """Give back what is kept, where it is time to."""
        if self._held() > self._threshold:
            trim_heap()
            self._threshold = max(self._threshold, self._held() + self._regrowth)

    def _held(self) -> int:
        return int(self._process.memory_info().rss)
