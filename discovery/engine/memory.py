"""How much memory measurements take, and giving freed memory back to the system.

What a sweep needs follows from a model's sizes alone, so it can be said before the model is loaded.
The engine divides the memory it may take into shares: one for the cached runs of some pairs, one
for a batch of rows, and the rest for joining parts and for what the allocator does not give back.
The shares are whole percents and everything is counted in whole bytes, so that a limit computed
from a need is exactly enough.

glibc keeps freed blocks of up to 32 MB in its heap, which becomes fragmented as tensors of many
sizes come and go. It then holds up to twice what is in use (seen with GPT-NeoX), and the process
seems to exceed its limit. Returning everything after each batch would take about 5% of the time, so
`HeapTrimmer` does it only when the process has grown by much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from discovery.backends.hardware.memory import trim_heap
from discovery.backends.info import ModelDescription
from discovery.sites import MetricName

# A sweep takes 59% to 77% of its limit, as `benchmarks.performance.memory` measures it.
USED_PERCENT = 67
CACHE_PERCENT = 35  # of the memory, for cached runs
# The share of the free memory that measurements take if no limit is given.
FREE_MEMORY_SHARE = 0.6
BATCH_PERCENT = 30  # of the memory, for a batch of rows
# Streams [pos d_model] cached of a layer: resid_pre, resid_mid, attn_out and mlp_out.
STREAMS_PER_LAYER = 4
STREAMS_WITHOUT_MLP = 2
STREAMS_PER_ROW = 9  # streams that a row holds at once, beside what its MLP computes
SCORE_COPIES = 8  # copies of the attention scores that exist at once
# Vectors as long as the vocabulary that a metric holds at once.
VOCABULARY_COPIES: Mapping[MetricName, int] = {
    "logit_difference": 1,
    "probability_difference": 3,
    "kl_divergence": 8,
}


def pair_bytes(model: ModelDescription, tokens: int, extra: int = 0) -> int:
    """Return the bytes of the cached runs of one pair, both sides.

    Args:
        model: the model's sizes.
        tokens: the number of tokens of each side.
        extra: numbers to cache for each layer and position beside what every sweep caches.
    """
    streams = STREAMS_WITHOUT_MLP if model.attn_only else STREAMS_PER_LAYER
    heads = model.n_heads + 2 * model.n_kv_heads
    per_layer = streams * model.d_model + heads * model.d_head + extra
    numbers = model.n_layers * tokens * per_layer + tokens * model.d_model + model.n_logits
    return 2 * model.itemsize * numbers


def row_bytes(model: ModelDescription, first: int, end: int) -> int:
    """Return an upper bound of the bytes that one row of a batch takes at its peak.

    Args:
        model: the model's sizes.
        first: the first position that is computed; keys and values of earlier ones are reused.
        end: the position after the last one that is computed.
    """
    tokens = end - first
    per_position = STREAMS_PER_ROW * model.d_model + model.macs_mlp // max(model.d_model, 1)
    scores = SCORE_COPIES * model.n_heads * tokens * end
    prefix = 0
    if first:  # the prefix as it is given, and joined to the row's own keys and values
        prefix = 2 * model.n_layers * model.n_kv_heads * model.d_head * (first + end)
    return model.itemsize * (tokens * per_position + scores + prefix + 4 * model.n_logits)


def metric_bytes(model: ModelDescription, metric: MetricName) -> int:
    """Return the bytes that the metric of one row takes beside its logits, in float32.

    A divergence needs several vectors as long as the vocabulary.
    """
    return 4 * VOCABULARY_COPIES[metric] * model.n_logits


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes beside the weights that a sweep of `resid_pre`, of an output or of heads takes.

    Attributes:
        sweep_pair: for a sweep that takes one pair after the other.
        sweep: for a sweep of all pairs together.
        limit: the smallest memory limit with which all pairs are swept together; a sweep stays
            below it.
        tokens: the number of tokens of each prompt that this is for.
        pairs: the number of pairs that this is for.
    """

    sweep_pair: int
    sweep: int
    limit: int
    tokens: int
    pairs: int

    @classmethod
    def of(cls, model: ModelDescription, tokens: int = 32, pairs: int = 32) -> MemoryNeed:
        """Return the need for prompts of so many tokens, or of as many as the model takes."""
        tokens = min(tokens, model.n_ctx)
        limit = sweep_bytes(model, tokens, pairs)
        return cls(
            sweep_pair=sweep_bytes(model, tokens) * USED_PERCENT // 100,
            sweep=limit * USED_PERCENT // 100,
            limit=limit,
            tokens=tokens,
            pairs=pairs,
        )


def sweep_bytes(
    model: ModelDescription, tokens: int, pairs: int = 1, metric: MetricName = "logit_difference"
) -> int:
    """Return the smallest memory limit with which all pairs are swept together.

    Args:
        model: the model's sizes.
        tokens: the number of tokens of each prompt.
        pairs: the number of pairs.
        metric: what is measured.
    """
    caches = pairs * pair_bytes(model, tokens)
    batch = row_bytes(model, 0, tokens) + metric_bytes(model, metric)
    return max(_divide_up(100 * caches, CACHE_PERCENT), _divide_up(100 * batch, BATCH_PERCENT))


def _divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)


TRIM_PERCENT = 50  # of the limit: growth beyond which freed memory is given back
# Percent of the limit by which a process that truly holds that much has to grow before memory is
# given back again.
REGROWTH_PERCENT = 5


class HeapTrimmer:
    """Gives freed memory back to the system when the process has grown."""

    def __init__(self, limit: int) -> None:
        """Start from the memory that the process holds now.

        Args:
            limit: the bytes by which the process should not grow.
        """
        self._process = psutil.Process()
        self._regrowth = limit * REGROWTH_PERCENT // 100
        self._threshold = self._resident_bytes() + limit * TRIM_PERCENT // 100

    def trim_if_grown(self) -> None:
        """Give freed memory back if the process has grown beyond the threshold."""
        if self._resident_bytes() > self._threshold:
            trim_heap()
            self._threshold = max(self._threshold, self._resident_bytes() + self._regrowth)

    def _resident_bytes(self) -> int:
        return int(self._process.memory_info().rss)
