"""One feature and all that is measured of it: its size, what it carries, what it does, where it fires, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from discovery.engine import Engine
from discovery.features import SAE
from discovery.methods.bootstrap import Interval, Resamples, interval_of_mean
from discovery.methods.features.direct import DirectEffect, direct_effects
from discovery.methods.features.firing import Consistency, Firing, fires, firing_tokens, peaks, peaks_corrupted, peaks_unrelated
from discovery.methods.features.places import Places
from discovery.methods.features.removal import Control, push, shuffled
from discovery.methods.features.splice import Spliced, spliced
from discovery.tasks.pairs import Prompt


@dataclass(frozen=True)
class Feature:
    """One feature and what was measured of it.

    Attributes:
        attribution: None where the metric has no gradient at the clean run.
        control: None where no draws were asked for, or there is no other feature.
        tokens: where it fires, the largest activation first.
        direct: tokens it promotes and suppresses; the final norm is linearised.
        link: its page on Neuronpedia.
        by_pair: each pair's activation.
    """

    index: int
    activation: Interval
    attribution: Interval | None
    ablation: Interval
    control: Control | None
    tokens: tuple[Firing, ...]
    direct: DirectEffect
    consistency: Consistency
    link: str | None
    by_pair: tuple[float, ...] = ()


class Measured:
    """Chosen features, to be measured pair by pair."""

    def __init__(
        self,
        engine: Engine,
        sae: SAE,
        places: Places,
        chosen: tuple[int, ...],
        gradients: dict[int, Tensor] | None,
        resamples: Resamples,
    ) -> None:
        self.engine, self.sae, self.places, self.chosen = engine, sae, places, chosen
        self.gradients, self.resamples = gradients, resamples
        self.directions = sae.directions(chosen)

    def measure(self, controls: int, unrelated: Sequence[Prompt] | None, top_tokens: int, seed: int) -> tuple[Feature, ...]:
        """Everything that is said of each feature."""
        if not self.chosen:
            return ()
        values: dict[str, list[Tensor]] = {"activation": [], "attribution": [], "ablation": []}
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        direct: tuple[DirectEffect, ...] = ()
        control: list[Control | None] = []
        for view in spliced(self.engine, self.sae, self.places):
            z, scaled = self._activations(view)
            values["activation"].append(peaks(z))
            if self.gradients is not None:
                slope = self.gradients[view.first].to(z) @ self.directions.to(z).T
                values["attribution"].append((scaled * slope).sum(1))
            ablated = push(view, -scaled.permute(2, 0, 1).unsqueeze(-1), self.directions.unsqueeze(1))
            values["ablation"].append((view.block.baseline("clean") - ablated).T)
            seen.append((view.block.prompts.clean, view.where, z))
            if len(seen) == 1:
                direct = direct_effects(view.block, self.sae, self.chosen, top_tokens)
                control = shuffled(view, self.chosen, -scaled, values["ablation"][0], controls, seed)
        per_pair = {name: torch.cat(parts) for name, parts in values.items() if parts}
        consistency = self._consistency(per_pair["activation"], unrelated, seed)
        return tuple(
            Feature(
                feature,
                self._interval(per_pair["activation"][:, i]),
                self._interval(per_pair["attribution"][:, i]) if "attribution" in per_pair else None,
                self._interval(per_pair["ablation"][:, i]),
                control[i],
                self._tokens(seen, i),
                direct[i],
                consistency[i],
                self.sae.link(feature),
                tuple(per_pair["activation"][:, i].tolist()),
            )
            for i, feature in enumerate(self.chosen)
        )

    def _interval(self, values: Float[Tensor, "pair"]) -> Interval:
        return interval_of_mean(values, self.resamples)

    def _tokens(self, seen: Sequence[tuple[Tensor, Tensor, Tensor]], i: int) -> tuple[Firing, ...]:
        """Where the feature fires; blocks are padded to one width, and what is padded is not among the chosen positions."""
        width = max(len(pair.clean) for pair in self.engine.task.pairs)
        columns = zip(*((tokens, where, z[..., i]) for tokens, where, z in seen), strict=True)
        joined = (torch.cat([pad(part, (0, width - part.shape[1])) for part in column]) for column in columns)
        return firing_tokens(self.engine.backend, *joined)

    def _consistency(self, clean: Float[Tensor, "pair k"], unrelated: Sequence[Prompt] | None, seed: int) -> list[Consistency]:
        corrupted = peaks_corrupted(self.engine, self.sae, self.places, self.chosen)
        elsewhere = peaks_unrelated(self.engine, self.sae, self.places, self.chosen, unrelated, seed)
        other = [None] * len(self.chosen) if corrupted is None else fires(corrupted)
        return [Consistency(*kinds) for kinds in zip(fires(clean), other, fires(elsewhere), strict=True)]

    def _activations(self, view: Spliced) -> tuple[Float[Tensor, "pair pos k"], Float[Tensor, "pair pos k"]]:
        """z at the chosen positions (0 elsewhere), and z times the dictionary's scale."""
        z, scaled = [], []
        for part in view.parts():
            codes = view.codes(part)
            z.append(codes.features[..., list(self.chosen)] * view.where[part].unsqueeze(-1))
            scaled.append(z[-1] * codes.scale)
        return torch.cat(z), torch.cat(scaled)
