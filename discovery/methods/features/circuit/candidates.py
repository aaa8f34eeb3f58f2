"""Which of the features that attribution put first hold: by their exact effect, its interval, chance, and a control."""

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
MIN_CONTROL_DRAWS = 19  # for a p of LEVEL; of fewer none may do as much


@dataclass(frozen=True)
class Candidate:
    """A feature that attribution put first, and whether it holds.

    Attributes:
        noising, denoising, removal, attribution: shares of m(clean) − m(corrupted).
        p: sign-flip max-statistic of the noising effects, over all candidates.
        control_p: share of pushes along other features' directions that do as much; None without draws.
        why: what it lacks; None where it holds.
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
    found: AttributionRanking,
    measured: ExchangeMeasurement,
    discovery: SplitMeasurement,
    heldout: SplitMeasurement,
) -> tuple[Candidate, ...]:
    """Each candidate, in the order of attribution.

    Args:
        first: the pairs that they were found on. last: those that their exchange was measured on.
    """
    clean, corrupted = (
        heldout.engine.baseline(side).unsqueeze(1) for side in ("clean", "corrupted")
    )
    noising, denoising, removal = (
        clean - measured.noised,
        measured.denoised - corrupted,
        clean - measured.removed,
    )
    chance = max_statistic_test(noising.double().cpu().numpy())
    made = []
    for i, number in enumerate(found.features):
        effect, control = heldout.share_of_gap(noising[:, i]), measured.controls[i]
        made.append(
            Candidate(
                feature_node(sae, number),
                discovery.share_of_gap(found.per_pair[:, i]),
                effect,
                heldout.share_of_gap(denoising[:, i]),
                heldout.share_of_gap(removal[:, i]),
                float(chance[i]),
                control.p if control else None,
                _why_rejected(effect, float(chance[i]), control, len(heldout)),
            )
        )
    return tuple(made)


def _why_rejected(
    effect: Effect, p: float, control: ShuffledDecoderControl | None, pairs: int
) -> str | None:
    mean, low, high = (value or 0.0 for value in (effect.mean, effect.low, effect.high))
    if abs(mean) < MIN_EFFECT_SHARE:
        return f"its exchange moves {mean:+.3f} of the metric (below {MIN_EFFECT_SHARE})"
    if not excludes_zero(effect):
        return f"the interval of its effect, {low:+.3f} to {high:+.3f}, holds 0"
    if p > SIGNIFICANCE_LEVEL:
        return f"over all candidates chance does as much with p = {p:.3f} on {pairs} pairs (above {SIGNIFICANCE_LEVEL})"
    if (
        control is not None
        and control.p > SIGNIFICANCE_LEVEL
        and (control.n >= MIN_CONTROL_DRAWS or control.as_large)
    ):
        return f"{control.as_large} of {control.n} equal pushes along other features' directions do as much"
    return None
