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
from discovery.features.training.recipe import Recipe
from discovery.features.training.text import Cursor, Row, Rows
from discovery.sites import Site

TOKENS_PER_PASS = {"cpu": 4096, "cuda": 32_768, "mps": 8192}


@dataclass(frozen=True)
class Place:
    """Where a supply is: the cursor at the beginning of a block, the block's number, and how many of its batches are used."""

    cursor: Cursor = field(default_factory=Cursor)
    block: int = 0
    used: int = 0


class Supply(Iterator[Tensor]):
    """Batches of activations [batch d_in] in float32, endless."""

    def __init__(
        self, model: Backend, rows: Rows, recipe: Recipe, skip: int, place: Place | None = None, tick: Callable[[], None] | None = None
    ) -> None:
        """Start at a place, the beginning where None.

        Args:
            skip: positions at the start of each row that are left out.
            tick: called after each forward pass; may raise Interrupted, which leaves the supply where it was.
        """
        self._model, self._rows, self._recipe, self._skip, self._tick = model, rows, recipe, skip, tick
        self.place = place or Place()
        self._next = self.place.cursor
        self._batches: tuple[Tensor, ...] = ()

    def __next__(self) -> Tensor:
        if not self._batches:
            self._batches = self._made()
        if self.place.used == len(self._batches):
            self.place, self._batches = Place(self._next, self.place.block + 1), ()
            self._batches = self._made()
        batch = self._batches[self.place.used]
        self.place = Place(self.place.cursor, self.place.block, self.place.used + 1)
        return batch

    def _made(self) -> tuple[Tensor, ...]:
        recipe = self._recipe
        wanted = recipe.block * recipe.batch
        rows, self._next = self._rows.take(self.place.cursor, wanted, self._skip)
        parts = []
        for _, where, activation in passes(self._model, recipe.place, rows, self._skip):
            parts.append(activation[where])
            if self._tick is not None:
                self._tick()
        generator = torch.Generator().manual_seed((recipe.seed * 1_000_003 + self.place.block) % (1 << 63))
        whole = torch.cat(parts)
        order = torch.randperm(len(whole), generator=generator)[:wanted]
        return torch.split(whole[order.to(whole.device)], recipe.batch)


def passes(
    model: Backend, site: Site, rows: Sequence[Row], skip: int
) -> Iterator[tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"], Float[Tensor, "row pos d_in"]]]:
    """Forward passes over rows, the short ones together: tokens, which positions count, and the activation with heads side by side."""
    most = TOKENS_PER_PASS.get(model.device.type, 4096)
    ordered = sorted(rows, key=len)
    while ordered:
        width = len(ordered[-1])
        part, ordered = ordered[-max(1, most // width) :], ordered[: -max(1, most // width)]
        tokens, lengths = padded(part, model.device)
        at = torch.arange(tokens.shape[1], device=model.device)
        where = (at >= skip) & (at < lengths.unsqueeze(1))
        with torch.no_grad():
            found = model.run(Batch(tokens, stop=site.layer + 1), [site]).activations[site]
        yield tokens, where, found.flatten(2).float()


def padded(rows: Sequence[Row], device: torch.device) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row"]]:
    """Rows side by side, padded on the right, and their lengths."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    return tokens, torch.tensor([len(row) for row in rows], device=device)
