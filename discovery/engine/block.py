"""A block: pairs whose cached runs fit in memory together, and the running of rows on them.

One cached pass of each side of each prompt serves every sweep, ablation and control. All changed runs go through
`Block.measure`, which is where work is saved, bounded in memory, and counted.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch, Prefix
from discovery.engine.prompts import Prompts, Side
from discovery.engine.rows import Rows, Stairs, Window, cut
from discovery.engine.work import Meter, full_work, row_work
from discovery.errors import MemoryLimitError
from discovery.interventions import Edit
from discovery.metrics import PAD, measure
from discovery.sites import MetricName, Site

MOST_COLUMNS = 64  # beyond that, the whole vocabulary is as cheap
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 131072, "mps": 16384}  # larger batches gain nothing


@dataclass
class Block:
    """Cached runs of some pairs of one task on one model.

    Attributes:
        memory: bytes that batches may take beside the caches.
    """

    backend: Backend
    prompts: Prompts
    metric: MetricName
    meter: Meter
    memory: int
    _sites: dict[tuple[Side, Site], Tensor] = field(default_factory=dict)
    _logits: dict[Side, Tensor] = field(default_factory=dict)
    _prefix: dict[Side, Prefix | None] = field(default_factory=dict)
    _limit: int | None = None

    def logits(self, side: Side) -> Float[Tensor, "pair d_vocab"]:
        """Logits at the answer position of the unchanged prompts."""
        if side not in self._logits:
            self._cache(side, [])
        return self._logits[side]

    def activation(self, side: Side, site: Site) -> Float[Tensor, "pair pos ..."]:
        """A site of the unchanged prompts, right-padded (what stands after a prompt's end is meaningless).

        Who asks for a site at one layer asks for the others soon: one pass brings all of them.
        """
        if (side, site) not in self._sites:
            info = self.backend.info
            behind_all = site == Site("resid_post", info.n_layers - 1)  # the end of the stream whose starts are resid_pre
            layers = [site.layer] if behind_all else range(info.n_layers)
            self.load(side, [Site(site.kind, layer) for layer in layers])
        return self._sites[side, site]

    def load(self, side: Side, sites: Iterable[Site]) -> None:
        """Make sure that these sites are cached, in one pass."""
        if missing := [site for site in sites if (side, site) not in self._sites]:
            self._cache(side, missing)

    def baseline(self, side: Side) -> Float[Tensor, "pair"]:
        """The metric of the unchanged prompts."""
        return self._metric(self.logits(side), torch.arange(len(self.prompts), device=self.prompts.length.device), None)

    def measure(self, rows: Rows) -> Float[Tensor, "row"]:
        """Run rows and give each one's metric."""
        return self.measure_all([rows])[0]

    def measure_all(self, jobs: Sequence[Rows]) -> list[Float[Tensor, "row"]]:
        """Run several jobs, together where that can be, and give each one's metrics.

        Raises:
            MemoryLimitError: where not even one row fits.
            Interrupted: from the meter's progress.
        """
        out: dict[int, Tensor] = {}
        for numbers, rows in self._together(jobs):
            found = torch.empty_like(self.baseline(rows.base)).new_empty(len(rows))
            for window in self._windows(rows):
                for part, values in self._fitting(rows, window):
                    found[part.index] = values
            out |= dict(zip(numbers, torch.split(found, [len(jobs[n]) for n in numbers]), strict=True))
        return [out[n] for n in range(len(jobs))]

    def work(self, *jobs: Rows) -> float:
        """Forward-pass equivalents that `measure_all` will count for these jobs."""
        return sum(self._work(rows, window) for _, rows in self._together(jobs) for window in self._windows(rows))

    def _together(self, jobs: Sequence[Rows]) -> Iterable[tuple[list[int], Rows | Stairs]]:
        """Jobs that can go up the layers in one pass, and the others by themselves, with their numbers."""
        ready: dict[Side, list[tuple[int, Rows]]] = {}
        for number, job in enumerate(jobs):
            joined = self._at_a_layers_input(job)
            if joined is None:
                yield [number], job
            else:
                ready.setdefault(job.base, []).append((number, joined))
        for group in ready.values():
            group.sort(key=lambda pair: pair[1].start)
            rows = Stairs(tuple(job for _, job in group)) if len(group) > 1 else group[0][1]
            yield [number for number, _ in group], rows

    def _at_a_layers_input(self, job: Rows) -> Rows | None:
        """A job as residual streams at a layer's input: those behind an attention go through its layer's MLP first."""
        info = self.backend.info
        if not self.backend.abilities.joins or job.edits is not None or job.residual is None or job.pointwise(info.n_layers):
            return None
        if not job.middle:
            return job

        def behind(window: Window) -> Tensor:
            assert job.residual is not None
            site = Site("resid_post", job.start)
            tokens = self.prompts.tokens(job.base)[window.pair, window.first : window.end]
            batch = Batch(tokens, start=job.start, residual=job.residual(window), middle=True, stop=job.start + 1)
            return self.backend.run(batch, [site]).activations[site]

        return replace(job, start=job.start + 1, middle=False, residual=behind, mlp_first=True)

    def _windows(self, rows: Rows | Stairs) -> Iterable[Window]:
        return cut(rows, self.prompts, self.backend.info.n_layers, reuse=self.backend.abilities.prefix, most=self.rows_that_fit)

    def rows_that_fit(self, first: int, end: int) -> int:
        """How many rows of these positions a batch may have."""
        tokens = TOKENS_PER_BATCH.get(self.backend.device.type, 4096) // max(end - first, 1)
        return max(1, min(self.memory // self._row_bytes(first, end), max(tokens, 1), self._limit or 1 << 30))

    def _row_bytes(self, first: int, end: int) -> int:
        """A generous estimate of what one row of a batch takes at its peak."""
        info, width = self.backend.info, end - first
        size = torch.finfo(getattr(torch, info.dtype)).bits // 8
        wide = 8 * info.d_model + 4 * info.n_heads * info.d_head + 3 * info.macs_mlp // max(info.d_model, 1)
        scores = 4 * info.n_heads * width * end
        kept = 4 * info.n_layers * info.n_kv_heads * info.d_head * end
        return size * (width * wide + scores + kept + 4 * info.n_logits)

    def _fitting(self, rows: Rows | Stairs, window: Window) -> Iterable[tuple[Window, Tensor]]:
        """Run a window; where memory does not suffice, in halves, and remember what fits."""
        waiting = [window]
        while waiting:
            part = waiting.pop()
            try:
                values = self._run(rows, part)
            except (RuntimeError, MemoryError) as fault:
                half = self.halved(len(part.index), part.end, fault)
                waiting += [
                    Window(part.index[half:], part.pair[half:], part.first, part.end),
                    Window(part.index[:half], part.pair[:half], part.first, part.end),
                ]
                continue
            self.meter.add(self._work(rows, part))
            yield part, values

    def halved(self, count: int, tokens: int, fault: Exception) -> int:
        """Half of a batch for which memory did not suffice; from now on no batch is larger. Any other fault goes on its way."""
        if not out_of_memory(fault):
            raise fault
        if count == 1:
            raise MemoryLimitError(
                f"Memory does not suffice for one prompt of {tokens} tokens.", "Free memory, shorten the prompts, or use a smaller dtype."
            ) from None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._limit = count // 2
        return self._limit

    def _run(self, rows: Rows | Stairs, window: Window) -> Float[Tensor, "n"]:
        batch, edits = self._climb(rows, window) if isinstance(rows, Stairs) else self._single(rows, window)
        logits = self.backend.run(batch, edits=edits).logits
        assert logits is not None
        return self._metric(logits, window.pair, batch.columns)

    def _single(self, rows: Rows, window: Window) -> tuple[Batch, Sequence[Edit]]:
        residual = rows.residual(window) if rows.residual else self.residual(rows.base, rows.start, window)
        prefix = None
        if window.first and not rows.pointwise(self.backend.info.n_layers):
            prefix = self._keys_and_values(rows.base).take(window.pair, window.first)
        batch = Batch(
            self.prompts.tokens(rows.base)[window.pair, window.first : window.end],
            self.prompts.last[window.pair] - window.first,
            rows.start,
            residual,
            rows.middle,
            prefix=prefix,
            columns=self._columns(window),
        )
        return batch, rows.edits(window) if rows.edits else ()

    def _climb(self, stairs: Stairs, window: Window) -> tuple[Batch, Sequence[Edit]]:
        """Rows in the order of their start, so that each layer works on the first of them."""
        entering: dict[int, list[Tensor]] = {}
        for job, part in stairs.split(window):
            assert job.residual is not None
            entering.setdefault(job.start, []).append(job.residual(part))
        arriving = {start: torch.cat(streams) for start, streams in entering.items()}
        start = min(arriving)
        counts = [sum(len(stream) for at, stream in arriving.items() if at <= layer) for layer in range(self.backend.info.n_layers)]
        prefix = self._keys_and_values(stairs.base).stairs(window.pair, counts, window.first) if window.first else None
        batch = Batch(
            self.prompts.tokens(stairs.base)[window.pair, window.first : window.end],
            self.prompts.last[window.pair] - window.first,
            start,
            arriving.pop(start),
            prefix=prefix,
            columns=self._columns(window),
            joins=arriving,
        )
        return batch, ()

    def residual(self, side: Side, layer: int, window: Window, *, middle: bool = False) -> Float[Tensor, "n pos d_model"] | None:
        """The unchanged residual stream at a layer's input (None at layer 0, where the tokens give it)."""
        if layer == 0 and not middle:
            return None
        if middle:
            site = Site("resid_mid", layer)
        else:
            site = Site("resid_post", layer - 1) if layer == self.backend.info.n_layers else Site("resid_pre", layer)
        return self.activation(side, site)[window.pair, window.first : window.end]

    def _keys_and_values(self, side: Side) -> Prefix:
        if self._prefix.get(side) is None:
            self._cache(side, [])
        found = self._prefix[side]
        assert found is not None
        return found

    def _columns(self, window: Window) -> Tensor | None:
        wanted = self.prompts.answer.shape[1] + self.prompts.wrong.shape[1]
        if self.metric != "logit_difference" or not self.backend.abilities.columns or wanted > MOST_COLUMNS:
            return None
        return torch.cat([self.prompts.answer[window.pair], self.prompts.wrong[window.pair]], 1)

    def _metric(self, logits: Tensor, pair: Tensor, columns: Tensor | None) -> Float[Tensor, "n"]:
        answer, wrong = self.prompts.answer[pair], self.prompts.wrong[pair]
        if columns is not None:  # the logits are those of the answers, then of the wrong answers
            place = torch.arange(columns.shape[1], device=pair.device).expand_as(columns)
            place = place.masked_fill(columns == PAD, PAD)
            answer, wrong = place[:, : answer.shape[1]], place[:, answer.shape[1] :]
        clean = self.logits("clean")[pair] if self.metric == "kl_divergence" else None
        return measure(self.metric, logits, answer, wrong, clean)

    def _work(self, rows: Rows | Stairs, window: Window) -> float:
        if isinstance(rows, Stairs):
            return sum(self._work(job, part) for job, part in rows.split(window))
        info = self.backend.info
        before = 0 if rows.pointwise(info.n_layers) else window.first
        columns = self._columns(window)
        n_columns = info.n_logits if columns is None else columns.shape[1]
        one = row_work(info, window.width, before, start=rows.start, middle=rows.middle, columns=n_columns)
        one += window.width * info.macs_mlp if rows.mlp_first else 0
        lengths, counts = torch.unique(self.prompts.length[window.pair], return_counts=True)
        return float(sum(one * n / full_work(info, length) for length, n in zip(lengths.tolist(), counts.tolist(), strict=True)))

    def _cache(self, side: Side, sites: list[Site]) -> None:
        """One pass over every prompt of a side, keeping these sites, the logits, and keys and values."""
        prompts, info = self.prompts, self.backend.info
        keep = self.backend.abilities.prefix and self._prefix.get(side) is None
        logits: list[Tensor] = []
        prefixes: list[Prefix | None] = []
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        one = row_work(info, prompts.width, columns=info.n_logits)
        self.meter.reserve("the cached passes", sum(one / full_work(info, n) for n in prompts.length.tolist()))
        begin, most = 0, self.rows_that_fit(0, prompts.width)
        while begin < len(prompts):
            part = slice(begin, min(begin + most, len(prompts)))
            try:
                outcome = self.backend.run(Batch(prompts.tokens(side)[part], prompts.last[part]), sites, keep_prefix=keep)
            except (RuntimeError, MemoryError) as fault:
                most = self.halved(part.stop - begin, prompts.width, fault)
                continue
            begin = part.stop
            assert outcome.logits is not None
            logits.append(outcome.logits)
            prefixes.append(outcome.prefix)
            for site in sites:
                found[site].append(outcome.activations[site])
            self.meter.add(sum(one / full_work(info, n) for n in prompts.length[part].tolist()))
        self._logits[side] = _joined(logits)
        self._sites.update({(side, site): _joined(parts) for site, parts in found.items()})
        if keep:
            layers = range(info.n_layers)
            whole = [p for p in prefixes if p is not None]
            keys = tuple(_joined([p.keys[layer] for p in whole]) for layer in layers)
            self._prefix[side] = Prefix(keys, tuple(_joined([p.values[layer] for p in whole]) for layer in layers))


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts one after another; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def out_of_memory(fault: Exception) -> bool:
    """Whether memory ran out: only cuda has an exception of its own for it, cpu and mps say so in a RuntimeError."""
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or any(
        words in str(fault) for words in ("can't allocate memory", "not enough memory", "backend out of memory")
    )
