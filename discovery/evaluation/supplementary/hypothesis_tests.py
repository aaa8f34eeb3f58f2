"""The hypothesis tests of Shi et al. (2024, arXiv 2410.13032), on nodes.

They are reported beside the conditions and decide nothing.

- *Equivalence*: is the circuit as often above the model as below it? H0: |P(m(C) > m(U)) − ½| is
  below 0.1 over pairs; ties count one half.
- *Independence*: does what is left without the circuit still follow the model? H0: m(U∖C) is
  independent of m(U) over pairs, by HSIC.
- *Inflated circuit*: is each node worth more than a bystander (a node outside)? The effect of
  taking a node out of C is compared with that of putting a bystander into C. H0: at least the share
  0.9 of bystanders has a smaller effect. A small p says that the node may be superfluous (Holm's
  correction over nodes).

A circuit passes each test by *not* rejecting H0, so a large p proves nothing. The code of the
authors compares means in the first test, which needs shares, and leaves out the correction of the
third; this module follows the definitions of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy.spatial.distance import pdist, squareform
from scipy.stats import binom

from discovery.evaluation import thresholds
from discovery.evaluation.completeness import INSIDE_LABEL, choose_outside_nodes
from discovery.evaluation.faithfulness import Faithfulness, SetFunction
from discovery.evaluation.sequential import select_nodes
from discovery.graph.base import Json
from discovery.methods.ablation import NodeSet
from discovery.methods.statistics import holm
from discovery.sites import Node

EQUIVALENCE_MARGIN = 0.1  # of the share of pairs, around one half
INFLATION_QUANTILE = 0.9  # the share of bystanders that a node may not beat under H0
PERMUTATIONS = 1000  # of the independence test
MAX_HSIC_PAIRS = 500  # of the independence test, whose work is quadratic in the pairs
HSIC_TIE = 1e-12  # values of HSIC that differ by no more are equal


def run_hypothesis_tests(
    f: Faithfulness,
    circuit: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    pairs: int | None = None,
) -> dict[str, Json]:
    """Run all three tests on one split under one ablation; return nothing if f is null.

    Args:
        f: f on the split under the ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of the permutations and of the nodes that are chosen at random.
        pairs: on how many of the first pairs the third test measures the nodes that (c) checks. If
            None, it measures all nodes of the circuit on all pairs.
    """
    if not f.is_defined:
        return {}
    sets = [circuit, f.everything - circuit, f.everything]
    circuit_metric, rest_metric, full_metric = f.set_metric(sets, "tests").double().cpu().numpy()
    tie = thresholds.FAITHFULNESS_TIE * abs(float(f.full.mean() - f.empty.mean()))
    return {
        "equivalence": equivalence_test(circuit_metric, full_metric, tie),
        "independence": independence_test(rest_metric, full_metric, seed),
        "inflated_circuit": inflation_test(f, circuit, ranking, seed, pairs),
    }


def equivalence_test(
    circuit_metric: Float64[np.ndarray, "pair"],
    full_metric: Float64[np.ndarray, "pair"],
    tie: float,
) -> dict[str, Json]:
    """Test whether the circuit's metric is as often above the model's as below it.

    Args:
        circuit_metric: m(C) of each pair.
        full_metric: m(U) of each pair.
        tie: differences up to this are ties, and count one half.

    Returns:
        The share of pairs on which m(C) is above m(U), and p of H0: |P − ½| < 0.1. p is the chance
        of a share at least as far from one half if P is at the edge of H0.
    """
    difference = circuit_metric - full_metric
    n = len(circuit_metric)
    n_above = float((difference > tie).sum() + 0.5 * (np.abs(difference) <= tie).sum())
    n_on_larger_side = max(n_above, n - n_above)
    edge = 0.5 + EQUIVALENCE_MARGIN
    upper_tail = binom.sf(np.ceil(n_on_larger_side) - 1, n, edge)
    lower_tail = binom.cdf(np.floor(n - n_on_larger_side), n, edge)
    return {
        "share_above": n_above / n,
        "n": n,
        "margin": EQUIVALENCE_MARGIN,
        "p": min(1.0, float(upper_tail + lower_tail)),
    }


def independence_test(
    rest_metric: Float64[np.ndarray, "pair"], full_metric: Float64[np.ndarray, "pair"], seed: int
) -> dict[str, Json]:
    """Test whether the metric without the circuit is independent of the model's.

    The statistic is HSIC (Gretton et al. 2007) with Gaussian kernels whose width is the median
    distance.

    Args:
        rest_metric: m(U∖C) of each pair.
        full_metric: m(U) of each pair.
        seed: of the permutations.

    Returns:
        HSIC over the first 500 pairs at most, and its permutation p.
    """
    n = min(len(full_metric), MAX_HSIC_PAIRS)
    rest_kernel = _kernel(rest_metric[:n])
    full_kernel = _kernel(full_metric[:n])
    centred = (
        rest_kernel - rest_kernel.mean(0) - rest_kernel.mean(1, keepdims=True) + rest_kernel.mean()
    )
    observed = float((centred * full_kernel).sum()) / n**2
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(n) for _ in range(PERMUTATIONS)]
    n_as_large = sum(
        float((centred * full_kernel[np.ix_(order, order)]).sum()) / n**2 >= observed - HSIC_TIE
        for order in orders
    )
    return {
        "hsic": observed,
        "n": n,
        "permutations": PERMUTATIONS,
        "p": (1 + n_as_large) / (1 + PERMUTATIONS),
    }


def _kernel(values: Float64[np.ndarray, "pair"]) -> Float64[np.ndarray, "pair pair"]:
    """Return the Gaussian kernel of the values; it is 1 everywhere if they are constant."""
    distances = pdist(values[:, None])
    width = float(np.median(distances)) if len(distances) else 0.0
    if width <= 0:
        width = float(distances.mean()) if len(distances) and distances.any() else 1.0
    kernel: Float64[np.ndarray, "pair pair"] = np.exp(
        -(squareform(distances) ** 2) / (2 * width**2)
    )
    return kernel


def inflation_test(
    f: SetFunction,
    circuit: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    pairs: int | None = None,
) -> dict[str, Json]:
    """Test whether each node of the circuit has a larger effect than the bystanders have.

    The effect of v in C is |f(C) − f(C∖v)|, that of a bystander r is |f(C∪r) − f(C)|. The
    bystanders are the nodes that completeness tries, so nothing more is measured.

    Args:
        f: f on one split under one ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of the nodes that are chosen at random.
        pairs: as in `run_hypothesis_tests`.

    Returns:
        For each node, the share of bystanders with a smaller effect, and p of H0: that share is at
        least 0.9.
    """
    nodes = sorted(circuit)
    if pairs is not None:
        pairs = min(pairs, f.n_pairs)
        nodes = select_nodes(circuit, ranking, seed, INSIDE_LABEL).checked
    bystanders, _ = choose_outside_nodes(f, circuit, ranking, seed)
    without_one = [circuit - {v} for v in nodes]
    inflated = [circuit | {r} for r in bystanders]
    values = f([circuit, *without_one, *inflated], "tests", pairs).numpy()
    effects = np.abs(values[1:] - values[0])
    node_effects = effects[: len(nodes)]
    bystander_effects = effects[len(nodes) :]
    n = len(bystander_effects)
    if not n or not np.isfinite(values[0]):
        return {"n": n, "quantile": INFLATION_QUANTILE, "nodes": []}
    counts = [int((bystander_effects < effect).sum()) for effect in node_effects]
    p_values = [float(binom.cdf(count, n, INFLATION_QUANTILE)) for count in counts]
    rows: list[Json] = [
        {"node": str(v), "share": count / n, "p": p, "p_holm": p_holm}
        for v, count, p, p_holm in zip(nodes, counts, p_values, holm(p_values), strict=True)
    ]
    return {"n": n, "quantile": INFLATION_QUANTILE, "nodes": rows}
