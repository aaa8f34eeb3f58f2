"""What a method got right, model by model, and its row in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from scipy.stats import binomtest

from benchmarks.output import format_row
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

Scores = Mapping[Node, float]
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


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The answer of one method on one model.

    The costs are cumulative forward-pass equivalents.

    Attributes:
        circuit: the nodes that the method returns.
        scores: the ranking of the nodes; a node with a larger score is taken sooner.
        circuit_cost: the cost until the circuit is known.
        ranking_cost: the cost until the ranking is known, or None if it comes after the circuit.
        verdict_cost: the cost until the verdict is known, or None if the method gives none.
        verdict: the verdict, or "" if the method gives none.
    """

    circuit: NodeSet
    scores: Scores
    circuit_cost: float
    ranking_cost: float | None = None
    verdict_cost: float | None = None
    verdict: str = ""


def ranking_prefixes(scores: Scores) -> list[NodeSet]:
    """Return all prefixes of a ranking, the smallest first. Equal scores are not separated."""
    thresholds = sorted(set(scores.values()), reverse=True)
    return [
        frozenset(node for node in scores if scores[node] >= threshold) for threshold in thresholds
    ]


def auc(scores: Scores, truth: NodeSet) -> float | None:
    """Return the chance that a true node ranks above a false one; ties count one half.

    It is None if all nodes are true or all are false.
    """
    true_scores = [scores[node] for node in scores if node in truth]
    false_scores = [scores[node] for node in scores if node not in truth]
    if not true_scores or not false_scores:
        return None
    return mean((a > b) + 0.5 * (a == b) for a in true_scores for b in false_scores)


def f1(circuit: NodeSet, truth: NodeSet) -> float:
    """Return the harmonic mean of precision and recall."""
    return 2 * len(circuit & truth) / (len(circuit) + len(truth))


class MethodScores:
    """The results of one method on many models."""

    def __init__(self) -> None:
        self.precision: list[float] = []
        self.recall: list[float] = []
        self.exact: list[bool] = []
        self.auc: list[float] = []
        self.prefix_hits: list[bool] = []
        self.best_f1: list[float] = []
        self.costs: list[tuple[float | None, float, float | None]] = []
        self.mistakes: list[str] = []

    def add(self, name: str, result: MethodResult, truths: Sequence[NodeSet]) -> NodeSet:
        """Add the result on one model, and return the truth with which it was compared.

        If there are several truths, the circuit is compared with the nearest one, and the ranking
        with the one that it fits best.
        """
        circuit = result.circuit
        truth = min(truths, key=lambda candidate: len(candidate ^ circuit))
        n_correct = len(circuit & truth)
        self.precision.append(n_correct / len(circuit) if circuit else 0.0)
        self.recall.append(n_correct / len(truth))
        self.exact.append(circuit == truth)
        areas = [
            area for candidate in truths if (area := auc(result.scores, candidate)) is not None
        ]
        self.auc += [max(areas)] if areas else []
        self.costs.append((result.ranking_cost, result.circuit_cost, result.verdict_cost))
        prefixes = ranking_prefixes(result.scores)
        self.prefix_hits.append(any(candidate in prefixes for candidate in truths))
        f1_scores = (f1(prefix, candidate) for prefix in prefixes for candidate in truths)
        self.best_f1.append(max(f1_scores, default=0.0))
        if circuit != truth:
            missing = sorted(map(str, truth - circuit))
            extra = sorted(map(str, circuit - truth))
            self.mistakes.append(f"{name} ({result.verdict}): missing {missing}, beside it {extra}")
        return truth

    def format_row(self, method: str, *extra_cells: str) -> str:
        """Return the method's row of the table, with `extra_cells` before the costs."""
        n_cases = len(self.exact)
        low, high = binomtest(sum(self.exact), n_cases).proportion_ci(0.95, "exact")
        area = f"{mean(self.auc):.3f}" if self.auc else "–"
        if len(self.auc) not in (0, n_cases):
            area += f" (of {len(self.auc)})"
        scores = (
            f"{mean(self.precision):.3f}",
            f"{mean(self.recall):.3f}",
            f"{mean(self.exact):.3f} ({low:.3f}–{high:.3f})",
            f"{mean(self.prefix_hits):.3f}",
            f"{mean(self.best_f1):.3f}",
            area,
        )
        costs = map(_format_mean, zip(*self.costs, strict=True))
        return format_row(method, n_cases, *scores, *extra_cells, *costs)


def _format_mean(costs: Sequence[float | None]) -> str:
    known = [cost for cost in costs if cost is not None]
    return f"{mean(known):,.0f}" if len(known) == len(costs) else "–"
