"""The hypothesis tests of Shi et al. (2024, arXiv 2410.13032), on nodes. Reported beside the conditions; they gate nothing.

*Equivalence*: is the circuit as often above the model as below it? H0: |P(m(C) > m(U)) − ½| < 0.1 over pairs; ties count one half.
*Independence*: does what is left without the circuit still follow the model? H0: m(U∖C) is independent of m(U) over pairs, by HSIC.
*Inflated circuit*: is each node worth more than a bystander? Taking a node out of C is compared with taking one node out of C inflated
by it; H0: at least the share 0.9 of bystanders matters less. A small p says that the node may be superfluous (Holm over nodes).

Each is a test that a circuit passes by *not* rejecting: a large p is no proof. The authors' own code compares means where the first needs
shares, and leaves out the correction of the third; this follows the definitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy.spatial.distance import pdist, squareform
from scipy.stats import binom

from discovery.evaluation import thresholds
from discovery.evaluation.completeness import choose_outside_nodes
from discovery.evaluation.faithfulness import Faithfulness
from discovery.evaluation.minimality import holm
from discovery.graph.base import Json
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

EQUIVALENCE_MARGIN = 0.1  # of equivalence
INFLATION_QUANTILE = 0.9  # of inflation
PERMUTATIONS = 1000
MAX_HSIC_PAIRS = 500  # of independence, whose work is quadratic


def run_hypothesis_tests(
    f: Faithfulness, circuit: NodeSet, screened: Sequence[Node], seed: int
) -> dict[str, Json]:
    """All three on one split under one ablation; empty where f is null."""
    if not f.is_defined:
        return {}
    kept, knocked, full = (
        f.set_metric([circuit, f.everything - circuit, f.everything], "tests")
        .double()
        .cpu()
        .numpy()
    )
    tie = thresholds.FAITHFULNESS_TIE * abs(float(f.full.mean() - f.empty.mean()))
    return {
        "equivalence": equivalence_test(kept, full, tie),
        "independence": independence_test(knocked, full, seed),
        "inflated_circuit": inflation_test(f, circuit, screened, seed),
    }


def equivalence_test(
    kept: Float64[np.ndarray, "pair"], full: Float64[np.ndarray, "pair"], tie: float
) -> dict[str, Json]:
    """How often the circuit's metric is above the model's, and p of H0 |P − ½| < 0.1.

    p is the chance of a share at least as far from one half, were P at the edge of H0.

    Args:
        tie: differences up to this are ties, and count one half.
    """
    change, n = kept - full, len(kept)
    above = float((change > tie).sum() + 0.5 * (np.abs(change) <= tie).sum())
    far = max(above, n - above)
    p = binom.sf(np.ceil(far) - 1, n, 0.5 + EQUIVALENCE_MARGIN) + binom.cdf(
        np.floor(n - far), n, 0.5 + EQUIVALENCE_MARGIN
    )
    return {"share_above": above / n, "n": n, "margin": EQUIVALENCE_MARGIN, "p": min(1.0, float(p))}


def independence_test(
    knocked: Float64[np.ndarray, "pair"], full: Float64[np.ndarray, "pair"], seed: int
) -> dict[str, Json]:
    """HSIC of the two over pairs (Gretton et al. 2007; Gaussian kernels, the median distance as width), and its permutation p."""
    n = min(len(full), MAX_HSIC_PAIRS)
    one, other = _kernel(knocked[:n]), _kernel(full[:n])
    centred = one - one.mean(0) - one.mean(1, keepdims=True) + one.mean()
    own = float((centred * other).sum()) / n**2
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(n) for _ in range(PERMUTATIONS)]
    larger = sum(
        float((centred * other[np.ix_(order, order)]).sum()) / n**2 >= own - 1e-12
        for order in drawn
    )
    return {
        "hsic": own,
        "n": n,
        "permutations": PERMUTATIONS,
        "p": (1 + larger) / (1 + PERMUTATIONS),
    }


def _kernel(values: Float64[np.ndarray, "pair"]) -> Float64[np.ndarray, "pair pair"]:
    """Gaussian, 1 everywhere for constant values."""
    apart = pdist(values[:, None])
    width = float(np.median(apart)) if len(apart) else 0.0
    if width <= 0:
        width = float(apart.mean()) if len(apart) and apart.any() else 1.0
    kernel: Float64[np.ndarray, "pair pair"] = np.exp(-(squareform(apart) ** 2) / (2 * width**2))
    return kernel


def inflation_test(
    f: Faithfulness, circuit: NodeSet, screened: Sequence[Node], seed: int
) -> dict[str, Json]:
    """Of each node, the share of bystanders that matter less than it, and p of H0: that share is at least 0.9.

    Bystanders are those that completeness tries, so nothing more is measured: the effect of v in C is |f(C) − f(C∖v)|, that of a bystander
    r in C inflated by it is |f(C∪r) − f(C)|.
    """
    nodes = sorted(circuit)
    outside, _ = choose_outside_nodes(f, circuit, screened, seed)
    values = f(
        [circuit, *(circuit - {v} for v in nodes), *(circuit | {r} for r in outside)], "tests"
    ).numpy()
    own, effects = values[0], np.abs(values[1:] - values[0])
    inside, others = effects[: len(nodes)], effects[len(nodes) :]
    n = len(others)
    if not n or not np.isfinite(own):
        return {"n": n, "quantile": INFLATION_QUANTILE, "nodes": []}
    counts = [int((others < effect).sum()) for effect in inside]
    p = [float(binom.cdf(count, n, INFLATION_QUANTILE)) for count in counts]
    rows: list[Json] = [
        {"node": str(v), "share": count / n, "p": value, "p_holm": corrected}
        for v, count, value, corrected in zip(nodes, counts, p, holm(p), strict=True)
    ]
    return {"n": n, "quantile": INFLATION_QUANTILE, "nodes": rows}
