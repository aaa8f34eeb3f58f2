"""The unchanged runs of some pairs, which are computed once and serve every later measurement.

One pass over each side of each prompt gives the logits, activations, keys and values that sweeps,
ablations and controls need. These passes are also the first to meet the limits of memory, so the
number of rows that fit into a batch is kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.backends.hardware.memory import is_out_of_memory, release_memory
from discovery.backends.kv_cache import Prefix
from discovery.backends.remote.status import listen_to_status
from discovery.engine.cost import Meter, forward_equivalents, row_macs
from discovery.engine.memory import HeapTrimmer, row_bytes
from discovery.engine.prompts import Prompts, Side
from discovery.engine.rows import Window
from discovery.errors import MemoryLimitError
from discovery.interventions import Edit
from discovery.sites import ActivationKind, Site

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 131072, "mps": 16384}  # larger batches gain nothing
UNLIMITED_ROWS = 1 << 30


def tokens_per_batch(device: torch.device) -> int:
    """Return how many tokens a batch may have; a kind of device not listed has those of a CPU."""
    return TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])


Result = TypeVar("Result")


@dataclass(kw_only=True)
class CachedRuns:
    """Logits, activations, keys and values of unchanged prompts, computed when first asked for.

    Attributes:
        backend: the model.
        prompts: the pairs.
        meter: counts the work.
        memory: bytes that batches may take beside the caches.
        heap: gives freed memory back to the system when the process has grown.
    """

    backend: Backend
    prompts: Prompts
    meter: Meter
    memory: int
    heap: HeapTrimmer
    _sites: dict[tuple[Side, Site], Tensor] = field(default_factory=dict)
    _logits: dict[Side, Tensor] = field(default_factory=dict)
    _prefix: dict[Side, Prefix | None] = field(default_factory=dict)
    _max_rows: int | None = None

    def run(
        self, batch: Batch, reads: Sequence[Site] = (), edits: Sequence[Edit] = (), **options: bool
    ) -> BatchResult:
        """Run one batch on the model.

        If the model is on a server, what the request waits for is reported to the meter's progress,
        which may raise Interrupted to end the waiting.
        """
        with listen_to_status(self.meter.listener):
            return self.backend.run(batch, reads, edits, **options)

    def logits(self, side: Side) -> Float[Tensor, "pair d_vocab"]:
        """Return the logits at the answer position of the unchanged prompts."""
        if side not in self._logits:
            self.load(side, self.shared_sites)
        return self._logits[side]

    def activation(self, side: Side, site: Site) -> Float[Tensor, "pair pos ..."]:
        """Return a site of the unchanged prompts, right-padded.

        The values after a prompt's end mean nothing. Whoever asks for a site at one layer soon asks
        for it at the others, so one pass loads it at every layer, together with the sites that
        other sweeps will ask for.
        """
        if site.kind == "resid_post" and site.layer < self.backend.info.n_layers - 1:
            site = Site("resid_pre", site.layer + 1)
        if (side, site) not in self._sites:
            layers = range(self.backend.info.n_layers)
            is_shared = site in self.shared_sites
            self.load(side, [site] if is_shared else [Site(site.kind, layer) for layer in layers])
        return self._sites[side, site]

    @cached_property
    def shared_sites(self) -> tuple[Site, ...]:
        """The residual stream and what heads and MLPs add to it: one pass loads all of them."""
        info = self.backend.info
        kinds: list[ActivationKind] = ["resid_pre", "z", "attn_out"]
        if self.backend.abilities.after_attention:
            kinds.append("resid_mid")
        if not info.attn_only:
            kinds.append("mlp_out")
        end = Site("resid_post", info.n_layers - 1)  # the others are the next layer's resid_pre
        return (*(Site(kind, layer) for kind in kinds for layer in range(info.n_layers)), end)

    def load(self, side: Side, sites: Iterable[Site]) -> None:
        """Make sure that these sites are cached; all missing ones are read in one pass."""
        missing = [site for site in sites if (side, site) not in self._sites]
        if side not in self._logits or any(site in self.shared_sites for site in missing):
            missing += [
                site
                for site in self.shared_sites
                if (side, site) not in self._sites and site not in missing
            ]
        if missing:
            self._cache(side, missing)

    def residual(
        self, side: Side, layer: int, window: Window, *, after_attention: bool = False
    ) -> Float[Tensor, "n pos d_model"] | None:
        """Return the unchanged residual stream from which a run starts at a layer.

        At the input of layer 0 it is None: there a run starts from the tokens.
        """
        if layer == 0 and not after_attention:
            return None
        return self.stream(side, layer, window, after_attention=after_attention)

    def stream(
        self, side: Side, layer: int, window: Window, *, after_attention: bool = False
    ) -> Float[Tensor, "n pos d_model"]:
        """Return the unchanged residual stream at a layer's input, or after its attention.

        Args:
            layer: the layer; n_layers is the place after the last block.
        """
        if after_attention:
            site = Site("resid_mid", layer)
        elif layer == self.backend.info.n_layers:
            site = Site("resid_post", layer - 1)
        else:
            site = Site("resid_pre", layer)
        return self.activation(side, site)[window.pair, window.first : window.end]

    def prefix(self, side: Side) -> Prefix:
        """Return the keys and values of the unchanged prompts, one row for each pair."""
        if self._prefix.get(side) is None:
            self.load(side, self.shared_sites)
        prefix = self._prefix[side]
        assert prefix is not None
        return prefix

    def rows_that_fit(self, first: int, end: int, macs: int | None = None) -> int:
        """Return how many rows a batch may have that computes the positions first to end - 1.

        They fit in memory and take about a second (`Backend.max_rows_by_work`).

        Args:
            first: the first position that is computed.
            end: the position after the last one that is computed.
            macs: the multiply-adds of one row; None means a pass through the whole model.
        """
        info = self.backend.info
        if macs is None:
            macs = row_macs(info, end - first, first, columns=info.n_logits)
        return min(self.rows_in_memory(first, end), self.backend.max_rows_by_work(macs))

    def rows_in_memory(self, first: int, end: int) -> int:
        """Return how many rows fit in memory; more than gain anything are not counted."""
        tokens = self.backend.tokens_per_batch or tokens_per_batch(self.backend.device)
        by_tokens = max(tokens // max(end - first, 1), 1)
        by_memory = self.memory // (row_bytes(self.backend.info, first, end) + self.metric_bytes)
        return max(1, min(by_memory, by_tokens, self._max_rows or UNLIMITED_ROWS))

    @property
    def metric_bytes(self) -> int:
        """Bytes that the metric of one row takes beside its logits."""
        return 0

    def halve_batch(self, count: int, tokens: int, fault: Exception) -> int:
        """Return half the size of a batch that ran out of memory; no later batch may be larger.

        Args:
            count: the number of rows of the batch.
            tokens: the number of tokens of each row, for the message.
            fault: what was raised. If it has nothing to do with memory, it is raised again.

        Raises:
            MemoryLimitError: if the batch had one row.
        """
        if not is_out_of_memory(fault):
            raise fault
        if count == 1:
            raise MemoryLimitError(
                f"The memory is not enough for one prompt of {tokens} tokens.",
                "Free memory, shorten the prompts, or use a smaller dtype.",
            ) from None
        release_memory()
        self._max_rows = min(count // 2, self._max_rows or count)
        return self._max_rows

    def in_batches(
        self, run: Callable[[slice], Result], max_rows: int
    ) -> Iterator[tuple[slice, Result]]:
        """Run something on all prompts, batch by batch; a batch that does not fit is halved.

        Args:
            run: is given the slice of the prompts that form a batch.
            max_rows: the size of a batch to begin with.

        Yields:
            Each slice, with what `run` returned for it.

        Raises:
            MemoryLimitError: if not even one prompt fits.
        """
        begin = 0
        while begin < len(self.prompts):
            part = slice(begin, min(begin + max_rows, len(self.prompts)))
            try:
                result = run(part)
            except (RuntimeError, MemoryError) as fault:
                max_rows = self.halve_batch(part.stop - begin, self.prompts.width, fault)
                continue
            begin = part.stop
            yield part, result

    def read_unchanged(
        self, side: Side, sites: Sequence[Site], max_rows: int, *, keep_prefix: bool = False
    ) -> Iterator[tuple[slice, BatchResult]]:
        """Run every prompt of a side, batch by batch, and yield what was read; nothing is kept.

        Args:
            side: the side.
            sites: the activations to read.
            max_rows: the most prompts of a batch; it may have fewer, if memory is short.
            keep_prefix: whether the keys and values are read too.

        Yields:
            The slice of the prompts that form a batch, and what was read from them.

        Raises:
            MemoryLimitError: if not even one prompt fits.
        """
        prompts = self.prompts
        info = self.backend.info

        def run(part: slice) -> BatchResult:
            batch = Batch(prompts.tokens(side)[part], prompts.answer_position[part])
            return self.run(batch, sites, keep_prefix=keep_prefix)

        macs = row_macs(info, prompts.width, columns=info.n_logits)
        rows = min(max_rows, self.rows_that_fit(0, prompts.width))
        for part, result in self.in_batches(run, rows):
            yield part, result
            self.heap.trim_if_grown()
            self.meter.add(forward_equivalents(info, macs, prompts.length[part].tolist()))

    def estimate_pass(self) -> float:
        """Return the forward-pass equivalents of one pass over every prompt of a side."""
        macs = row_macs(self.backend.info, self.prompts.width, columns=self.backend.info.n_logits)
        return forward_equivalents(self.backend.info, macs, self.prompts.length.tolist())

    def _cache(self, side: Side, sites: list[Site]) -> None:
        """Run every prompt of a side and keep these sites, the logits, and keys and values."""
        keep_prefix = self.backend.abilities.prefix and self._prefix.get(side) is None
        logits: list[Tensor] = []
        prefixes: list[Prefix] = []
        activations: dict[Site, list[Tensor]] = {site: [] for site in sites}

        self.meter.begin("unchanged prompts", self.estimate_pass())
        for _, result in self.read_unchanged(side, sites, UNLIMITED_ROWS, keep_prefix=keep_prefix):
            assert result.logits is not None
            logits.append(result.logits)
            if result.prefix is not None:
                prefixes.append(result.prefix)
            for site in sites:
                activations[site].append(result.activations[site])
        self._logits[side] = _concatenate(logits)
        self._sites.update(
            {(side, site): _concatenate(parts) for site, parts in activations.items()}
        )
        if keep_prefix:
            self._prefix[side] = _concatenate_prefixes(prefixes)


def _concatenate(parts: list[Tensor]) -> Tensor:
    """Put the parts one after another; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _concatenate_prefixes(parts: list[Prefix]) -> Prefix:
    layers = range(len(parts[0].keys))
    return Prefix(
        tuple(_concatenate([part.keys[layer] for part in parts]) for layer in layers),
        tuple(_concatenate([part.values[layer] for part in parts]) for layer in layers),
    )
