"""What a method got right, model by model, and its line in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from scipy.stats import binomtest

from benchmarks.methods.baselines import ranking_prefixes
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

COLUMNS = (
    "method",
    "cases",
    "precision",
    "recall",
    "exactly (95%)",
    "truth is a prefix",
    "best F1 of a prefix",
    "AUC",
)
COSTS = ("cost: ranking", "circuit", "verdict")


@dataclass(frozen=True)
class MethodResult:
    """One method on one model.

    Attributes:
        scores: its ranking; the larger, the sooner a node is taken.
        ranking, chosen, judged: forward-pass equivalents until the ranking, the circuit and its verdict stood; None where a method
            has no such thing.
    """

    circuit: NodeSet
    scores: Mapping[Node, float]
    circuit_cost: float
    ranking_cost: float | None = None
    verdict_cost: float | None = None
    verdict: str = ""


def auc(scores: Mapping[Node, float], truth: NodeSet) -> float | None:
    """Chance that a true node ranks above a false one; ties count one half."""
    inside, outside = (
        [scores[n] for n in scores if n in truth],
        [scores[n] for n in scores if n not in truth],
    )
    if not inside or not outside:
        return None
    return mean((a > b) + 0.5 * (a == b) for a in inside for b in outside)


def f1(circuit: NodeSet, truth: NodeSet) -> float:
    """The harmonic mean of precision and recall."""
    return 2 * len(circuit & truth) / (len(circuit) + len(truth))


class MethodScores:
    """One method on many models."""

    def __init__(self) -> None:
        self.precision: list[float] = []
        self.recall: list[float] = []
        self.exact: list[bool] = []
        self.auc: list[float] = []
        self.prefix_hits: list[bool] = []
        self.best_f1: list[float] = []
        self.costs: list[tuple[float | None, float, float | None]] = []
        self.mistakes: list[str] = []

    def add(self, name: str, answer: MethodResult, truths: Sequence[NodeSet]) -> NodeSet:
        """One model; of several truths the one nearest to the answer counts, and for the ranking the one that fits it best."""
        truth = min(truths, key=lambda made: len(made ^ answer.circuit))
        both = len(answer.circuit & truth)
        self.precision.append(both / len(answer.circuit) if answer.circuit else 0.0)
        self.recall.append(both / len(truth))
        self.exact.append(answer.circuit == truth)
        areas = [area for made in truths if (area := auc(answer.scores, made)) is not None]
        self.auc += [max(areas)] if areas else []
        self.costs.append((answer.ranking_cost, answer.circuit_cost, answer.verdict_cost))
        found = ranking_prefixes(answer.scores)
        self.prefix_hits.append(any(made in found for made in truths))
        self.best_f1.append(
            max((f1(prefix, made) for prefix in found for made in truths), default=0.0)
        )
        if answer.circuit != truth:
            missing, beside = (
                sorted(map(str, truth - answer.circuit)),
                sorted(map(str, answer.circuit - truth)),
            )
            self.mistakes.append(
                f"{name} ({answer.verdict}): missing {missing}, beside it {beside}"
            )
        return truth

    def format_row(self, method: str, *more: str) -> str:
        """One line of the table."""
        low, high = binomtest(sum(self.exact), len(self.exact)).proportion_ci(0.95, "exact")
        share = f"{mean(self.exact):.3f} ({low:.3f}–{high:.3f})"
        area = f"{mean(self.auc):.3f}" if self.auc else "–"
        area += "" if len(self.auc) in (0, len(self.exact)) else f" (of {len(self.auc)})"
        shares = (f"{mean(self.prefix_hits):.3f}", f"{mean(self.best_f1):.3f}", area)
        right = (f"{mean(self.precision):.3f}", f"{mean(self.recall):.3f}", share, *shares)
        return f"| {' | '.join((method, str(len(self.exact)), *right, *more, *map(_mean, zip(*self.costs, strict=True))))} |\n"


def _mean(costs: Sequence[float | None]) -> str:
    known = [cost for cost in costs if cost is not None]
    return f"{mean(known):,.0f}" if len(known) == len(costs) else "–"
