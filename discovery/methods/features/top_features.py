"""The features of an SAE that matter most on a prompt or a task, and what each of them does.

The reconstruction of these very activations is measured first, because no feature explains what the
SAE does not reconstruct. For each of the top features, with m the metric of a pair and z the
feature's activation:

    activation     z where it is largest among the chosen positions
    attribution    Σ z · s · <∂m/∂x, d>: what the feature carries, to first order (see the module
                   `attribution`)
    ablation       m(clean) − m(x − z·s·d at all chosen positions): its exact effect, with the error
                   term kept
    control        the same push along the directions of other features (see `pushes`)

Attribution and ablation have the metric's units and the same sign: above 0, the feature works for
the behaviour. A value is the mean over pairs with its 95% interval. For a single prompt the metric
is the logit of the most likely next token minus that of the runner-up.

    from discovery import load_model, load_task, sae_top_features
    model = load_model("gpt2")
    task = load_task("ioi", model, pairs=32)
    sae = "gpt2-small-res-jb/blocks.8.hook_resid_pre"
    top = sae_top_features(model, sae, task=task, positions=["end"])
    top.reconstruction.variance_explained, top.features[0].index, top.features[0].ablation
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError, require_choice
from discovery.features import SAE, open_sae
from discovery.methods.arguments import (
    Positions,
    require_counts,
)
from discovery.methods.features.attribution import largest_features, mean_gradient
from discovery.methods.features.collector import FeatureCollector
from discovery.methods.features.direct_logits import (
    DirectLogitEffect,
    last_layer_sites,
    measure_direct_logits,
)
from discovery.methods.features.firing import Consistency, TokenFiring, measure_consistency
from discovery.methods.features.pushes import (
    ShuffledDecoderControl,
    measure_controls,
    one_case_each,
    push,
)
from discovery.methods.features.reconstruction import Reconstruction, measure_reconstruction
from discovery.methods.features.splice import SplicedTask
from discovery.methods.statistics import Interval, interval_of_mean
from discovery.methods.subject import TaskLike, make_prompt_task, resolve_task
from discovery.progress import ProgressCallback
from discovery.sites import MetricName, Site
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Task

RankBy = Literal["activation", "attribution", "ablation"]

# To rank by ablation, this many times as many features are ablated as are asked for, and at least
# MIN_ABLATION_CANDIDATES: those with the largest attribution.
ABLATION_CANDIDATE_FACTOR = 4
MIN_ABLATION_CANDIDATES = 32

# The mean gradient of each block of pairs, by the number of the block's first pair.
Gradients = Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature and what was measured of it.

    Attributes:
        index: the feature's number in the SAE.
        activation: its largest activation of each pair.
        attribution: its attribution; None if the metric has no gradient at the clean run.
        ablation: its exact effect.
        control: None if no draws were asked for, or if the SAE has no other feature.
        tokens: where it fires, the largest activation first.
        direct: tokens that it promotes and suppresses, with the final norm linearised.
        consistency: how often it fires on clean, corrupted and unrelated prompts.
        link: its page on Neuronpedia.
        by_pair: the activation of each pair.
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


@dataclass(frozen=True, kw_only=True)
class TopFeatures:
    """The top features, and how far the SAE can be trusted on these prompts.

    Attributes:
        reconstruction: how well the SAE reconstructs these activations.
        warnings: what to know first; a poor reconstruction stands at the beginning.
        features: the features in the order of `by`, the largest absolute mean first.
        by: what the features are ranked by.
        sae: the SAE's name.
        reads: the site that the SAE encodes.
        writes: the site that the SAE reconstructs.
        metric: the metric's name.
        metric_clean: its mean in the clean runs.
        n_pairs: number of pairs; 1 for a prompt.
        answer: the most likely next token of a prompt; None for a task.
        wrong: the runner-up of a prompt; None for a task.
        cost: the work done.
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
    """Find the features that matter most on a prompt or a task.

    Args:
        sae: a loaded SAE, or what `load_sae` opens: a SAELens directory, the id of a finished
            training, or "release/sae_id". The default is the bundled model's own.
        prompt: a single prompt; give either this or a task.
        task: a task, whose clean prompts are measured on all its pairs. The name of a built-in task
            or the path of a task file stands for 32 of its pairs, and a list of pairs for all.
        positions: positions that count from 0 or (negative) from the end, labels of the task, or a
            slice. The default is all positions.
        k: how many features to return.
        by: what ranks the features: attribution (the default for a task), activation (the default
            for a prompt), or exact ablation of those that attribution puts first.
        steps: 1 is gradient × activation; more steps are integrated gradients.
        controls: draws of the shuffled-decoder control for each feature, on at most 32 pairs.
        unrelated: prompts that have nothing to do with the task. The default is random tokens.
        top_tokens: how many promoted and suppressed tokens to list.

    Raises:
        FeatureError: if the SAE cannot be loaded or does not fit the model.
        MeasurementError: if not exactly one of prompt and task is given, for unknown choices, and
            if a pair has none of the positions.
    """
    started = time.monotonic()
    if by is None:
        by = "activation" if task is None else "attribution"
    _require_one(prompt, task)
    require_choice("by", by, get_args(RankBy))
    require_counts(k=(k, 1), steps=(steps, 1), controls=(controls, 0), top_tokens=(top_tokens, 0))
    sae = open_sae(sae, model)
    meter = Meter(progress=progress)
    pairs = _resolve_pairs(model, prompt, task, seed, meter)
    last = last_layer_sites(model.info)
    spliced = SplicedTask.of(
        model, pairs, sae, positions, meter, metric=metric, memory=memory, seed=seed, sites=last
    )
    has_gradient = _require_gradient(spliced, steps, by)
    clean = spliced.engine.baseline("clean")
    base = torch.zeros_like(clean) if task is None else spliced.engine.baseline("corrupted")
    reconstruction, _ = measure_reconstruction(spliced, base)
    gradients = _mean_gradients(spliced, steps) if has_gradient else None
    ranked = _top_features(spliced, gradients, by, k)
    features = measure_features(
        spliced, ranked, gradients, draws=controls, unrelated=unrelated, top=top_tokens, seed=seed
    )
    pair = pairs.pairs[0]
    return TopFeatures(
        reconstruction=reconstruction,
        warnings=tuple(_warnings(reconstruction, sae, len(pairs), has_gradient)),
        features=features,
        by=by,
        sae=sae.name,
        reads=sae.reads,
        writes=sae.writes,
        metric=spliced.engine.metric,
        metric_clean=float(clean.double().mean()),
        n_pairs=len(pairs),
        answer=pair.answer[0] if task is None else None,
        wrong=pair.wrong[0] if task is None else None,
        cost=MeasurementCost(meter.spent, time.monotonic() - started),
    )


