"""What the search asks of a circuit: the conditions' bounds, and the same with a margin.

A circuit is judged on prompts that it was not chosen on. One that meets a bound narrowly on
discovery pairs often misses it there, so the search prefers sets that keep a distance to each bound
(`WITH_MARGIN`). If it finds none, it takes the best set by the conditions themselves (`PLAIN`).
"""

from __future__ import annotations

from dataclasses import dataclass

from discovery.evaluation import thresholds


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds on a circuit.

    Attributes:
        faithfulness: The lowest and the highest f(C) (a).
        knockout: The largest |f(U∖C)| (b).
        gap_in: The largest |f(C∖u) − f(U∖u)| of a node u of the circuit (c).
        gap_out: The largest |f(C∪v) − f(C)| of a node v outside (c).
        drop_share: The smallest drop of a node of the circuit, as a share of δ (d).
    """

    faithfulness: tuple[float, float]
    knockout: float
    gap_in: float
    gap_out: float
    drop_share: float


PLAIN = Bounds(
    faithfulness=thresholds.FAITHFULNESS_BAND,
    knockout=thresholds.KNOCKOUT_BAND[1],
    gap_in=thresholds.MAX_GAP_IN,
    gap_out=thresholds.MAX_GAP_OUT,
    drop_share=1.0,
)
WITH_MARGIN = Bounds(
    faithfulness=(0.85, 1.15), knockout=0.15, gap_in=0.15, gap_out=0.08, drop_share=1.25
)


def minimal_drop(faithfulness: float, size: int) -> float:
    """Return δ, the drop that every node of a circuit must reach under one ablation (d).

    Args:
        faithfulness: f(C) under that ablation.
        size: The number of heads and MLPs in the circuit.
    """
    return max(0.0, min(thresholds.MIN_DROP, 0.5 * faithfulness / max(size, 1)))
