"""Features exchanged, and patched along paths: computed on the weights, pair by pair, in float64.

The dictionary is a standard SAE with SAELens's layer norm, in a native model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from discovery.tasks.task import EncodedPair
from tests.oracles.patching.path_patching import PathPatchingOracle

POSITIONS = [1, 3, -1]  # the positions at which features are changed


class FeaturePatchingOracle:
    """Computes what `exchange` and `edges` measure, without caches and batches.

    Activations have the shape [pos d], and those of features [pos feature] or [pos].
    """

    def __init__(
        self,
        native: PathPatchingOracle,
        module: nn.Module,
        reads: str,
        writes: str,
        pairs: Sequence[EncodedPair],
    ) -> None:
        self.native = native
        self.reads = reads
        self.writes = writes
        self.pairs = pairs
        self.w = {name: value.double() for name, value in module.named_parameters()}
        self._contributions: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and s·z of an activation."""
        mean = x.mean(-1, keepdim=True)
        spread = x.std(-1, keepdim=True)
        inside = (x - mean) / (spread + 1e-5)
        z = ((inside - self.w["b_dec"]) @ self.w["W_enc"] + self.w["b_enc"]).relu()
        return z, z * spread

    def sides(self, pair: EncodedPair) -> tuple[Tensor, Tensor]:
        """Return the token ids of the clean and of the corrupted prompt."""
        return torch.tensor(pair.clean), torch.tensor(pair.corrupted)

    def metric(self, pair: EncodedPair, logits: Tensor) -> Tensor:
        """Return the logit difference."""
        return logits[list(pair.answer)].logsumexp(0) - logits[list(pair.wrong)].logsumexp(0)

    def at_positions(self, pair: EncodedPair, change: Tensor) -> Tensor:
        """Return a change at the chosen positions, and 0 elsewhere."""
        limited = torch.zeros_like(change)
        positions = [position % len(pair.clean) for position in POSITIONS]
        limited[positions] = change[positions]
        return limited

    def contributions(self, pair: EncodedPair) -> list[tuple[Tensor, Tensor]]:
        """Return z and s·z in the clean run, and in the corrupted run."""
        if id(pair) not in self._contributions:
            self._contributions[id(pair)] = [
                self.codes(self.native.sites(side)[1][self.reads]) for side in self.sides(pair)
            ]
        return self._contributions[id(pair)]

    def metric_after_push(
        self, pair: EncodedPair, tokens: Tensor, amount: Tensor, feature: int
    ) -> Tensor:
        """Return the metric of a run in which a feature's direction is added by an amount."""
        push = self.at_positions(pair, amount)[:, None] * self.w["W_dec"][feature]
        return self.metric(pair, self.native.sites(tokens, {self.writes: push})[0])

    def exchange_effects(self, feature: int) -> Tensor:
        """Return noised, denoised, removed and activation, each of every pair."""
        rows = []
        for pair in self.pairs:
            clean, corrupted = self.sides(pair)
            (z, c_clean), (_, c_corrupted) = self.contributions(pair)
            here, there = c_clean[:, feature], c_corrupted[:, feature]
            peak = self.at_positions(pair, z[:, feature]).max()
            pushes = ((clean, there - here), (corrupted, here - there), (clean, -here))
            metrics = [self.metric_after_push(pair, *push, feature) for push in pushes]
            rows.append(torch.stack([*metrics, peak]))
        return torch.stack(rows).T

    def effect_on_feature(self, source: str, feature: int) -> Tensor:
        """Patch what the dictionary alone reads from a node.

        Returns:
            For each pair: the metric, how far the activation moves towards that of the corrupted
            run, and how far the two runs' activations are apart.
        """
        rows = []
        for pair in self.pairs:
            clean, corrupted = self.sides(pair)
            message = self.native.values(corrupted)[source] - self.native.values(clean)[source]
            activation = self.native.sites(clean)[1][self.reads]
            if self.reads.startswith("z"):
                d_head, head = self.native.config["d_head"], int(source.split("h")[1])
                message = torch.zeros_like(activation)
                other = self.native.sites(corrupted)[1][self.reads]
                own = slice(head * d_head, (head + 1) * d_head)
                message[:, own] = (other - activation)[:, own]
            (z, c), (z_patched, c_patched) = (
                self.codes(activation),
                self.codes(activation + message),
            )
            gap = z[:, feature] - self.contributions(pair)[1][0][:, feature]
            change = (z[:, feature] - z_patched[:, feature]) * gap.sign()
            amount = c_patched[:, feature] - c[:, feature]
            rows.append(
                torch.stack(
                    [
                        self.metric_after_push(pair, clean, amount, feature),
                        self.at_positions(pair, change).sum(),
                        self.at_positions(pair, gap.abs()).sum(),
                    ]
                )
            )
        return torch.stack(rows).T

    def effect_on_node(self, feature: int, target: str, slots: Collection[str]) -> Tensor:
        """Return the metric if these inputs of a node alone read the corrupted run's feature."""
        rows = []
        for pair in self.pairs:
            clean, _ = self.sides(pair)
            (_, here), (_, there) = self.contributions(pair)
            direction = self.w["W_dec"][feature]
            if self.writes.startswith("z"):
                layer, d_head = int(self.writes[-1]), self.native.config["d_head"]
                heads = self.native.w[f"blocks.{layer}.attn.W_O"]
                by_head = direction.split(d_head)
                direction = torch.stack([part @ heads[h] for h, part in enumerate(by_head)]).sum(0)
            amount = self.at_positions(pair, there[:, feature] - here[:, feature])
            message = amount[:, None] * direction
            logits = self.native.logits_with_message(clean, target, slots, message)
            rows.append(self.metric(pair, logits))
        return torch.stack(rows)
