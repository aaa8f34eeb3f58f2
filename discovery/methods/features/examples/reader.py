"""A text read once, in windows, with the features' activations in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.engine import prompt_macs, row_macs
from discovery.engine.cached_runs import TOKENS_PER_BATCH
from discovery.errors import MeasurementError, MemoryLimitError
from discovery.features import SAE
from discovery.methods.features.examples.documents import Document, DocumentStream
from discovery.methods.features.examples.sampling import (
    ContextCollector,
    PeakContext,
    Sampling,
    context_key,
)
from discovery.progress import Progress, ProgressCallback, report_progress

MAX_CODES_BYTES = 256 << 20  # of one batch's codes, about


@dataclass(frozen=True)
class TokenWindow:
    """Tokens that are run together, of one document."""

    document: int
    tokens: tuple[int, ...]
    read: float | None


class TextReader:
    """Reads a text once and keeps what matters of it."""

    def __init__(
        self,
        model: Backend,
        sae: SAE,
        features: tuple[int, ...],
        how: Sampling,
        progress: ProgressCallback | None,
    ) -> None:
        self.model, self.sae, self.sampling, self._progress = model, sae, how, progress
        self.collectors = {
            feature: ContextCollector(how.k, how.sample_size) for feature in features
        }
        self.documents = self.windows = self.positions = 0
        self.forward_equivalents, self._cut = 0.0, False
        self._fired = torch.zeros(len(features), dtype=torch.long)
        self._sum, self._width = (
            torch.zeros(len(features), dtype=torch.float64),
            min(how.window, model.n_ctx),
        )
        self._size = self._rows()

    def read(self, texts: DocumentStream) -> None:
        """Every window, in batches."""
        waiting: list[TokenWindow] = []
        for window in self._windows(texts):
            waiting.append(window)
            if len(waiting) >= self._size:
                self._run(waiting)
                waiting = []
        if waiting:
            self._run(waiting)
        if not self.positions:
            raise MeasurementError(
                f"The text {texts.name!r} has no position to look at: it is empty, or no longer than the {self.sampling.skip} left out.",
                "Give more text.",
            )

    def firing_totals(self, i: int) -> tuple[int, float, int]:
        """Of a feature: positions at which it fires, the sum of its activations, positions looked at."""
        return int(self._fired[i]), float(self._sum[i]), self.positions

    def warnings(self) -> Iterator[str]:
        """What to know of the reading."""
        if self._cut:
            yield f"the text goes on: reading ended after {self.positions:,} positions, as asked"
        if self._width < self.sampling.window:
            yield f"windows have {self._width} tokens: the model takes no more"

    def _windows(self, texts: DocumentStream) -> Iterator[TokenWindow]:
        left = self.sampling.most
        for document in texts:
            self.documents += 1
            ids = self._ids(document)
            for first in range(0, len(ids), self._width):
                part = ids[first : first + self._width]
                if left is not None and left <= 0:
                    self._cut = True
                    return
                if len(part) > self.sampling.skip:
                    if left is not None:
                        part = part[: self.sampling.skip + left]
                        left -= len(part) - self.sampling.skip
                    yield TokenWindow(document.number, part, document.read)

    def _ids(self, document: Document) -> tuple[int, ...]:
        prompt, tokenizer = document.prompt, self.model.tokenizer
        if isinstance(prompt, str) and tokenizer is None:
            raise MeasurementError(
                "The text is words, and this model has no tokenizer.",
                'Give {"tokens": [3, 1, 4]} in a .jsonl.',
            )
        ids = (
            tuple(tokenizer.encode(prompt))
            if isinstance(prompt, str) and tokenizer
            else tuple(int(token) for token in prompt)
        )
        if bad := [token for token in ids if not 0 <= token < self.model.d_vocab]:
            raise MeasurementError(
                f"Document {document.number} has the token {bad[0]!r}.",
                f"This model's tokens are 0 to {self.model.d_vocab - 1}.",
            )
        return ids

    def _rows(self) -> int:
        """Windows of a batch."""
        tokens = TOKENS_PER_BATCH.get(self.model.device.type, 4096)
        codes = MAX_CODES_BYTES // (12 * self.sae.d_sae)
        return max(1, min(tokens, codes) // self._width)

    def _run(self, windows: Sequence[TokenWindow]) -> None:
        """One batch; in halves where memory does not suffice."""
        try:
            z = self._codes(windows)
        except (torch.OutOfMemoryError, MemoryError):
            if len(windows) == 1:
                raise MemoryLimitError(
                    "Memory does not suffice for one window.",
                    "Choose a smaller window, or free memory.",
                ) from None
            self._size = half = (len(windows) + 1) // 2
            self._run(windows[:half])
            self._run(windows[half:])
            return
        self.windows += len(windows)
        self.positions += sum(len(window.tokens) - self.sampling.skip for window in windows)
        self._fired += (z != 0).sum((0, 1))
        self._sum += z.double().sum((0, 1))
        self._offer(windows, z)
        share = windows[-1].read
        progress = Progress(
            step=f"examples, document {windows[-1].document}",
            done=self.forward_equivalents,
            total=self.forward_equivalents / share if share else self.forward_equivalents,
        )
        report_progress(self._progress, progress)

    def _codes(self, windows: Sequence[TokenWindow]) -> Float[Tensor, "row pos k"]:
        """Activations of the features, 0 where a position does not count; on the CPU."""
        width, info, site = (
            max(len(window.tokens) for window in windows),
            self.model.info,
            self.sae.reads,
        )
        tokens = torch.tensor(
            [[*w.tokens, *[0] * (width - len(w.tokens))] for w in windows], device=self.model.device
        )
        found = self.model.run(Batch(tokens, stop=site.layer + 1), [site]).activations[site]
        z = self.sae.encode(found)[..., list(self.collectors)].float().cpu()
        at = torch.arange(width)
        inside = (at >= self.sampling.skip) & (
            at < torch.tensor([[len(w.tokens)] for w in windows])
        )
        one = row_macs(info, width, stop=site.layer + 1, columns=0) + self.sae.work(width)
        self.forward_equivalents += sum(one / prompt_macs(info, len(w.tokens)) for w in windows)
        return torch.where(inside.unsqueeze(-1), z, 0.0)

    def _offer(self, windows: Sequence[TokenWindow], z: Float[Tensor, "row pos k"]) -> None:
        """Each window's peak of each feature."""
        places = z.abs().argmax(1)
        values = z.gather(1, places.unsqueeze(1))[:, 0]
        for row, i in values.nonzero().tolist():
            place, tokens = int(places[row, i]), windows[row].tokens
            span = range(
                max(0, place - self.sampling.around),
                min(len(tokens), place + self.sampling.around + 1),
            )
            near, peak = tokens[span.start : span.stop], place - span.start

            def made(
                row: int = row,
                i: int = i,
                span: range = span,
                near: tuple[int, ...] = near,
                peak: int = peak,
            ) -> PeakContext:
                return PeakContext(
                    windows[row].document,
                    near,
                    tuple(z[row, span.start : span.stop, i].tolist()),
                    peak,
                )

            kept = self.collectors[tuple(self.collectors)[i]]
            kept.offer(context_key(near, peak, self.sampling.seed), float(values[row, i]), made)
