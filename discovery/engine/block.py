"""A block: pairs whose cached runs fit in memory together, and the running of rows on them.

One cached pass of each side of each prompt serves every sweep, ablation and control. All changed runs go through
`Block.measure`, which is where work is saved, bounded in memory, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Batch
from discovery.engine.cached_runs import CachedRuns
from discovery.engine.cost import prompt_macs, row_macs
from discovery.engine.memory import metric_bytes
from discovery.engine.prompts import Side
from discovery.engine.rows import JoinedRows, Rows, Window, cut_windows
from discovery.errors import NotFiniteError
from discovery.interventions import Edit
from discovery.metrics import PAD_TOKEN, measure
from discovery.sites import MetricName, Site

MAX_COLUMNS = 64  # beyond that, the whole vocabulary is as cheap


@dataclass
class Block(CachedRuns):
    """Pairs whose cached runs fit in memory together, and the running of changed rows on them."""

    metric: MetricName

    @property
    def metric_bytes(self) -> int:
        return metric_bytes(self.backend.info, self.metric)

    def baseline(self, side: Side) -> Float[Tensor, "pair"]:
        """The metric of the unchanged prompts."""
        logits = self.logits(side)
        most = max(1, self.memory // max(1, self.metric_bytes))
        parts = torch.split(
            torch.arange(len(self.prompts), device=self.prompts.length.device), most
        )
        return self._require_finite(
            torch.cat([self._metric(logits[part], part, None) for part in parts])
        )

    def measure(self, rows: Rows) -> Float[Tensor, "row"]:
        """Run rows and give each one's metric."""
        return self.measure_all([rows])[0]

    def measure_all(self, jobs: Sequence[Rows]) -> list[Float[Tensor, "row"]]:
        """Run several jobs, together where that can be, and give each one's metrics.

        Raises:
            MemoryLimitError: where not even one row fits.
            NotFiniteError: where the model gives no number.
            Interrupted: from the meter's progress.
        """
        out: dict[int, Tensor] = {}
        for numbers, rows in self._group_jobs(jobs):
            found = torch.empty_like(self.baseline(rows.base)).new_empty(len(rows))
            for window in self._windows(rows):
                for part, values in self._run_in_parts(rows, window):
                    found[part.index] = values
            out |= dict(
                zip(
                    numbers,
                    torch.split(self._require_finite(found), [len(jobs[n]) for n in numbers]),
                    strict=True,
                )
            )
        return [out[n] for n in range(len(jobs))]

    def estimate(self, *jobs: Rows) -> float:
        """Forward-pass equivalents that `measure_all` will count for these jobs."""
        return sum(
            self._equivalents(rows, window)
            for _, rows in self._group_jobs(jobs)
            for window in self._windows(rows)
        )

    def _group_jobs(self, jobs: Sequence[Rows]) -> Iterable[tuple[list[int], Rows | JoinedRows]]:
        """Jobs that can go up the layers in one pass, and the others by themselves, with their numbers."""
        ready: dict[Side, list[tuple[int, Rows]]] = {}
        for number, job in enumerate(jobs):
            joined = self._as_layer_input(job)
            if joined is None:
                yield [number], job
            else:
                ready.setdefault(job.base, []).append((number, joined))
        for group in ready.values():
            group.sort(key=lambda pair: pair[1].start)
            rows = JoinedRows(tuple(job for _, job in group)) if len(group) > 1 else group[0][1]
            yield [number for number, _ in group], rows

    def _as_layer_input(self, job: Rows) -> Rows | None:
        """A job as residual streams at a layer's input: those behind an attention go through its layer's MLP first."""
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

        def behind(window: Window) -> Tensor:
            assert job.residual is not None
            site = Site("resid_post", job.start)
            tokens = self.prompts.tokens(job.base)[window.pair, window.first : window.end]
            batch = Batch(
                tokens,
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
            residual=behind,
            residual_macs=job.residual_macs + info.macs_mlp,
        )

    def _windows(self, rows: Rows | JoinedRows) -> Iterable[Window]:
        return cut_windows(
            rows,
            self.prompts,
            self.backend.info.n_layers,
            reuse_prefix=self.backend.abilities.prefix,
            max_rows=self.rows_that_fit,
        )

    def _run_in_parts(
        self, rows: Rows | JoinedRows, window: Window
    ) -> Iterable[tuple[Window, Tensor]]:
        """Run a window; where memory does not suffice, in halves, and remember what fits."""
        waiting = [window]
        while waiting:
            part = waiting.pop()
            try:
                values = self._run(rows, part)
            except (RuntimeError, MemoryError) as fault:
                half = self.halve_batch(len(part.index), part.end, fault)
                waiting += [
                    Window(part.index[half:], part.pair[half:], part.first, part.end),
                    Window(part.index[:half], part.pair[:half], part.first, part.end),
                ]
                continue
            self.heap.trim_if_grown()
            self.meter.add(self._equivalents(rows, part))
            yield part, values

    def _run(self, rows: Rows | JoinedRows, window: Window) -> Float[Tensor, "n"]:
        batch, edits = (
            self._joined_batch(rows, window)
            if isinstance(rows, JoinedRows)
            else self._single_batch(rows, window)
        )
        logits = self.run(batch, edits=edits).logits
        assert logits is not None
        return self._metric(logits, window.pair, batch.columns)

    def _single_batch(self, rows: Rows, window: Window) -> tuple[Batch, Sequence[Edit]]:
        residual = (
            rows.residual(window) if rows.residual else self.residual(rows.base, rows.start, window)
        )
        prefix = None
        if window.first and not rows.is_pointwise(self.backend.info.n_layers):
            prefix = self.prefix(rows.base).take(window.pair, window.first)
        batch = Batch(
            self.prompts.tokens(rows.base)[window.pair, window.first : window.end],
            self.prompts.answer_position[window.pair] - window.first,
            rows.start,
            residual,
            rows.after_attention,
            prefix=prefix,
            columns=self._columns(window),
            last_position_only=self._last_position_only(rows, window),
        )
        return batch, rows.edits(window) if rows.edits else ()

    def _joined_batch(self, stairs: JoinedRows, window: Window) -> tuple[Batch, Sequence[Edit]]:
        """Rows in the order of their start, so that each layer works on the first of them."""
        entering: dict[int, list[Tensor]] = {}
        for job, part in stairs.split(window):
            assert job.residual is not None
            entering.setdefault(job.start, []).append(job.residual(part))
        arriving = {start: torch.cat(streams) for start, streams in entering.items()}
        start = min(arriving)
        counts = [
            sum(len(stream) for at, stream in arriving.items() if at <= layer)
            for layer in range(self.backend.info.n_layers)
        ]
        prefix = (
            self.prefix(stairs.base).take_by_layer(window.pair, counts, window.first)
            if window.first
            else None
        )
        batch = Batch(
            self.prompts.tokens(stairs.base)[window.pair, window.first : window.end],
            self.prompts.answer_position[window.pair] - window.first,
            start,
            arriving.pop(start),
            prefix=prefix,
            columns=self._columns(window),
            joins=arriving,
            last_position_only=self._last_position_only(stairs, window),
        )
        return batch, ()

    def _last_position_only(self, rows: Rows | JoinedRows, window: Window) -> bool:
        """Whether the last layer has positions that nothing needs behind its attention."""
        return (
            self.backend.abilities.last_position_only
            and window.width > 1
            and not rows.is_pointwise(self.backend.info.n_layers)
        )

    def _columns(self, window: Window) -> Tensor | None:
        wanted = self.prompts.answer.shape[1] + self.prompts.wrong.shape[1]
        if (
            self.metric != "logit_difference"
            or not self.backend.abilities.columns
            or wanted > MAX_COLUMNS
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
        """The metric itself. A NaN of the model's would pass for a cell that a pair does not have."""
        if not bool(metric.isfinite().all()):
            lost, info = int((~metric.isfinite()).sum()), self.backend.info
            cause = f"{info.name} gives no finite number on {lost} of {len(metric)} rows in {info.dtype}."
            raise NotFiniteError(
                cause,
                "Use dtype float32 or bfloat16 (float16 ends at 65504), and look at the weights if it stays so.",
            )
        return metric

    def _equivalents(self, rows: Rows | JoinedRows, window: Window) -> float:
        if isinstance(rows, JoinedRows):
            return sum(self._equivalents(job, part) for job, part in rows.split(window))
        info = self.backend.info
        before = 0 if rows.is_pointwise(info.n_layers) else window.first
        columns = self._columns(window)
        n_columns = info.n_logits if columns is None else columns.shape[1]
        narrow = self._last_position_only(rows, window)
        one = row_macs(
            info,
            window.width,
            before,
            start=rows.start,
            after_attention=rows.after_attention,
            last_position_only=narrow,
            columns=n_columns,
        )
        one += window.width * rows.residual_macs
        lengths, counts = torch.unique(self.prompts.length[window.pair], return_counts=True)
        return float(
            sum(
                one * n / prompt_macs(info, length)
                for length, n in zip(lengths.tolist(), counts.tolist(), strict=True)
            )
        )
