"""Activations for the trainer, as our backend reads them: a SAELens data provider for any model and site.

They come in blocks of some batches: rows are read, their positions shuffled together by the seed and the block's number, and cut
into batches. So a place in the supply is three numbers, and a block that was broken off is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.features.training.recipe import SAERecipe
from discovery.features.training.text import Cursor, Row, TrainingRows
from discovery.sites import Site

TOKENS_PER_PASS = {"cpu": 4096, "cuda": 32_768, "mps": 8192}


@dataclass(frozen=True)
class BatchPosition:
    """Where a supply is: the cursor at the beginning of a block, the block's number, and how many of its batches are used."""

    cursor: Cursor = field(default_factory=Cursor)
    block: int = 0
    batches_used: int = 0


class ActivationBatches(Iterator[Tensor]):
    """Batches of activations [batch d_in] in float32, endless."""

    def __init__(
        self,
        model: Backend,
        rows: TrainingRows,
        recipe: SAERecipe,
        skip: int,
        place: BatchPosition | None = None,
        on_pass: Callable[[], None] | None = None,
    ) -> None:
        """Start at a place, the beginning where None.

        Args:
            skip: positions at the start of each row that are left out.
            tick: called after each forward pass; may raise Interrupted, which leaves the supply where it was.
        """
        self._model, self._rows, self._recipe, self._skip, self._tick = (
            model,
            rows,
            recipe,
            skip,
            on_pass,
        )
        self.position = place or BatchPosition()
        self._next = self.position.cursor
        self._batches: tuple[Tensor, ...] = ()

    def __next__(self) -> Tensor:
        if not self._batches:
            self._batches = self._next_block()
        if self.position.batches_used == len(self._batches):
            self.position, self._batches = BatchPosition(self._next, self.position.block + 1), ()
            self._batches = self._next_block()
        batch = self._batches[self.position.batches_used]
        self.position = BatchPosition(
            self.position.cursor, self.position.block, self.position.batches_used + 1
        )
        return batch

    def _next_block(self) -> tuple[Tensor, ...]:
        recipe = self._recipe
        wanted = recipe.batches_per_block * recipe.batch
        rows, self._next = self._rows.take(self.position.cursor, wanted, self._skip)
        parts = []
        for _, where, activation in read_activations(
            self._model, recipe.parsed_site, rows, self._skip
        ):
            parts.append(activation[where])
            if self._tick is not None:
                self._tick()
        generator = torch.Generator().manual_seed(
            (recipe.seed * 1_000_003 + self.position.block) % (1 << 63)
        )
        whole = torch.cat(parts)
        order = torch.randperm(len(whole), generator=generator)[:wanted]
        return torch.split(whole[order.to(whole.device)], recipe.batch)


def read_activations(
    model: Backend, site: Site, rows: Sequence[Row], skip: int
) -> Iterator[
    tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"], Float[Tensor, "row pos d_in"]]
]:
    """Forward passes over rows, the short ones together: tokens, which positions count, and the activation with heads side by side."""
    most = TOKENS_PER_PASS.get(model.device.type, 4096)
    ordered = sorted(rows, key=len)
    while ordered:
        width = len(ordered[-1])
        part, ordered = ordered[-max(1, most // width) :], ordered[: -max(1, most // width)]
        tokens, lengths = pad_rows(part, model.device)
        at = torch.arange(tokens.shape[1], device=model.device)
        where = (at >= skip) & (at < lengths.unsqueeze(1))
        with torch.no_grad():
            found = model.run(Batch(tokens, stop=site.layer + 1), [site]).activations[site]
        yield tokens, where, found.flatten(2).float()


def pad_rows(
    rows: Sequence[Row], device: torch.device
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row"]]:
    """Rows side by side, padded on the right, and their lengths."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    return tokens, torch.tensor([len(row) for row in rows], device=device)
