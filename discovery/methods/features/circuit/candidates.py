"""Decide which of the features with the largest attribution hold.

A candidate holds if its exact effect on held-out pairs is large enough, if the interval of the
effect excludes 0, if chance rarely gives such an effect among the candidates, and if equal pushes
along other directions do less.
"""

from __future__ import annotations

from dataclasses import dataclass

from discovery.features import SAE
from discovery.graph import Effect
from discovery.methods.features.circuit.edges import feature_node
from discovery.methods.features.circuit.exchange import AttributionRanking, ExchangeMeasurement
from discovery.methods.features.circuit.split import SplitMeasurement, excludes_zero
from discovery.methods.features.pushes import ShuffledDecoderControl
from discovery.methods.statistics import max_statistic_test
from discovery.sites import Node

MIN_EFFECT_SHARE = 0.01  # of m(clean) − m(corrupted)
SIGNIFICANCE_LEVEL = 0.05

# With this many draws p can reach SIGNIFICANCE_LEVEL. With fewer, no draw at all may do as much.
MIN_CONTROL_DRAWS = 19


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A feature that attribution put first, and whether it holds.

    Attributes:
        node: the feature as a node.
        attribution: its effect to first order, as a share of m(clean) − m(corrupted).
        noising: its exact effect in the clean run, as such a share.
        denoising: its exact effect in the corrupted run, as such a share.
        removal: the effect of setting it to 0, as such a share.
        p: p of the noising effect by a sign-flip max-statistic test over all candidates.
        control_p: p of the shuffled-decoder control; None without draws.
        why: why it does not hold; None if it holds.
    """

    node: Node
    attribution: Effect
    noising: Effect
    denoising: Effect
    removal: Effect
    p: float
    control_p: float | None
    why: str | None


def judge_candidates(
    sae: SAE,
    ranking: AttributionRanking,
    exchange: ExchangeMeasurement,
    discovery: SplitMeasurement,
    heldout: SplitMeasurement,
) -> tuple[Candidate, ...]:
    """Judge each candidate, in the order of attribution.

    Args:
        discovery: the pairs that the candidates were found on.
        heldout: the pairs that their exchange was measured on.
    """
    clean = heldout.engine.baseline("clean").unsqueeze(1)
    corrupted = heldout.engine.baseline("corrupted").unsqueeze(1)
    noising = clean - exchange.noised
    denoising = exchange.denoised - corrupted
    removal = clean - exchange.removed
    chance = max_statistic_test(noising.double().cpu().numpy())
    candidates = []
    for i, number in enumerate(ranking.features):
        effect = heldout.share_of_gap(noising[:, i])
        control = exchange.controls[i]
        p = float(chance[i])
        candidates.append(
            Candidate(
                node=feature_node(sae, number),
                attribution=discovery.share_of_gap(ranking.per_pair[:, i]),
                noising=effect,
                denoising=heldout.share_of_gap(denoising[:, i]),
                removal=heldout.share_of_gap(removal[:, i]),
                p=p,
                control_p=control.p if control else None,
                why=_why_rejected(effect, p, control, len(heldout)),
            )
        )
    return tuple(candidates)


def _why_rejected(
    effect: Effect, p: float, control: ShuffledDecoderControl | None, n_pairs: int
) -> str | None:
    """Return why a feature does not hold, or None if it holds."""
    mean, low, high = (value or 0.0 for value in (effect.mean, effect.low, effect.high))
    if abs(mean) < MIN_EFFECT_SHARE:
        return f"its exchange moves {mean:+.3f} of the metric (below {MIN_EFFECT_SHARE})"
    if not excludes_zero(effect):
        return f"the interval of its effect, {low:+.3f} to {high:+.3f}, contains 0"
    if p > SIGNIFICANCE_LEVEL:
        return (
            f"chance gives such an effect among all candidates with p = {p:.3f} on {n_pairs} pairs "
            f"(above {SIGNIFICANCE_LEVEL})"
        )
    if control is None or control.p <= SIGNIFICANCE_LEVEL:
        return None
    if control.n >= MIN_CONTROL_DRAWS or control.as_large:
        return (
            f"{control.as_large} of {control.n} equal pushes along other features' directions do "
            "as much"
        )
    return None
