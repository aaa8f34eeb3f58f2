"""A block: pairs whose cached runs fit in memory together, and the running of changed rows on them.

All changed runs go through `Block.measure_all`. It decides what can be skipped, splits the rows
into batches that fit in memory, and counts the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Batch, BatchResult
from discovery.engine.cached_runs import CachedRuns, Result
from discovery.engine.cost import prompt_macs, row_macs
from discovery.engine.memory import metric_bytes
from discovery.engine.prompts import Side
from discovery.engine.rows import JoinedRows, Rows, Window, cut_windows
from discovery.errors import NotFiniteError
from discovery.interventions import Edit
from discovery.metrics import PAD_TOKEN, measure
from discovery.sites import MetricName, Site

MAX_COLUMNS = 64  # with more columns, unembedding the whole vocabulary is as cheap


@dataclass(kw_only=True)
class Block(CachedRuns):
    """Pairs whose cached runs fit in memory together, and the running of changed rows on them.

    Attributes:
        metric: what is measured on the logits of each row.
    """

    metric: MetricName

    @property
    def metric_bytes(self) -> int:
        """Bytes that the metric of one row takes beside its logits."""
        return metric_bytes(self.backend.info, self.metric)

    def baseline(self, side: Side) -> Float[Tensor, "pair"]:
        """Return the metric of the unchanged prompts."""
        logits = self.logits(side)
        size = max(1, self.memory // max(1, self.metric_bytes))
        pairs = torch.arange(len(self.prompts), device=self.prompts.length.device)
        metrics = [self._metric(logits[part], part, None) for part in torch.split(pairs, size)]
        return self._require_finite(torch.cat(metrics))

    def measure(self, rows: Rows) -> Float[Tensor, "row"]:
        """Run rows and return the metric of each."""
        return self.measure_all([rows])[0]

    def measure_all(self, jobs: Sequence[Rows]) -> list[Float[Tensor, "row"]]:
        """Run several jobs, in one pass if possible, and return the metrics of each job's rows.

        Raises:
            MemoryLimitError: if not even one row fits.
            NotFiniteError: if a metric is NaN or infinite.
            Interrupted: if the meter's progress callback raises it.
        """
        metrics: dict[int, Tensor] = {}
        for numbers, rows in self._group_jobs(jobs):
            values = torch.empty_like(self.baseline(rows.base)).new_empty(len(rows))
            for window in self._windows(rows):
                run = partial(self._run, rows)
                for part, part_values in self._run_in_parts(window, run):
                    self.meter.add(self._equivalents(rows, part))
                    values[part.index] = part_values
            by_job = torch.split(self._require_finite(values), [len(jobs[n]) for n in numbers])
            metrics |= dict(zip(numbers, by_job, strict=True))
        return [metrics[n] for n in range(len(jobs))]

    def estimate(self, *jobs: Rows) -> float:
        """Return the forward-pass equivalents that `measure_all` will count for these jobs."""
        return sum(
            self._equivalents(rows, window)
            for _, rows in self._group_jobs(jobs)
            for window in self._windows(rows)
        )

    def measure_streams(
        self, rows: Rows, layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "row pos d_model"]]:
        """Run rows once, and return their residual streams at the inputs of some layers.

        Args:
            rows: the changed prompts.
            layers: the layers, none of them the first.

        Returns:
            The streams, right-padded. Positions that no row changes are those of the base run.
        """
        sites = {layer: Site("resid_post", layer - 1) for layer in layers}
        streams = {
            layer: self.activation(rows.base, site)[rows.pair].clone()
            for layer, site in sites.items()
        }
        stop = max(layers)

        def run(part: Window) -> BatchResult:
            batch = replace(
                self._single_batch(rows, part),
                answer_position=None,
                columns=None,
                last_position_only=False,
                stop=stop,
            )
            edits = rows.edits(part) if rows.edits else ()
            return self.run(batch, list(sites.values()), edits)

        for window in self._windows(rows):
            for part, result in self._run_in_parts(window, run):
                self.meter.add(self._stream_equivalents(rows, part, stop))
                for layer, site in sites.items():
                    streams[layer][part.index, part.first : part.end] = result.activations[site]
        return streams

    def estimate_streams(self, rows: Rows, stop: int) -> float:
        """Return the forward-pass equivalents of running rows up to a layer."""
        return sum(self._stream_equivalents(rows, window, stop) for window in self._windows(rows))

    def _stream_equivalents(self, rows: Rows, window: Window, stop: int) -> float:
        macs = row_macs(
            self.backend.info,
            window.width,
            window.first,
            start=rows.start,
            stop=stop,
            after_attention=rows.after_attention,
            columns=0,
        )
        return self._share_of_prompts(window, macs)

    def _group_jobs(self, jobs: Sequence[Rows]) -> Iterable[tuple[list[int], Rows | JoinedRows]]:
        """Join the jobs that can share one pass over the layers; yield the others as they are.

        Each group comes with the numbers of its jobs.
        """
        joinable: dict[Side, list[tuple[int, Rows]]] = {}
        for number, job in enumerate(jobs):
            at_input = self._as_layer_input(job)
            if at_input is None:
                yield [number], job
            else:
                joinable.setdefault(job.base, []).append((number, at_input))
        for group in joinable.values():
            group.sort(key=lambda numbered: numbered[1].start)
            rows = JoinedRows(tuple(job for _, job in group)) if len(group) > 1 else group[0][1]
            yield [number for number, _ in group], rows

    def _as_layer_input(self, job: Rows) -> Rows | None:
        """Return a job as residual streams at a layer's input, or None if it cannot be joined.

        A job that starts after an attention is first run through the rest of that layer.
        """
        info = self.backend.info
        if (
            not self.backend.abilities.joins
            or job.edits is not None
            or job.residual is None
            or job.is_pointwise(info.n_layers)
        ):
            return None
        if not job.after_attention:
            return job

        def run_mlp(window: Window) -> Tensor:
            assert job.residual is not None
            site = Site("resid_post", job.start)
            batch = Batch(
                self.prompts.tokens(job.base)[window.pair, window.first : window.end],
                start=job.start,
                residual=job.residual(window),
                after_attention=True,
                stop=job.start + 1,
            )
            return self.run(batch, [site]).activations[site]

        return replace(
            job,
            start=job.start + 1,
            after_attention=False,
            residual=run_mlp,
            residual_macs=job.residual_macs + info.macs_mlp,
        )

    def _windows(self, rows: Rows | JoinedRows) -> Iterable[Window]:
        return cut_windows(
            rows,
            self.prompts,
            self.backend.info.n_layers,
            reuse_prefix=self.backend.abilities.prefix,
            max_rows=partial(self._max_window_rows, rows),
        )

    def _max_window_rows(self, rows: Rows | JoinedRows, first: int, end: int) -> int:
        """Return how many rows a window of these positions may have.

        Each is counted as the longest of them, which enters at the first layer.
        """
        info = self.backend.info
        jobs = rows.jobs if isinstance(rows, JoinedRows) else (rows,)
        macs = row_macs(info, end - first, first, start=rows.start, columns=info.n_logits)
        macs += (end - first) * max(job.residual_macs for job in jobs)
        return self.rows_that_fit(first, end, macs)

    def _run_in_parts(
        self, window: Window, run: Callable[[Window], Result]
    ) -> Iterable[tuple[Window, Result]]:
        """Run a window, in halves if it does not fit in memory, and yield each part's result."""
        waiting = [window]
        while waiting:
            part = waiting.pop()
            try:
                result = run(part)
            except (RuntimeError, MemoryError) as fault:
                half = self.halve_batch(len(part.index), part.end, fault)
                waiting += [part.part(slice(half, None)), part.part(slice(None, half))]
                continue
            self.heap.trim_if_grown()
            yield part, result

    def _run(self, rows: Rows | JoinedRows, window: Window) -> Float[Tensor, "n"]:
        edits: Sequence[Edit] = ()
        if isinstance(rows, JoinedRows):
            batch = self._joined_batch(rows, window)
        else:
            batch = self._single_batch(rows, window)
            edits = rows.edits(window) if rows.edits else ()
        logits = self.run(batch, edits=edits).logits
        assert logits is not None
        return self._metric(logits, window.pair, batch.columns)

    def _single_batch(self, rows: Rows, window: Window) -> Batch:
        if rows.residual:
            residual: Tensor | None = rows.residual(window)
        else:
            residual = self.residual(rows.base, rows.start, window)
        prefix = None
        if window.first and not rows.is_pointwise(self.backend.info.n_layers):
            prefix = self.prefix(rows.base).take(window.pair, window.first)
        return Batch(
            self.prompts.tokens(rows.base)[window.pair, window.first : window.end],
            self.prompts.answer_position[window.pair] - window.first,
            start=rows.start,
            residual=residual,
            after_attention=rows.after_attention,
            prefix=prefix,
            columns=self._columns(window),
            last_position_only=self._last_position_only(rows, window),
        )

    def _joined_batch(self, rows: JoinedRows, window: Window) -> Batch:
        """Order the rows by their start, so that each layer works on the first ones of them."""
        streams: dict[int, list[Tensor]] = {}
        for job, part in rows.split(window):
            assert job.residual is not None
            streams.setdefault(job.start, []).append(job.residual(part))
        arriving = {start: torch.cat(parts) for start, parts in streams.items()}
        counts = [
            sum(len(stream) for start, stream in arriving.items() if start <= layer)
            for layer in range(self.backend.info.n_layers)
        ]
        prefix = None
        if window.first:
            prefix = self.prefix(rows.base).take_by_layer(window.pair, counts, window.first)
        start = min(arriving)
        residual = arriving.pop(start)
        return Batch(
            self.prompts.tokens(rows.base)[window.pair, window.first : window.end],
            self.prompts.answer_position[window.pair] - window.first,
            start=start,
            residual=residual,
            prefix=prefix,
            columns=self._columns(window),
            joins=arriving,
            last_position_only=self._last_position_only(rows, window),
        )

    def _last_position_only(self, rows: Rows | JoinedRows, window: Window) -> bool:
        """Whether the last layer need compute only the answer position after its attention."""
        return (
            self.backend.abilities.last_position_only
            and window.width > 1
            and not rows.is_pointwise(self.backend.info.n_layers)
        )

    def _columns(self, window: Window) -> Tensor | None:
        """The vocabulary entries that the metric needs, or None if it needs all of them."""
        count = self.prompts.answer.shape[1] + self.prompts.wrong.shape[1]
        if (
            self.metric != "logit_difference"
            or not self.backend.abilities.columns
            or count > MAX_COLUMNS
        ):
            return None
        return torch.cat([self.prompts.answer[window.pair], self.prompts.wrong[window.pair]], 1)

    def _metric(self, logits: Tensor, pair: Tensor, columns: Tensor | None) -> Float[Tensor, "n"]:
        answer, wrong = self.prompts.answer[pair], self.prompts.wrong[pair]
        if columns is not None:  # the logits are those of the answers, then of the wrong answers
            place = torch.arange(columns.shape[1], device=pair.device).expand_as(columns)
            place = place.masked_fill(columns == PAD_TOKEN, PAD_TOKEN)
            answer, wrong = place[:, : answer.shape[1]], place[:, answer.shape[1] :]
        clean = self.logits("clean")[pair] if self.metric == "kl_divergence" else None
        return measure(self.metric, logits, answer, wrong, clean)

    def _require_finite(self, metric: Tensor) -> Tensor:
        """Return the metric itself if all of it is finite.

        NaN marks missing grid cells, so it is never returned as a measurement.
        """
        not_finite = int((~metric.isfinite()).sum())
        if not_finite:
            info = self.backend.info
            raise NotFiniteError(
                f"{info.name} gives a metric that is NaN or infinite "
                f"on {not_finite} of {len(metric)} rows in {info.dtype}.",
                "Use dtype float32 or bfloat16 (the largest float16 is 65504); "
                "if that does not help, check the weights.",
            )
        return metric

    def _equivalents(self, rows: Rows | JoinedRows, window: Window) -> float:
        """The forward-pass equivalents that a window costs."""
        if isinstance(rows, JoinedRows):
            return sum(self._equivalents(job, part) for job, part in rows.split(window))
        info = self.backend.info
        columns = self._columns(window)
        macs = row_macs(
            info,
            window.width,
            0 if rows.is_pointwise(info.n_layers) else window.first,
            start=rows.start,
            after_attention=rows.after_attention,
            last_position_only=self._last_position_only(rows, window),
            columns=info.n_logits if columns is None else columns.shape[1],
        )
        macs += window.width * rows.residual_macs
        return self._share_of_prompts(window, macs)

    def _share_of_prompts(self, window: Window, macs: int) -> float:
        """Return the forward-pass equivalents of a window with so many multiply-adds a row."""
        info = self.backend.info
        lengths, counts = torch.unique(self.prompts.length[window.pair], return_counts=True)
        return float(
            sum(
                macs * count / prompt_macs(info, length)
                for length, count in zip(lengths.tolist(), counts.tolist(), strict=True)
            )
        )
