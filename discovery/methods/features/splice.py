"""An SAE spliced into a task's pairs: its features in the clean runs, and runs with its site
changed.

`SplicedTask` holds what every feature measurement needs. `SplicedBlock` is one block of its pairs,
small enough to be computed together: it encodes the cached activations, and it measures the metric
of prompts in which the activation at the SAE's site is replaced.

If the site is in the residual stream, a changed prompt starts at the changed stream, so no earlier
layer runs again. At any other site an edit replaces the value. The work of encoding and decoding is
counted in multiply-adds, as the work of the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.base import Backend
from discovery.backends.info import ModelInfo
from discovery.engine import Block, Engine, Meter, Rows, Side, Window, prompt_macs
from discovery.features import SAE, Codes
from discovery.interventions import Edit
from discovery.methods.arguments import PairPositions, Positions, resolve_positions
from discovery.methods.statistics import Resamples
from discovery.sites import MetricName, Site
from discovery.tasks.task import Task

CODES_SIZED_TENSORS = 6  # tensors as large as the codes that encoding holds at once


@dataclass(frozen=True, kw_only=True)
class SplicedTask:
    """A task's pairs on an engine, with the SAE whose features are measured in them.

    Attributes:
        engine: runs the model on the pairs.
        sae: the SAE.
        positions: for each pair, the positions that are measured and changed.
        resamples: bootstrap resamples of the pairs, which every interval uses.
    """

    engine: Engine
    sae: SAE
    positions: PairPositions
    resamples: Resamples

    @classmethod
    def of(
        cls,
        model: Backend,
        task: Task,
        sae: SAE,
        positions: Positions,
        meter: Meter,
        *,
        metric: MetricName | None,
        memory: int | None,
        seed: int,
        sites: Sequence[Site] = (),
    ) -> SplicedTask:
        """Resolve the positions, and cache the activations of the first block of pairs.

        Args:
            sites: further sites that the caller reads beside those of the SAE. They are cached in
            the
                same pass.
        """
        engine = Engine(model, task, metric=metric, memory=memory, meter=meter)
        spliced = cls(
            engine=engine,
            sae=sae,
            positions=resolve_positions(task, positions),
            resamples=Resamples.of(task, seed=seed),
        )
        spliced._cache_first_block(sites)
        return spliced

    def blocks(self) -> Iterator[SplicedBlock]:
        """Yield each block of pairs, with the SAE's sites cached."""
        sae = self.sae
        for first, block in self.engine.blocks():
            block.load("clean", dict.fromkeys([sae.reads, sae.writes]))
            mask = torch.zeros(len(block.prompts), block.prompts.width, dtype=torch.bool)
            for row, pair_positions in enumerate(
                self.positions[first : first + len(block.prompts)]
            ):
                mask[row, list(pair_positions)] = True
            yield SplicedBlock(block, sae, first, mask.to(block.prompts.length.device))

    def _cache_first_block(self, further: Sequence[Site]) -> None:
        """Cache all sites of the first block, which is mostly the only one, in one pass a side."""
        sae = self.sae
        _, block = next(self.engine.blocks())
        entry, _ = stream_entry(self.engine.backend.info, sae.writes)
        block.load("clean", dict.fromkeys([sae.reads, sae.writes, entry, *further]))
        if any(pair.clean != pair.corrupted for pair in block.prompts.pairs):
            block.load("corrupted", [sae.reads])


