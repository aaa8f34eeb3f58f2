"""One feature and all that is measured of it: its size, what it carries, what it does, where it fires, and what it writes.

The features of a dictionary that matter on a prompt or a task: by activation, by attribution, and by exact ablation.

How well the dictionary reconstructs these very activations comes first: what it does not explain, no feature of it explains.
For each of the top features, with m the metric of a pair and z its activation,

    activation     z where it is largest among the chosen positions
    attribution    Σ z · s · <∂m/∂x, d>: what the feature carries, to first order (see `attribution`)
    ablation       m(clean) − m(x − z·s·d at all chosen positions): what it does, exactly, the error term kept
    control        the same push along other features' directions

Attribution and ablation have the metric's units and the same sign: above 0, the feature works for the behaviour. A value is the mean
over pairs with its 95% interval. Of a single prompt the metric is the logit of the most likely next token over the runner-up's.

    from discovery import load_model, load_task, sae_top_features
    model = load_model("gpt2"); task = load_task("ioi", model, pairs=32)
    found = sae_top_features(model, "gpt2-small-res-jb/blocks.8.hook_resid_pre", task=task, positions=["end"])
    found.reconstruction.variance_explained, found.features[0].index, found.features[0].ablation
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError
from discovery.features import SAE, open_sae
from discovery.methods.features.arguments import (
    PairPositions,
    Positions,
    TaskLike,
    make_prompt_task,
    require_counts,
    resolve_positions,
    resolve_task,
)
from discovery.methods.features.attribution import mean_gradient
from discovery.methods.features.circuit.exchange import contributions
from discovery.methods.features.direct_logits import (
    DirectLogitEffect,
    last_layer_sites,
    measure_direct_logits,
)
from discovery.methods.features.firing import (
    Consistency,
    TokenFiring,
    corrupted_peak_activations,
    find_firing_tokens,
    peak_activations,
    summarise_firing,
    unrelated_peak_activations,
)
from discovery.methods.features.pushes import ShuffledDecoderControl, measure_controls, push
from discovery.methods.features.reconstruction import Reconstruction, measure_reconstruction
from discovery.methods.features.splice import SplicedBlock, cache_sites, spliced_blocks
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.progress import ProgressCallback
from discovery.sites import MetricName, Site
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
    control: ShuffledDecoderControl | None
    tokens: tuple[TokenFiring, ...]
    direct: DirectLogitEffect
    consistency: Consistency
    link: str | None
    by_pair: tuple[float, ...] = ()


class FeatureMeasurer:
    """Chosen features, to be measured pair by pair."""

    def __init__(
        self,
        engine: Engine,
        sae: SAE,
        places: PairPositions,
        chosen: tuple[int, ...],
        gradients: dict[int, Tensor] | None,
        resamples: Resamples,
    ) -> None:
        self.engine, self.sae, self.places, self.features = engine, sae, places, chosen
        self.gradients, self.resamples = gradients, resamples
        self.directions = sae.directions(chosen)

    def measure(
        self, controls: int, unrelated: Sequence[Prompt] | None, top_tokens: int, seed: int
    ) -> tuple[Feature, ...]:
        """Everything that is said of each feature."""
        if not self.features:
            return ()
        values: dict[str, list[Tensor]] = {"activation": [], "attribution": [], "ablation": []}
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        direct: tuple[DirectLogitEffect, ...] = ()
        control: list[ShuffledDecoderControl | None] = []
        for view in spliced_blocks(self.engine, self.sae, self.places):
            z, scaled = self._activations(view)
            values["activation"].append(peak_activations(z))
            if self.gradients is not None:
                slope = self.gradients[view.first_pair].to(z) @ self.directions.to(z).T
                values["attribution"].append((scaled * slope).sum(1))
            ablated = push(
                view, -scaled.permute(2, 0, 1).unsqueeze(-1), self.directions.unsqueeze(1)
            )
            values["ablation"].append((view.block.baseline("clean") - ablated).T)
            seen.append((view.block.prompts.clean, view.mask, z))
            if len(seen) == 1:
                direct = measure_direct_logits(view.block, self.sae, self.features, top_tokens)
                control = measure_controls(
                    view, self.features, -scaled, values["ablation"][0], controls, seed
                )
        per_pair = {name: torch.cat(parts) for name, parts in values.items() if parts}
        consistency = self._consistency(per_pair["activation"], unrelated, seed)
        return tuple(
            Feature(
                feature,
                self._interval(per_pair["activation"][:, i]),
                self._interval(per_pair["attribution"][:, i])
                if "attribution" in per_pair
                else None,
                self._interval(per_pair["ablation"][:, i]),
                control[i],
                self._tokens(seen, i),
                direct[i],
                consistency[i],
                self.sae.link(feature),
                tuple(per_pair["activation"][:, i].tolist()),
            )
            for i, feature in enumerate(self.features)
        )

    def _interval(self, values: Float[Tensor, "pair"]) -> Interval:
        return interval_of_mean(values, self.resamples)

    def _tokens(
        self, seen: Sequence[tuple[Tensor, Tensor, Tensor]], i: int
    ) -> tuple[TokenFiring, ...]:
        """Where the feature fires; blocks are padded to one width, and what is padded is not among the chosen positions."""
        width = max(len(pair.clean) for pair in self.engine.task.pairs)
        columns = zip(*((tokens, where, z[..., i]) for tokens, where, z in seen), strict=True)
        joined = (
            torch.cat([pad(part, (0, width - part.shape[1])) for part in column])
            for column in columns
        )
        return find_firing_tokens(self.engine.backend, *joined)

    def _consistency(
        self, clean: Float[Tensor, "pair k"], unrelated: Sequence[Prompt] | None, seed: int
    ) -> list[Consistency]:
        corrupted = corrupted_peak_activations(self.engine, self.sae, self.places, self.features)
        elsewhere = unrelated_peak_activations(
            self.engine, self.sae, self.places, self.features, unrelated, seed
        )
        other = [None] * len(self.features) if corrupted is None else summarise_firing(corrupted)
        return [
            Consistency(*kinds)
            for kinds in zip(
                summarise_firing(clean), other, summarise_firing(elsewhere), strict=True
            )
        ]

    def _activations(
        self, view: SplicedBlock
    ) -> tuple[Float[Tensor, "pair pos k"], Float[Tensor, "pair pos k"]]:
        """z at the chosen positions (0 elsewhere), and z times the dictionary's scale."""
        z, scaled = [], []
        for part in view.pair_batches():
            codes = view.codes(part)
            z.append(codes.features[..., list(self.features)] * view.mask[part].unsqueeze(-1))
            scaled.append(z[-1] * codes.scale)
        return torch.cat(z), torch.cat(scaled)