def measure_features(
    spliced: SplicedTask,
    features: tuple[int, ...],
    gradients: Gradients | None,
    *,
    draws: int,
    unrelated: Sequence[Prompt] | None,
    top: int,
    seed: int,
) -> tuple[Feature, ...]:
    """Measure everything that a `Feature` holds.

    Args:
        gradients: None leaves the attribution out.
        draws: draws of the shuffled-decoder control for each feature.
        unrelated: as in `sae_top_features`.
        top: how many promoted and suppressed tokens to list.
    """
    if not features:
        return ()
    directions = spliced.sae.directions(features)
    collector = FeatureCollector()
    direct: Sequence[DirectLogitEffect] = ()
    controls: Sequence[ShuffledDecoderControl | None] = ()
    for view in spliced.blocks():
        z, contribution = view.contributions(features)
        values = {}
        if gradients is not None:
            slope = gradients[view.first_pair].to(z) @ directions.to(z).T
            values["attribution"] = (contribution * slope).sum(1)
        ablated = push(view, one_case_each(-contribution), directions.unsqueeze(1))
        effects = (view.block.baseline("clean") - ablated).T
        collector.add(view, z, ablation=effects, **values)
        if collector.is_first_block:
            direct = measure_direct_logits(view.block, spliced.sae, features, top)
            controls = measure_controls(view, features, -contribution, effects, draws, seed)
    per_pair = collector.per_pair()
    consistency = measure_consistency(spliced, features, per_pair["activation"], unrelated, seed)
    tokens = collector.firing_tokens(spliced.engine)

    def interval(name: str, i: int) -> Interval:
        return interval_of_mean(per_pair[name][:, i], spliced.resamples)

    return tuple(
        Feature(
            index=feature,
            activation=interval("activation", i),
            attribution=interval("attribution", i) if gradients is not None else None,
            ablation=interval("ablation", i),
            control=controls[i],
            tokens=tokens[i],
            direct=direct[i],
            consistency=consistency[i],
            link=spliced.sae.link(feature),
            by_pair=tuple(per_pair["activation"][:, i].tolist()),
        )
        for i, feature in enumerate(features)
    )


