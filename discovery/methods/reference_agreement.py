"""Does f under mean ablation depend on which reference prompts the means are taken over?

f of one set is measured with the means of two disjoint halves of the reference prompts
(docs/definitions.md, "Reference prompts"). With few prompts, another draw would give another f.
Means are held fixed in the bootstrap, so the intervals of a record do not contain this uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass

from discovery.engine import Engine
from discovery.methods.ablation import NodeSet, SetMetric
from discovery.sites import Universe
from discovery.tasks.reference import HALVES

PROGRESS_LABEL = "halves of the reference prompts"


@dataclass(frozen=True, kw_only=True)
class ReferenceAgreement:
    """f of one set with the means of each half of the reference prompts.

    Attributes:
        halves: f with the means of each half; None if ablating everything changes nothing.
        per_group: how many prompts of each template and token count are used.
        size: the smallest number of prompts in any mean, both halves together.
        n_pairs: the number of pairs on which f was measured.
    """

    halves: tuple[float | None, float | None]
    per_group: int
    size: int
    n_pairs: int

    @property
    def difference(self) -> float | None:
        """The absolute difference of the two values; None if one of them is undefined."""
        first, second = self.halves
        return None if first is None or second is None else abs(first - second)

    def is_within(self, limit: float) -> bool:
        """Whether both values are defined and differ by no more than a limit."""
        return self.difference is not None and self.difference <= limit


def reference_agreement(
    engine: Engine, node_set: NodeSet, universe: Universe = "all", pairs: int | None = None
) -> ReferenceAgreement:
    """Measure f of a set with the means of each half of the reference prompts.

    It takes two sets for each half (m(∅) and m(S)) and no further reference passes.

    Args:
        engine: the model and the pairs.
        node_set: the nodes that are kept.
        universe: what can be ablated.
        pairs: measure the first so many pairs; None means all of them.

    Raises:
        BudgetError: if the engine's meter has a budget that does not suffice.
    """
    values = [_measure_half(engine, node_set, universe, pairs, half) for half in HALVES]
    return ReferenceAgreement(
        halves=(values[0], values[1]),
        per_group=engine.reference.per_group,
        size=engine.reference_plan.size,
        n_pairs=len(engine) if pairs is None else min(pairs, len(engine)),
    )


def _measure_half(
    engine: Engine, node_set: NodeSet, universe: Universe, pairs: int | None, half: int
) -> float | None:
    set_metric = SetMetric(engine, "mean", universe, half)
    sets = [set_metric.everything, frozenset(), node_set]
    full, empty, value = set_metric(sets, PROGRESS_LABEL, pairs).double().mean(1).tolist()
    return float((value - empty) / (full - empty)) if full != empty else None
