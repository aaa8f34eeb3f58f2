"""Collects what is measured of chosen features, block by block of a task's pairs."""

from __future__ import annotations

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.engine import Engine
from discovery.methods.features.firing import (
    BlockActivations,
    TokenFiring,
    firing_tokens_of_blocks,
    peak_activations,
)
from discovery.methods.features.splice import SplicedBlock


class FeatureCollector:
    """Joins the measurements of k features over all blocks of a task's pairs."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._blocks: list[BlockActivations] = []

    def add(
        self, view: SplicedBlock, z: Float[Tensor, "pair pos k"], **values: Float[Tensor, "pair k"]
    ) -> None:
        """Add a block of pairs.

        Args:
            z: activations of the features, 0 outside the mask. Their peaks are collected under the
                name "activation".
            values: further numbers of each pair, by name.
        """
        self._blocks.append(BlockActivations(view.block.prompts.clean, view.mask, z))
        self._values["activation"].append(peak_activations(z))
        for name, value in values.items():
            self._values[name].append(value)

    @property
    def is_first_block(self) -> bool:
        """Whether exactly one block was added.

        The direct logit effects do not depend on the pairs, and the shuffled-decoder control needs
        only a few. So the callers measure both after the first block alone.
        """
        return len(self._blocks) == 1

    def per_pair(self) -> dict[str, Float[Tensor, "pair k"]]:
        """Return the collected numbers of all pairs, by name."""
        return {name: torch.cat(values) for name, values in self._values.items()}

    def firing_tokens(self, engine: Engine) -> tuple[tuple[TokenFiring, ...], ...]:
        """Return for each feature the tokens at which it is largest."""
        return firing_tokens_of_blocks(engine, self._blocks)
