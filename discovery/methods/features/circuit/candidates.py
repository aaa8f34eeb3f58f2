"""Which of the features that attribution put first hold: by their exact effect, its interval, chance, and a control."""

from __future__ import annotations

from dataclasses import dataclass

from discovery.features import SAE
from discovery.graph import Effect
from discovery.methods.features.circuit.edges import node_of
from discovery.methods.features.circuit.exchange import Exchanged, Found
from discovery.methods.features.circuit.split import Half, leaves_out_zero
from discovery.methods.features.pushes import Control
from discovery.methods.statistics import max_statistic
from discovery.sites import Node

LEAST = 0.01  # of m(clean) − m(corrupted)
LEVEL = 0.05
ENOUGH_DRAWS = 19  # for a p of LEVEL; of fewer none may do as much


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


def judged(sae: SAE, found: Found, measured: Exchanged, first: Half, last: Half) -> tuple[Candidate, ...]:
    """Each candidate, in the order of attribution.

    Args:
        first: the pairs that they were found on. last: those that their exchange was measured on.
    """
    clean, corrupted = (last.engine.baseline(side).unsqueeze(1) for side in ("clean", "corrupted"))
    noising, denoising, removal = clean - measured.noised, measured.denoised - corrupted, clean - measured.removed
    chance = max_statistic(noising.double().cpu().numpy())
    made = []
    for i, number in enumerate(found.features):
        effect, control = last.share(noising[:, i]), measured.controls[i]
        made.append(
            Candidate(
                node_of(sae, number),
                first.share(found.per_pair[:, i]),
                effect,
                last.share(denoising[:, i]),
                last.share(removal[:, i]),
                float(chance[i]),
                control.p if control else None,
                _lack(effect, float(chance[i]), control, len(last)),
            )
        )
    return tuple(made)


def _lack(effect: Effect, p: float, control: Control | None, pairs: int) -> str | None:
    mean, low, high = (value or 0.0 for value in (effect.mean, effect.low, effect.high))
    if abs(mean) < LEAST:
        return f"its exchange moves {mean:+.3f} of the metric (below {LEAST})"
    if not leaves_out_zero(effect):
        return f"the interval of its effect, {low:+.3f} to {high:+.3f}, holds 0"
    if p > LEVEL:
        return f"over all candidates chance does as much with p = {p:.3f} on {pairs} pairs (above {LEVEL})"
    if control is not None and control.p > LEVEL and (control.n >= ENOUGH_DRAWS or control.as_large):
        return f"{control.as_large} of {control.n} equal pushes along other features' directions do as much"
    return None
