"""Reads a text once, in windows, and collects where features fire in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.engine import row_macs
from discovery.engine.cached_runs import tokens_per_batch
from discovery.errors import MeasurementError, MemoryLimitError
from discovery.features import SAE
from discovery.methods.features.examples.dashboards import FiringTotals
from discovery.methods.features.examples.documents import Document, DocumentStream
from discovery.methods.features.examples.sampling import (
    ContextCollector,
    PeakContext,
    Sampling,
    context_key,
)
from discovery.methods.features.splice import forward_equivalents
from discovery.progress import Progress, ProgressCallback, report_progress

MAX_CODES_BYTES = 256 << 20  # approximate limit of the codes of one batch


@dataclass(frozen=True)
class TokenWindow:
    """Tokens of one document that are run together.

    Attributes:
        document: number of the document.
        tokens: the token ids.
        share_read: share of the text that has been read; None if the length is not known.
    """

    document: int
    tokens: tuple[int, ...]
    share_read: float | None


class TextReader:
    """Runs a text through the model and the SAE, and collects contexts of features.

    Attributes:
        collectors: the contexts of each feature.
        documents: documents read so far.
        windows: windows read so far.
        positions: positions read so far, without those that are skipped.
        forward_equivalents: the work done.
    """

    def __init__(
        self,
        model: Backend,
        sae: SAE,
        features: tuple[int, ...],
        sampling: Sampling,
        progress: ProgressCallback | None,
    ) -> None:
        self.model = model
        self.sae = sae
        self.sampling = sampling
        self.collectors = {
            feature: ContextCollector(n_strongest=sampling.k, sample_size=sampling.sample_size)
            for feature in features
        }
        self.documents = 0
        self.windows = 0
        self.positions = 0
        self.forward_equivalents = 0.0
        self._features = features
        self._progress = progress
        self._has_stopped_early = False
        self._fired = torch.zeros(len(features), dtype=torch.long)
        self._activation_sum = torch.zeros(len(features), dtype=torch.float64)
        self._width = min(sampling.window, model.n_ctx)
        self._batch_size = self._windows_per_batch()

    def read(self, documents: DocumentStream) -> None:
        """Read all documents.

        Raises:
            MeasurementError: if the text cannot be read or run, or has no position to read.
            MemoryLimitError: if not even one window can be run.
            Interrupted: from the progress callback.
        """
        waiting: list[TokenWindow] = []
        for window in self._windows(documents):
            waiting.append(window)
            if len(waiting) >= self._batch_size:
                self._run(waiting)
                waiting = []
        if waiting:
            self._run(waiting)
        if not self.positions:
            raise MeasurementError(
                f"The text {documents.name!r} has no position to look at: it is empty, or no "
                f"longer than the {self.sampling.skip} positions that are left out.",
                "Give a longer text.",
            )

    def firing_totals(self, i: int) -> FiringTotals:
        """Return how often the i-th feature fires."""
        return FiringTotals(int(self._fired[i]), float(self._activation_sum[i]), self.positions)

    def warnings(self) -> Iterator[str]:
        """Yield what a user must know about the reading."""
        if self._has_stopped_early:
            yield f"the text goes on: reading ended after {self.positions:,} positions, as asked"
        if self._width < self.sampling.window:
            yield f"windows have {self._width} tokens, because the model's context is no longer"

    def _windows(self, documents: DocumentStream) -> Iterator[TokenWindow]:
        skip = self.sampling.skip
        positions_left = self.sampling.most
        for document in documents:
            self.documents += 1
            ids = self._token_ids(document)
            for first in range(0, len(ids), self._width):
                tokens = ids[first : first + self._width]
                if positions_left is not None and positions_left <= 0:
                    self._has_stopped_early = True
                    return
                if len(tokens) <= skip:
                    continue
                if positions_left is not None:
                    tokens = tokens[: skip + positions_left]
                    positions_left -= len(tokens) - skip
                yield TokenWindow(document.number, tokens, document.share_read)

    def _token_ids(self, document: Document) -> tuple[int, ...]:
        prompt = document.prompt
        tokenizer = self.model.tokenizer
        if not isinstance(prompt, str):
            ids = tuple(int(token) for token in prompt)
        elif tokenizer is not None:
            ids = tuple(tokenizer.encode(prompt))
        else:
            raise MeasurementError(
                "The text is words, and this model has no tokenizer.",
                'Give token ids in a .jsonl file: {"tokens": [3, 1, 4]}.',
            )
        if unknown := [token for token in ids if not 0 <= token < self.model.d_vocab]:
            raise MeasurementError(
                f"Document {document.number} has the token {unknown[0]!r}.",
                f"This model's tokens are 0 to {self.model.d_vocab - 1}.",
            )
        return ids

    def _windows_per_batch(self) -> int:
        tokens = tokens_per_batch(self.model.device)
        tokens_with_codes = MAX_CODES_BYTES // (12 * self.sae.d_sae)
        stop = self.sae.reads.layer + 1
        macs = row_macs(self.model.info, self._width, stop=stop, columns=0)
        macs += self.sae.work(self._width)
        by_work = self.model.max_rows_by_work(macs)
        return max(1, min(tokens // self._width, tokens_with_codes // self._width, by_work))

    def _run(self, windows: Sequence[TokenWindow]) -> None:
        """Run one batch, or its halves if memory does not suffice."""
        try:
            z = self._activations(windows)
        except (torch.OutOfMemoryError, MemoryError):
            if len(windows) == 1:
                raise MemoryLimitError(
                    "There is too little memory for one window.",
                    "Choose a smaller window, or free memory.",
                ) from None
            half = (len(windows) + 1) // 2
            self._batch_size = half
            self._run(windows[:half])
            self._run(windows[half:])
            return
        self.windows += len(windows)
        self.positions += sum(len(window.tokens) - self.sampling.skip for window in windows)
        self._fired += (z != 0).sum((0, 1))
        self._activation_sum += z.double().sum((0, 1))
        self._collect_peaks(windows, z)
        self._report(windows[-1])

    def _report(self, window: TokenWindow) -> None:
        spent = self.forward_equivalents
        total = spent / window.share_read if window.share_read else spent
        step = f"examples, document {window.document}"
        report_progress(self._progress, Progress(step=step, done=spent, total=total))

    def _activations(self, windows: Sequence[TokenWindow]) -> Float[Tensor, "row pos k"]:
        """Return the features' activations on the CPU, 0 at positions that do not count."""
        info = self.model.info
        site = self.sae.reads
        lengths = [len(window.tokens) for window in windows]
        width = max(lengths)
        padded = [[*window.tokens, *[0] * (width - len(window.tokens))] for window in windows]
        batch = Batch(torch.tensor(padded, device=self.model.device), stop=site.layer + 1)
        activation = self.model.run(batch, [site]).activations[site]
        z = self.sae.encode(activation)[..., list(self._features)].float().cpu()
        macs = row_macs(info, width, stop=site.layer + 1, columns=0) + self.sae.work(width)
        self.forward_equivalents += forward_equivalents(info, macs, lengths)
        at = torch.arange(width)
        counts = (at >= self.sampling.skip) & (at < torch.tensor(lengths).unsqueeze(1))
        return torch.where(counts.unsqueeze(-1), z, 0.0)

    def _collect_peaks(self, windows: Sequence[TokenWindow], z: Float[Tensor, "row pos k"]) -> None:
        """Offer each window's peak of each feature to the feature's collector."""
        peaks = z.abs().argmax(1)
        values = z.gather(1, peaks.unsqueeze(1))[:, 0]
        for row, i in values.nonzero().tolist():
            window = windows[row]
            at = int(peaks[row, i])
            begin = max(0, at - self.sampling.around)
            end = min(len(window.tokens), at + self.sampling.around + 1)
            key = context_key(window.tokens[begin:end], at - begin, self.sampling.seed)
            make_context = partial(
                _peak_context, window, z[row, :, i], begin=begin, end=end, peak=at - begin
            )
            collector = self.collectors[self._features[i]]
            collector.offer(key, float(values[row, i]), make_context)


def _peak_context(
    window: TokenWindow, activation: Float[Tensor, "pos"], *, begin: int, end: int, peak: int
) -> PeakContext:
    return PeakContext(
        document=window.document,
        tokens=window.tokens[begin:end],
        activations=tuple(activation[begin:end].tolist()),
        peak=peak,
    )
