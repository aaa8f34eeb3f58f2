"""What judging a circuit of 50 nodes in a model of 300 costs, on synthetic values of f.

Counted is an upper bound of the forward-pass equivalents: each prompt from the first layer at which
a node of it is ablated, over all positions. A real run shares the positions before the first token
that differs, and has measured the sets of the discovery pairs in its search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from discovery.evaluation import measure_conditions
from discovery.evaluation.verdict import Findings, judge
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head, mlp
from tests.discovery.evaluation.synthetic import SyntheticPairs

LAYERS = 30


class SyntheticSplit:
    """Replaces a `SplitEvaluator`: the same f under both ablations, with other noise."""

    def __init__(self, universe: list[Node], value: Any, noise: float, seed: int) -> None:
        self.f_by_ablation: dict[str, Any] = {}
        for number, ablation in enumerate(("resample", "mean")):
            f = SyntheticPairs(universe, value, n_pairs=100, noise=noise)
            f.noise_seed = 10 * seed + number
            self.f_by_ablation[ablation] = f

    def f(self, ablation: str) -> Any:
        return self.f_by_ablation[ablation]

    def measure_circuit(self, circuit: NodeSet) -> dict[str, Any]:
        return {a: f.measure_circuit(circuit) for a, f in self.f_by_ablation.items()}

    @property
    def equivalents(self) -> float:
        """The work: each prompt from the first layer at which a node of it is ablated."""
        total = 0.0
        for f in self.f_by_ablation.values():
            for kept, pairs in f.pairs_of.items():
                layers = [node.layer for node in f.everything - kept if node.layer is not None]
                total += pairs * (LAYERS - min(layers, default=LAYERS)) / LAYERS
        return total


def build_circuit(seed: int) -> tuple[list[Node], NodeSet, dict[Node, float]]:
    """A universe of 300 nodes, 50 of them with effects of 1.1 δ or more that sum to 0.95.

    The others have small effects of both signs.
    """
    generator = np.random.default_rng(seed)
    universe = [
        node
        for layer in range(LAYERS)
        for node in (*(head(layer, index) for index in range(9)), mlp(layer))
    ]
    order = generator.permutation(len(universe))
    members = [universe[n] for n in order[:50]]
    sizes = generator.exponential(0.5, 50) + 0.7
    effects = dict(zip(members, (0.95 * sizes / sizes.sum()).tolist(), strict=True))
    for n in order[50:]:
        effects[universe[n]] = float(generator.normal(0.0, 0.001))
    return universe, frozenset(members), effects


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "most"), [(0.02, 20_000), (0.05, 24_000)])
def test_a_circuit_of_50_among_300_nodes_is_judged_for_20_000_equivalents(
    noise: float, most: float
) -> None:
    """With more noise between pairs more nodes take all pairs."""
    universe, circuit, effects = build_circuit(1)
    ranking = sorted(universe, key=lambda v: -abs(effects[v]))

    def value(kept: NodeSet) -> float:
        return sum(effects[v] for v in kept)

    search: Any = SyntheticSplit(universe, value, noise, 1)
    heldout: Any = SyntheticSplit(universe, value, noise, 2)
    measured = measure_conditions(heldout, search, circuit, ranking, 0)
    judgement = judge(
        Findings(
            n_heldout=100,
            size=50,
            evidence=measured.evidence,
            minimality=measured.minimality,
            stability=1.0,
        )
    )
    assert measured.cut_short is None
    assert judgement.conditions.a.mean == judgement.conditions.b.mean == "holds"
    assert heldout.equivalents <= most
    assert search.equivalents <= 7_000
