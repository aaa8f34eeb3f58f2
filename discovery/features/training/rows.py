"""The order in which documents are trained on: drawn anew for each pass by the seed, after some are set aside for the scores.

A place in that order is two numbers, so that a killed training goes on where it was. What is held out is never trained on, even where
the text says it twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from discovery.backends.base import Backend
from discovery.errors import FeatureError
from discovery.features.training.pieces import Pieces
from discovery.features.training.recipe import Recipe

HELDOUT, MOST_HELDOUT = 20, 16_384  # one document in so many, and the most tokens
AT_ONCE = 64  # documents

Row = tuple[int, ...]


@dataclass(frozen=True)
class Cursor:
    """The next document: passes over the text that are done, and how many documents of this one."""

    epoch: int = 0
    document: int = 0


class Rows:
    """The rows of a text.

    Attributes:
        heldout: rows for the scores. documents: how many are trained on. fingerprint: of the text.
    """

    def __init__(self, model: Backend, pieces: Pieces, recipe: Recipe) -> None:
        """Set some documents aside.

        Raises:
            FeatureError: fewer than two documents, or none of two tokens.
        """
        self._model, self._pieces, self._recipe = model, pieces, recipe
        if len(pieces) < 2:
            list(pieces.rows(model, range(len(pieces)), recipe.context))  # a document that cannot be read is the more telling fault
            have = "one document" if len(pieces) else "no document"
            raise FeatureError(f"{pieces.path.name} has {have}, and one at least is held out.", "Give a text with a document a line.")
        order = np.random.default_rng([recipe.seed]).permutation(len(pieces))
        self.fingerprint = pieces.fingerprint
        self.heldout: tuple[Row, ...] = ()
        taken = 0
        for number in order[: max(1, len(pieces) // HELDOUT)].tolist():
            self.heldout += tuple(row for rows in pieces.rows(model, [number], recipe.context) for row in rows)
            taken += 1
            if sum(map(len, self.heldout)) >= MOST_HELDOUT:
                break
        self._own = order[taken:]
        self._withheld = frozenset(self.heldout)
        self.documents = len(self._own)
        self._order = lru_cache(maxsize=1)(self._drawn)
        if not self.heldout:
            raise FeatureError(f"The held-out documents of {pieces.path.name} have no two tokens together.", "Give longer documents.")

    def take(self, at: Cursor, positions: int, skip: int) -> tuple[list[Row], Cursor]:
        """The next rows, so many that they have `positions` positions behind their first `skip`; and what comes then.

        Raises:
            FeatureError: a whole pass over the text that gives nothing.
        """
        found: list[Row] = []
        have, start, began = 0, at, at.epoch
        while have < positions:
            order = self._order(start.epoch)
            numbers = order[start.document : start.document + AT_ONCE].tolist()
            used = 0
            for rows in self._pieces.rows(self._model, numbers, self._recipe.context):
                kept = [row for row in rows if len(row) > skip and row not in self._withheld]
                found += kept
                have += sum(len(row) - skip for row in kept)
                used += 1
                if have >= positions:
                    break
            start = Cursor(start.epoch, start.document + used)
            if start.document >= len(order):
                start = Cursor(start.epoch + 1)
                if not found and start.epoch > began + 1:
                    raise FeatureError(
                        f"{self._pieces.path.name} has nothing to train on: its documents are single tokens, or all held out.",
                        "Give more and longer documents.",
                    )
        return found, start

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._recipe.seed, epoch + 1]).permutation(self._own)
