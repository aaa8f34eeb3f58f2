"""Activations to train on, as our backends read them, for any model and site.

SAELens's trainer accepts any iterator over batches of activations. Ours makes them in blocks of
some batches: it reads rows, shuffles their positions together by the seed and the block's number,
and cuts them into batches. So a place in the stream of batches is three numbers, and a block that
was interrupted is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.features.training.recipe import SAERecipe
from discovery.features.training.text import Cursor, Row, TrainingRows
from discovery.sites import Site

TOKENS_PER_PASS = {"cpu": 4096, "cuda": 32_768, "mps": 8192}


def tokens_per_pass(device: torch.device) -> int:
    """Return how many tokens a pass may have; a kind of device not listed has those of a CPU."""
    return TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cpu"])


@dataclass(frozen=True)
class BatchPosition:
    """A place in the stream of batches.

    Attributes:
        cursor: the first document of the block.
        block: the block's number.
        batches_used: batches of the block that were used.
    """

    cursor: Cursor = field(default_factory=Cursor)
    block: int = 0
    batches_used: int = 0


class ActivationBatches(Iterator[Tensor]):
    """Endless batches of activations [batch d_in] in float32.

    Attributes:
        position: the place of the next batch.
    """

    def __init__(
        self,
        model: Backend,
        rows: TrainingRows,
        recipe: SAERecipe,
        skip: int,
        position: BatchPosition | None = None,
        on_pass: Callable[[], None] | None = None,
    ) -> None:
        """Start at a place.

        Args:
            skip: positions at the start of each row that are left out. position: where to start;
            the default is the beginning. on_pass: called after each forward pass. It may raise
            Interrupted, which leaves the place
                as it was.
        """
        self.position = position or BatchPosition()
        self._model = model
        self._rows = rows
        self._recipe = recipe
        self._skip = skip
        self._on_pass = on_pass
        self._next_cursor = self.position.cursor
        self._batches: tuple[Tensor, ...] = ()

    def __next__(self) -> Tensor:
        if not self._batches:
            self._batches = self._make_block()
        if self.position.batches_used == len(self._batches):
            self.position = BatchPosition(self._next_cursor, self.position.block + 1)
            self._batches = ()  # if the next block is interrupted, it is made again
            self._batches = self._make_block()
        batch = self._batches[self.position.batches_used]
        self.position = replace(self.position, batches_used=self.position.batches_used + 1)
        return batch

    def _make_block(self) -> tuple[Tensor, ...]:
        recipe = self._recipe
        size = recipe.batches_per_block * recipe.batch
        rows, self._next_cursor = self._rows.take(self.position.cursor, size, self._skip)
        parts = []
        site = recipe.parsed_site
        for _, mask, activation in read_activations(self._model, site, rows, self._skip):
            parts.append(activation[mask])
            if self._on_pass is not None:
                self._on_pass()
        seed = (recipe.seed * 1_000_003 + self.position.block) % (1 << 63)
        generator = torch.Generator().manual_seed(seed)
        block = torch.cat(parts)
        order = torch.randperm(len(block), generator=generator)[:size]
        return torch.split(block[order.to(block.device)], recipe.batch)


def read_activations(
    model: Backend, site: Site, rows: Sequence[Row], skip: int
) -> Iterator[
    tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"], Float[Tensor, "row pos d_in"]]
]:
    """Run rows through the model, rows of similar length together.

    Yields:
        For each forward pass: the token ids, which positions count (those after the first `skip`
        of a row), and the activation in float32, with heads side by side.
    """
    max_tokens = tokens_per_pass(model.device)
    waiting = sorted(rows, key=len)
    while waiting:
        length = len(waiting[-1])
        macs = length * (site.layer + 1) * (model.info.macs_attention + model.info.macs_mlp)
        count = max(1, min(max_tokens // length, model.max_rows_by_work(macs)))
        tokens, lengths = pad_rows(waiting[-count:], model.device)
        waiting = waiting[:-count]
        at = torch.arange(tokens.shape[1], device=model.device)
        mask = (at >= skip) & (at < lengths.unsqueeze(1))
        with torch.no_grad():
            run = model.run(Batch(tokens, stop=site.layer + 1), [site])
        yield tokens, mask, run.activations[site].flatten(2).float()


def pad_rows(
    rows: Sequence[Row], device: torch.device
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row"]]:
    """Return rows padded on the right to one width, and their lengths."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    return tokens, torch.tensor([len(row) for row in rows], device=device)