RankBy = Literal["activation", "attribution", "ablation"]
ABLATION_CANDIDATE_FACTOR = 4  # times as many are ablated as are asked for, the first by attribution, where they are ordered by ablation


@dataclass(frozen=True)
class TopFeatures:
    """The top features, and first of all how far the dictionary can be trusted here.

    Attributes:
        warnings: a poor reconstruction stands first.
        by: what they are ordered by, the largest absolute mean first.
        answer, wrong: the tokens of a single prompt's metric; None of a task.
    """

    reconstruction: Reconstruction
    warnings: tuple[str, ...]
    features: tuple[Feature, ...]
    by: RankBy
    sae: str
    reads: Site
    writes: Site
    metric: MetricName
    metric_clean: float
    n_pairs: int
    answer: int | None
    wrong: int | None
    cost: MeasurementCost


def sae_top_features(
    model: Backend,
    sae: SAE | str | Path | None = None,
    *,
    prompt: Prompt | None = None,
    task: TaskLike | None = None,
    positions: Positions = None,
    k: int = 10,
    by: RankBy | None = None,
    steps: int = 1,
    controls: int = 4,
    unrelated: Sequence[Prompt] | None = None,
    top_tokens: int = 5,
    seed: int = 0,
    metric: MetricName | None = None,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> TopFeatures:
    """Find the features that matter.

    Args:
        sae: a loaded one, or what `load_sae` opens: a SAELens directory, the id of a finished training, "release/sae_id"; the bundled
            model's own where None.
        prompt, task: one of them; of a task the clean prompts of all its pairs are measured. The name of a built-in task, or the path
            of a task file, stands for 32 pairs of it; a list of pairs for all of them.
        positions: from 0, from the end (negative), labels of the task, or a slice; all where None.
        by: attribution (default of a task), activation (default of a prompt), or exact ablation of those that attribution puts first.
        steps: 1 is gradient × activation; more are integrated gradients.
        controls: draws of the shuffled-decoder control for each feature, on at most 32 pairs.
        unrelated: prompts that have nothing to do with the task; random tokens where None.

    Raises:
        FeatureError: the SAE cannot be loaded or does not fit the model.
        MeasurementError: neither or both of prompt and task, unknown choices, or positions that a pair lacks.
    """
    began = time.monotonic()
    order: RankBy = ("activation" if task is None else "attribution") if by is None else by
    _check(prompt, task, order)
    require_counts(k=(k, 1), steps=(steps, 1), controls=(controls, 0), top_tokens=(top_tokens, 0))
    sae = open_sae(sae, model)
    task = None if task is None else resolve_task(task, model, seed)
    meter = Meter(progress=progress)
    pair = None
    if task is None:
        assert prompt is not None
        task, spent = make_prompt_task(model, prompt)
        pair = task.pairs[0]
        meter.add(spent)
    engine = Engine(model, task, metric=metric, memory=memory, meter=meter)
    places = resolve_positions(task, positions)
    cache_sites(engine, sae, *last_layer_sites(model.info))
    flat = engine.metric == "kl_divergence" and steps == 1  # its gradient at the clean run is 0
    if flat and order != "activation":
        raise MeasurementError(
            "kl_divergence has no gradient at the clean run.",
            "Use steps of 2 or more, by='activation', or another metric.",
        )
    resamples = Resamples.of(task, seed=seed)
    base = torch.zeros_like(engine.baseline("clean")) if pair else engine.baseline("corrupted")
    found, _ = measure_reconstruction(engine, sae, places, base, resamples)
    gradients = (
        None
        if flat
        else {
            view.first_pair: mean_gradient(view, steps)
            for view in spliced_blocks(engine, sae, places)
        }
    )
    chosen = _rank_features(
        engine,
        sae,
        places,
        gradients,
        order,
        min(k if order != "ablation" else max(ABLATION_CANDIDATE_FACTOR * k, 32), sae.d_sae),
    )
    if order == "ablation":
        chosen = _rank_by_ablation(engine, sae, places, chosen)[:k]
    features = FeatureMeasurer(engine, sae, places, chosen, gradients, resamples).measure(
        controls, unrelated, top_tokens, seed
    )
    return TopFeatures(
        found,
        tuple(_warnings(found, sae, len(task), flat)),
        features,
        order,
        sae.name,
        sae.reads,
        sae.writes,
        engine.metric,
        float(engine.baseline("clean").double().mean()),
        len(task),
        pair.answer[0] if pair else None,
        pair.wrong[0] if pair else None,
        MeasurementCost(meter.spent, time.monotonic() - began),
    )


def _check(prompt: Prompt | None, task: TaskLike | None, order: str) -> None:
    if (prompt is None) == (task is None):
        given = "Neither a prompt nor a task" if prompt is None else "Both a prompt and a task"
        raise MeasurementError(f"{given} was given.", "Give one of prompt and task.")
    if order not in get_args(RankBy):
        raise MeasurementError(
            f"by {order!r} is not known.", f"Allowed: {', '.join(get_args(RankBy))}."
        )


def _warnings(found: Reconstruction, sae: SAE, n_pairs: int, flat: bool) -> Sequence[str]:
    warnings = [
        f"POOR RECONSTRUCTION: {fault}; its features explain little here" for fault in found.poor
    ]
    warnings += [*found.notes, *sae.warnings]
    if n_pairs == 1:
        warnings.append("one prompt: the intervals have no width and say nothing of other prompts")
    if flat:
        warnings.append(
            "kl_divergence has no gradient at the clean run: attribution is left out (use steps of 2 or more)"
        )
    return warnings


def _rank_features(
    engine: Engine,
    sae: SAE,
    places: PairPositions,
    gradients: dict[int, Tensor] | None,
    order: RankBy,
    k: int,
) -> tuple[int, ...]:
    """The features with the largest absolute mean."""
    total = torch.zeros(sae.d_sae, dtype=torch.float64)
    for view in spliced_blocks(engine, sae, places):
        for part in view.pair_batches():
            codes = view.codes(part)
            features = codes.features * view.mask[part].unsqueeze(-1)
            if order == "activation" or gradients is None:
                total += features.abs().amax(1).double().sum(0).cpu()
            else:
                slope = (
                    gradients[view.first_pair][part.cpu()].to(features) * codes.scale
                ) @ sae.directions().T
                total += (features * slope).sum(1).double().sum(0).cpu()
    best = total.abs().topk(k)
    return tuple(
        feature
        for feature, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if value > 0
    )


def _rank_by_ablation(
    engine: Engine, sae: SAE, places: PairPositions, candidates: tuple[int, ...]
) -> tuple[int, ...]:
    """The same features, the largest exact effect first."""
    if not candidates:
        return ()
    total = torch.zeros(len(candidates), dtype=torch.float64)
    for view in spliced_blocks(engine, sae, places):
        _, scaled = contributions(view, candidates, "clean")
        ablated = push(
            view, -scaled.permute(2, 0, 1).unsqueeze(-1), sae.directions(candidates).unsqueeze(1)
        )
        total += (view.block.baseline("clean") - ablated).double().sum(1).cpu()
    order = total.abs().argsort(descending=True, stable=True).tolist()
    return tuple(candidates[i] for i in order)
