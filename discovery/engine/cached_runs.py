"""The unchanged runs of some pairs: one pass of each side of each prompt serves every sweep, ablation and control.

Also how many rows a batch may have, since these passes are the first to meet the limits of memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch, BatchResult, Prefix
from discovery.backends.hardware.memory import is_out_of_memory, release_memory
from discovery.backends.remote.status import listen_to_status
from discovery.engine.cost import Meter, prompt_macs, row_macs
from discovery.engine.memory import HeapTrimmer, row_bytes
from discovery.engine.prompts import Prompts, Side
from discovery.engine.rows import Window
from discovery.errors import MemoryLimitError
from discovery.interventions import Edit
from discovery.sites import ActivationKind, Site

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 131072, "mps": 16384}  # larger batches gain nothing


@dataclass
class CachedRuns:
    """Logits, activations, keys and values of unchanged prompts, each made when it is first asked for.

    Attributes:
        memory: bytes that batches may take beside the caches. heap: kept from holding more than they need.
    """

    backend: Backend
    prompts: Prompts
    meter: Meter
    memory: int
    heap: HeapTrimmer
    _sites: dict[tuple[Side, Site], Tensor] = field(default_factory=dict, kw_only=True)
    _logits: dict[Side, Tensor] = field(default_factory=dict, kw_only=True)
    _prefix: dict[Side, Prefix | None] = field(default_factory=dict, kw_only=True)
    _max_rows: int | None = field(default=None, kw_only=True)

    def run(
        self, batch: Batch, reads: Sequence[Site] = (), edits: Sequence[Edit] = (), **how: bool
    ) -> BatchResult:
        """One batch on the model. Where that is elsewhere, the meter's progress hears what it waits for, and may end the waiting."""
        with listen_to_status(self.meter.listener):
            return self.backend.run(batch, reads, edits, **how)

    def logits(self, side: Side) -> Float[Tensor, "pair d_vocab"]:
        """Logits at the answer position of the unchanged prompts."""
        if side not in self._logits:
            self.load(side, self.shared_sites)
        return self._logits[side]

    def activation(self, side: Side, site: Site) -> Float[Tensor, "pair pos ..."]:
        """A site of the unchanged prompts, right-padded (what stands after a prompt's end is meaningless).

        Who asks for a site at one layer asks for the others soon: one pass brings all of them, and what other sweeps will ask for.
        """
        if site.kind == "resid_post" and site.layer < self.backend.info.n_layers - 1:
            site = Site("resid_pre", site.layer + 1)
        if (side, site) not in self._sites:
            self.load(
                side,
                [site]
                if site in self.shared_sites
                else [Site(site.kind, layer) for layer in range(self.backend.info.n_layers)],
            )
        return self._sites[side, site]

    @cached_property
    def shared_sites(self) -> tuple[Site, ...]:
        """The sites that come with the first pass that brings any of them: the stream, and what heads and MLPs add to it."""
        info = self.backend.info
        kinds: list[ActivationKind] = ["resid_pre", "z", "attn_out"]
        kinds += ["resid_mid"] if self.backend.abilities.after_attention else []
        kinds += [] if info.attn_only else ["mlp_out"]
        end = Site("resid_post", info.n_layers - 1)  # of the stream whose starts are resid_pre
        return (*(Site(kind, layer) for kind in kinds for layer in range(info.n_layers)), end)

    def load(self, side: Side, sites: Iterable[Site]) -> None:
        """Make sure that these sites are cached, in one pass."""
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
        """The unchanged residual stream at a layer's input (None at layer 0, where the tokens give it)."""
        if layer == 0 and not after_attention:
            return None
        if after_attention:
            site = Site("resid_mid", layer)
        else:
            site = (
                Site("resid_post", layer - 1)
                if layer == self.backend.info.n_layers
                else Site("resid_pre", layer)
            )
        return self.activation(side, site)[window.pair, window.first : window.end]

    def prefix(self, side: Side) -> Prefix:
        if self._prefix.get(side) is None:
            self.load(side, self.shared_sites)
        found = self._prefix[side]
        assert found is not None
        return found

    def rows_that_fit(self, first: int, end: int) -> int:
        """How many rows of these positions a batch may have."""
        tokens = (
            self.backend.tokens_per_batch or TOKENS_PER_BATCH.get(self.backend.device.type, 4096)
        ) // max(end - first, 1)
        one = row_bytes(self.backend.info, first, end) + self.metric_bytes
        return max(1, min(self.memory // one, max(tokens, 1), self._max_rows or 1 << 30))

    @property
    def metric_bytes(self) -> int:
        """What the metric of one row takes beside its logits."""
        return 0

    def halve_batch(self, count: int, tokens: int, fault: Exception) -> int:
        """Half of a batch for which memory did not suffice; from now on no batch is larger. Any other fault goes on its way."""
        if not is_out_of_memory(fault):
            raise fault
        if count == 1:
            raise MemoryLimitError(
                f"Memory does not suffice for one prompt of {tokens} tokens.",
                "Free memory, shorten the prompts, or use a smaller dtype.",
            ) from None
        release_memory()
        self._max_rows = min(count // 2, self._max_rows or count)
        return self._max_rows

    def estimate_pass(self) -> float:
        """Forward-pass equivalents of one pass over every prompt of a side."""
        info = self.backend.info
        one = row_macs(info, self.prompts.width, columns=info.n_logits)
        return sum(one / prompt_macs(info, n) for n in self.prompts.length.tolist())

    def _cache(self, side: Side, sites: list[Site]) -> None:
        """One pass over every prompt of a side, keeping these sites, the logits, and keys and values."""
        prompts, info = self.prompts, self.backend.info
        keep = self.backend.abilities.prefix and self._prefix.get(side) is None
        logits: list[Tensor] = []
        prefixes: list[Prefix | None] = []
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        one = row_macs(info, prompts.width, columns=info.n_logits)
        self.meter.begin("unchanged prompts", self.estimate_pass())
        begin, most = 0, self.rows_that_fit(0, prompts.width)
        while begin < len(prompts):
            part = slice(begin, min(begin + most, len(prompts)))
            try:
                outcome = self.run(
                    Batch(prompts.tokens(side)[part], prompts.answer_position[part]),
                    sites,
                    keep_prefix=keep,
                )
            except (RuntimeError, MemoryError) as fault:
                most = self.halve_batch(part.stop - begin, prompts.width, fault)
                continue
            begin = part.stop
            assert outcome.logits is not None
            logits.append(outcome.logits)
            prefixes.append(outcome.prefix)
            for site in sites:
                found[site].append(outcome.activations[site])
            self.heap.trim_if_grown()
            self.meter.add(sum(one / prompt_macs(info, n) for n in prompts.length[part].tolist()))
        self._logits[side] = _concatenate(logits)
        self._sites.update({(side, site): _concatenate(parts) for site, parts in found.items()})
        if keep:
            layers = range(info.n_layers)
            whole = [p for p in prefixes if p is not None]
            keys = tuple(_concatenate([p.keys[layer] for p in whole]) for layer in layers)
            self._prefix[side] = Prefix(
                keys, tuple(_concatenate([p.values[layer] for p in whole]) for layer in layers)
            )


def _concatenate(parts: list[Tensor]) -> Tensor:
    """The parts one after another; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
