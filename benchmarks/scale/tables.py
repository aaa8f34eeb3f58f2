"""The tables and the plot of the benchmark.

The cost is fitted as  log cost = a + b · log N + c · log n,  with N the nodes of the model and n
those of the circuit: the cost grows as N^b · n^c. Intervals of b and c are percentiles over
bootstrap samples of cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.output import format_header, format_row
from benchmarks.scale.cases import CASE_KINDS, UNTRAINED
from benchmarks.scale.results import CaseResult

CONFIDENCE = 0.95
N_BOOTSTRAP = 2000
RECOVERY_COLUMNS = (
    "kind",
    "nodes",
    "cases",
    "exact",
    "share",
    "95% interval",
    "verdicts",
    "missing",
    "extra",
)
COST_COLUMNS = (
    "nodes",
    "cases",
    "circuit size",
    "equivalents, median",
    "largest",
    "seconds, median",
    "largest",
)
MARKERS = "osv^D*Px"


@dataclass(frozen=True, kw_only=True)
class GrowthFit:
    """Exponents of a cost's growth, each with the ends of its 95% interval.

    Attributes:
        nodes: the exponent of the number of nodes of the model.
        size: the exponent of the number of nodes of the circuit.
    """

    nodes: tuple[float, float, float]
    size: tuple[float, float, float]


def format_recovery(results: Sequence[CaseResult]) -> Iterator[str]:
    """Yield the rows of the table of exact circuits, by kind and size, and pooled over sizes."""
    yield format_header(*RECOVERY_COLUMNS)
    for kind in CASE_KINDS:
        members = [result for result in results if result.kind == kind and not result.refused]
        sizes = sorted({result.n_nodes for result in members})
        for n_nodes in sizes:
            part = [result for result in members if result.n_nodes == n_nodes]
            yield _format_recovery_row(kind, str(n_nodes), part)
        if len(sizes) > 1:
            yield _format_recovery_row(f"**{kind}**", "all", members)
    refused = [result for result in results if result.refused]
    if refused:
        yield f"\nRefused, because the truth did not pass its check: {len(refused)}.\n"


def _format_recovery_row(kind: str, nodes: str, results: Sequence[CaseResult]) -> str:
    n_exact = sum(result.is_exact for result in results)
    interval = binomtest(n_exact, len(results)).proportion_ci(CONFIDENCE, "exact")
    verdicts = Counter(result.verdict for result in results).most_common()
    is_twin = all(result.kind == UNTRAINED for result in results)
    return format_row(
        kind,
        nodes,
        len(results),
        n_exact,
        f"{n_exact / len(results):.1%}",
        f"{interval.low:.1%} to {interval.high:.1%}",
        ", ".join(f"{count} {verdict}" for verdict, count in verdicts),
        "–" if is_twin else sum(len(result.missing) for result in results),
        "–" if is_twin else sum(len(result.extra) for result in results),
    )


def format_costs(results: Sequence[CaseResult]) -> Iterator[str]:
    """Yield the rows of the cost table, and the fitted growth."""
    measured = select_costs(results)
    yield format_header(*COST_COLUMNS)
    for n_nodes in sorted({result.n_nodes for result in measured}):
        part = [result for result in measured if result.n_nodes == n_nodes]
        sizes = [len(result.found) for result in part]
        costs = [result.forward_equivalents for result in part]
        seconds = [result.seconds for result in part]
        yield format_row(
            n_nodes,
            len(part),
            f"{min(sizes)} to {max(sizes)}",
            f"{median(costs):,.0f}",
            f"{max(costs):,.0f}",
            f"{median(seconds):,.0f}",
            f"{max(seconds):,.0f}",
        )
    fit = fit_growth(measured)
    if fit is not None:
        yield (
            f"\nThe cost grows as (nodes of the model)^b · (nodes of the circuit)^c with"
            f" b = {_format_exponent(fit.nodes)} and c = {_format_exponent(fit.size)}.\n"
        )


def select_costs(results: Sequence[CaseResult]) -> list[CaseResult]:
    """Return the results whose cost counts: a search took place and found something."""
    return [result for result in results if result.found and result.kind != UNTRAINED]


def fit_growth(results: Sequence[CaseResult]) -> GrowthFit | None:
    """Fit how the cost grows, or return None if all models or all circuits have one size."""
    log_nodes = np.log([result.n_nodes for result in results])
    log_size = np.log([len(result.found) for result in results])
    if len(set(log_nodes)) < 2 or len(set(log_size)) < 2:
        return None
    log_cost = np.log([result.forward_equivalents for result in results])
    design = np.column_stack([np.ones(len(results)), log_nodes, log_size])
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(N_BOOTSTRAP):
        rows = rng.integers(len(results), size=len(results))
        if np.linalg.matrix_rank(design[rows]) == design.shape[1]:
            samples.append(_solve(design[rows], log_cost[rows]))
    low, high = np.quantile(samples, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], axis=0)
    point = _solve(design, log_cost)
    nodes, size = ((float(point[i]), float(low[i]), float(high[i])) for i in (1, 2))
    return GrowthFit(nodes=nodes, size=size)


def _solve(design: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.lstsq(design, target, rcond=None)[0], dtype=np.float64)


def _format_exponent(exponent: tuple[float, float, float]) -> str:
    value, low, high = exponent
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def draw_costs(results: Sequence[CaseResult], path: Path) -> None:
    """Draw the cost against the nodes of the model and against those of the circuit, as an SVG."""
    measured = select_costs(results)
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for kind, marker in zip(CASE_KINDS, MARKERS, strict=True):
        part = [result for result in measured if result.kind == kind]
        costs = [result.forward_equivalents for result in part]
        if part:
            nodes = [result.n_nodes for result in part]
            left.scatter(nodes, costs, marker=marker, s=18, alpha=0.7, label=kind)
            sizes = [len(result.found) for result in part]
            right.scatter(sizes, costs, marker=marker, s=18, alpha=0.7)
    nodes = sorted({result.n_nodes for result in measured})
    if nodes:
        first = [r.forward_equivalents for r in measured if r.n_nodes == nodes[0]]
        line = [median(first) * count / nodes[0] for count in nodes]
        left.plot(nodes, line, color="grey", linestyle="--", label="linear in nodes")
    left.set(xscale="log", yscale="log", xlabel="nodes of the model")
    left.set_ylabel("forward-pass equivalents")
    right.set(xlabel="nodes of the circuit")
    left.legend(fontsize="small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and with fixed ids, equal results give equal files.
    with matplotlib.rc_context({"svg.hashsalt": "scale"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
