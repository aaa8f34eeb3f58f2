"""A dictionary on a block of pairs: its codes in the cached clean runs, and rows in which its site is changed.

A changed residual stream is where a row starts, so nothing before it is run again; at the other sites the value is put in
by an edit. Encoding and decoding are counted as the multiply-adds they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.info import ModelInfo
from discovery.engine import Block, Engine, Rows, Side, Window, prompt_macs
from discovery.features import SAE, Codes
from discovery.interventions import Edit
from discovery.methods.features.arguments import PairPositions
from discovery.sites import Site

CODES_SIZED_TENSORS = 6  # tensors as large as the codes that encoding holds at once


@dataclass(frozen=True)
class SplicedBlock:
    """One block of pairs seen through a dictionary.

    Attributes:
        first: number of the block's first pair.
        where: the positions that are looked at and changed.
    """

    block: Block
    sae: SAE
    first_pair: int
    mask: Bool[Tensor, "pair pos"]

    def __len__(self) -> int:
        return len(self.block.prompts)

    def target_activation(
        self, pair: Int[Tensor, "n"], side: Side = "clean"
    ) -> Float[Tensor, "n pos d_out"]:
        """The activation that the dictionary reconstructs, heads side by side."""
        return self.block.activation(side, self.sae.writes)[pair].flatten(2)

    def codes(
        self,
        pair: Int[Tensor, "n"],
        side: Side = "clean",
        shift: Float[Tensor, "pair pos ..."] | None = None,
    ) -> Codes:
        """The dictionary's view of these pairs; `shift`, of all pairs, is added to what it reads."""
        read = self.block.activation(side, self.sae.reads)[pair]
        codes = self.sae.codes(read if shift is None else read + shift[pair].to(read))
        prompts, info = self.block.prompts, self.block.backend.info
        lengths = prompts.length[pair].tolist()
        self.block.meter.add(
            sum(self.sae.work(prompts.width) / prompt_macs(info, length) for length in lengths)
        )
        return codes

    def pair_batches(self) -> Iterator[Int[Tensor, "n"]]:
        """The block's pairs, cut so that their codes fit in memory."""
        everyone = torch.arange(len(self), device=self.mask.device)
        yield from batch_pairs(everyone, max_pairs_encoded(self.block, self.sae))

    def measure(
        self,
        pair: Int[Tensor, "row"],
        value: Callable[[Window], Float[Tensor, "n pos d_out"]],
        label: str,
        side: Side = "clean",
    ) -> Float[Tensor, "row"]:
        """The metric of prompts in which the dictionary's site has other values.

        Args:
            value: the whole site (heads side by side) for a window, the same as in the unchanged run before `where`.
        """
        rows = self._rows(pair, value, side)
        self.block.meter.begin(label, self.block.estimate(rows))
        return self.block.measure(rows)

    def _rows(self, pair: Tensor, value: Callable[[Window], Tensor], side: Side) -> Rows:
        site, earliest = self.sae.writes, self.mask.int().argmax(1)[pair]
        if site.kind in ("resid_pre", "resid_post"):
            return Rows(
                side, pair, earliest, start=site.layer + (site.kind == "resid_post"), residual=value
            )
        inner = self.block.activation(side, site).shape[2:]

        def edits(window: Window) -> list[Edit]:
            put = value(window)
            return [Edit(site, put.reshape(*put.shape[:2], *inner))]

        return Rows(side, pair, earliest, start=site.layer, edits=edits)


def spliced_blocks(engine: Engine, sae: SAE, places: PairPositions) -> Iterator[SplicedBlock]:
    """Each block of pairs, its sites cached."""
    for first, block in engine.blocks():
        block.load("clean", dict.fromkeys([sae.reads, sae.writes]))
        where = torch.zeros(len(block.prompts), block.prompts.width, dtype=torch.bool)
        for row, chosen in enumerate(places[first : first + len(block.prompts)]):
            where[row, list(chosen)] = True
        yield SplicedBlock(block, sae, first, where.to(block.prompts.length.device))


def cache_sites(engine: Engine, sae: SAE, *also: Site) -> None:
    """Cache what the first block of pairs (mostly the only one) will be asked for, in one pass of each side."""
    _, block = next(engine.blocks())
    block.load(
        "clean",
        dict.fromkeys(
            [sae.reads, sae.writes, stream_entry(engine.backend.info, sae.writes)[0], *also]
        ),
    )
    if any(pair.clean != pair.corrupted for pair in block.prompts.pairs):
        block.load("corrupted", [sae.reads])


def max_pairs_encoded(block: Block, sae: SAE) -> int:
    """How many pairs can be encoded at once."""
    one = CODES_SIZED_TENSORS * block.prompts.width * (sae.d_sae + 2 * sae.d_out) * 4
    return max(1, block.memory // one)


def batch_pairs(pair: Int[Tensor, "n"], size: int) -> list[Int[Tensor, "m"]]:
    """The same pairs, at most `size` at a time."""
    return [pair[first : first + size] for first in range(0, len(pair), size)]


def stream_entry(info: ModelInfo, site: Site) -> tuple[Site, bool]:
    """The residual stream from which a pass reaches a site soonest, and whether it is the site itself."""
    if site.kind == "resid_post" and site.layer + 1 < info.n_layers:
        return Site("resid_pre", site.layer + 1), True
    return Site("resid_pre", site.layer), site.kind == "resid_pre"