def _require_one(prompt: Prompt | None, task: TaskLike | None) -> None:
    if (prompt is None) == (task is None):
        problem = "Neither a prompt nor a task" if prompt is None else "Both a prompt and a task"
        raise MeasurementError(f"{problem} was given.", "Give one of prompt and task.")


def _resolve_pairs(
    model: Backend, prompt: Prompt | None, task: TaskLike | None, seed: int, meter: Meter
) -> Task:
    """Return the task, or the prompt as a task of one pair, whose work is counted."""
    if task is not None:
        return resolve_task(task, model, seed)
    assert prompt is not None
    prompt_task, work = make_prompt_task(model, prompt)
    meter.add(work)
    return prompt_task


def _require_gradient(spliced: SplicedTask, steps: int, by: RankBy) -> bool:
    """Return whether the metric has a gradient at the points of the path.

    The KL divergence from the clean run is 0 and flat at the clean run, which is the only point if
    there is one step.
    """
    if spliced.engine.metric != "kl_divergence" or steps > 1:
        return True
    if by != "activation":
        raise MeasurementError(
            "kl_divergence has no gradient at the clean run.",
            "Use steps of 2 or more, by='activation', or another metric.",
        )
    return False


def _mean_gradients(spliced: SplicedTask, steps: int) -> Gradients:
    return {view.first_pair: mean_gradient(view, steps) for view in spliced.blocks()}


def _warnings(
    reconstruction: Reconstruction, sae: SAE, n_pairs: int, has_gradient: bool
) -> Sequence[str]:
    warnings = [*reconstruction.warnings, *sae.warnings]
    if n_pairs == 1:
        warnings.append("one prompt: the intervals have no width and say nothing of other prompts")
    if not has_gradient:
        warnings.append(
            "kl_divergence has no gradient at the clean run: attribution is left out "
            "(use steps of 2 or more)"
        )
    return warnings


def _top_features(
    spliced: SplicedTask, gradients: Gradients | None, by: RankBy, k: int
) -> tuple[int, ...]:
    """Return the k features that rank first."""
    d_sae = spliced.sae.d_sae
    if by != "ablation":
        return _rank_features(spliced, gradients, by, min(k, d_sae))
    count = max(ABLATION_CANDIDATE_FACTOR * k, MIN_ABLATION_CANDIDATES)
    candidates = _rank_features(spliced, gradients, by, min(count, d_sae))
    return _rank_by_ablation(spliced, candidates)[:k]


def _rank_features(
    spliced: SplicedTask, gradients: Gradients | None, by: RankBy, k: int
) -> tuple[int, ...]:
    """Return the features with the largest absolute mean of activation or attribution."""
    sae = spliced.sae
    total = torch.zeros(sae.d_sae, dtype=torch.float64)
    for view in spliced.blocks():
        for pairs in view.pair_batches():
            codes = view.codes(pairs)
            z = codes.features * view.mask[pairs].unsqueeze(-1)
            if by == "activation" or gradients is None:
                total += z.abs().amax(1).double().sum(0).cpu()
                continue
            gradient = gradients[view.first_pair][pairs.cpu()].to(z) * codes.scale
            slope = gradient @ sae.directions().T
            total += (z * slope).sum(1).double().sum(0).cpu()
    return largest_features(total, k)


def _rank_by_ablation(spliced: SplicedTask, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """Return the same features, the largest exact effect first."""
    if not candidates:
        return ()
    directions = spliced.sae.directions(candidates).unsqueeze(1)
    total = torch.zeros(len(candidates), dtype=torch.float64)
    for view in spliced.blocks():
        _, contribution = view.contributions(candidates)
        ablated = push(view, one_case_each(-contribution), directions)
        total += (view.block.baseline("clean") - ablated).double().sum(1).cpu()
    order = total.abs().argsort(descending=True, stable=True).tolist()
    return tuple(candidates[i] for i in order)
