"""Which nodes of a circuit do each other's work: an OR, found by ablating two together."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from discovery.evaluation import Faithfulness, thresholds
from discovery.sites import Node

MAX_PAIRED_NODES = 16  # nodes that are ablated in pairs, the strongest


def redundant_partners(f: Faithfulness, nodes: Sequence[Node]) -> dict[str, tuple[str, ...]]:
    """Where taking both out of the model costs more than the sum of taking out each, by as much as (c) lets a node matter (0.1).

    Args:
        nodes: of the circuit, the strongest first.

    Raises:
        BudgetError: where the budget does not reach it.
    """
    nodes = nodes[:MAX_PAIRED_NODES]
    pairs = list(itertools.combinations(nodes, 2))
    alone = dict(
        zip(
            nodes,
            (1 - f([f.everything - {node} for node in nodes], "pairs of nodes")).tolist(),
            strict=True,
        )
    )
    both = (1 - f([f.everything - {u, v} for u, v in pairs], "pairs of nodes")).tolist()
    found: dict[str, list[str]] = defaultdict(list)
    for (u, v), cost in zip(pairs, both, strict=True):
        if cost - max(alone[u], 0.0) - max(alone[v], 0.0) >= thresholds.MAX_GAP_OUT:
            found[str(u)].append(str(v))
            found[str(v)].append(str(u))
    return {name: tuple(others) for name, others in found.items()}