@dataclass(frozen=True)
class SplicedBlock:
    """One block of pairs seen through an SAE.

    Attributes:
        block: the pairs, with their cached activations.
        sae: the SAE.
        first_pair: number of the block's first pair in the task.
        mask: whether a position of a pair is measured and changed.
    """

    block: Block
    sae: SAE
    first_pair: int
    mask: Bool[Tensor, "pair pos"]

    def __len__(self) -> int:
        return len(self.block.prompts)

    @property
    def all_pairs(self) -> Int[Tensor, "pair"]:
        """The numbers of all pairs of the block, counted from 0."""
        return torch.arange(len(self), device=self.mask.device)

    def target_activation(
        self, pair: Int[Tensor, "n"], side: Side = "clean"
    ) -> Float[Tensor, "n pos d_out"]:
        """Return the activation that the SAE reconstructs, with heads side by side."""
        return self.block.activation(side, self.sae.writes)[pair].flatten(2)

    def codes(
        self,
        pair: Int[Tensor, "n"],
        side: Side = "clean",
        shift: Float[Tensor, "pair pos ..."] | None = None,
    ) -> Codes:
        """Encode and decode the activations of these pairs.

        Args:
            shift: what is added to the activation that the SAE reads, for all pairs of the block.
        """
        activation = self.block.activation(side, self.sae.reads)[pair]
        if shift is not None:
            activation = activation + shift[pair].to(activation)
        codes = self.sae.codes(activation)
        prompts = self.block.prompts
        work = self.sae.work(prompts.width)
        lengths = prompts.length[pair].tolist()
        self.block.meter.add(forward_equivalents(self.block.backend.info, work, lengths))
        return codes

    def contributions(
        self,
        features: Sequence[int],
        side: Side = "clean",
        shift: Float[Tensor, "pair pos ..."] | None = None,
    ) -> tuple[Float[Tensor, "pair pos k"], Float[Tensor, "pair pos k"]]:
        """Measure what features contribute in a run; both results are 0 outside the mask.

        Args:
            shift: as in `codes`.

        Returns:
            The activations z of the features, and their contributions c = s · z, with s the scale
            of the SAE: what each feature adds to the site along its decoder direction.
        """
        activations, contributions = [], []
        for pairs in self.pair_batches():
            codes = self.codes(pairs, side, shift)
            z = codes.features[..., list(features)] * self.mask[pairs].unsqueeze(-1)
            activations.append(z)
            contributions.append(z * codes.scale)
        return torch.cat(activations), torch.cat(contributions)

    def pair_batches(self) -> Iterator[Int[Tensor, "n"]]:
        """Yield the block's pairs in batches whose codes fit in memory."""
        yield from batch_pairs(self.all_pairs, max_pairs_encoded(self.block, self.sae))

    def measure(
        self,
        pair: Int[Tensor, "row"],
        value: Callable[[Window], Float[Tensor, "n pos d_out"]],
        label: str,
        side: Side = "clean",
    ) -> Float[Tensor, "row"]:
        """Measure the metric of prompts in which the SAE's site has other values.

        Args:
            pair: the pair that each row changes.
            value: computes the whole site (heads side by side) for a window of rows. Before the
                first position of the mask it must be as in the unchanged run.
            label: the step that progress reports name.
            side: the run that is changed.
        """
        rows = self._rows(pair, value, side)
        self.block.meter.begin(label, self.block.estimate(rows))
        return self.block.measure(rows)

    def _rows(self, pair: Tensor, value: Callable[[Window], Tensor], side: Side) -> Rows:
        site = self.sae.writes
        earliest = self.mask.int().argmax(1)[pair]
        if site.kind in ("resid_pre", "resid_post"):
            start_layer = site.layer + (site.kind == "resid_post")
            return Rows(side, pair, earliest, start=start_layer, residual=value)
        inner_shape = self.block.activation(side, site).shape[2:]

        def edits(window: Window) -> list[Edit]:
            replacement = value(window)
            return [Edit(site, replacement.reshape(*replacement.shape[:2], *inner_shape))]

        return Rows(side, pair, earliest, start=site.layer, edits=edits)


def forward_equivalents(info: ModelInfo, macs: float, lengths: Iterable[int]) -> float:
    """Return the forward-pass equivalents of `macs` multiply-adds on each prompt."""
    return sum(macs / prompt_macs(info, length) for length in lengths)


def max_pairs_encoded(block: Block, sae: SAE) -> int:
    """Return how many pairs can be encoded at once within the block's memory."""
    bytes_per_pair = CODES_SIZED_TENSORS * block.prompts.width * (sae.d_sae + 2 * sae.d_out) * 4
    return max(1, block.memory // bytes_per_pair)


def batch_pairs(pair: Int[Tensor, "n"], size: int) -> list[Int[Tensor, "m"]]:
    """Split pairs into batches of at most `size`."""
    return [pair[first : first + size] for first in range(0, len(pair), size)]


def stream_entry(info: ModelInfo, site: Site) -> tuple[Site, bool]:
    """Return where a forward pass can start so that it reaches a site soonest.

    Returns:
        The residual stream to start from, and whether it is the site itself.
    """
    if site.kind == "resid_post" and site.layer + 1 < info.n_layers:
        return Site("resid_pre", site.layer + 1), True
    return Site("resid_pre", site.layer), site.kind == "resid_pre"
