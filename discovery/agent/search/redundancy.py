"""Which nodes of a circuit do each other's work (an OR), found by ablating two nodes together."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from discovery.agent.search.measured import SCREEN_PAIRS
from discovery.evaluation import Faithfulness, thresholds
from discovery.sites import Node

MAX_PAIRED_NODES = 16  # the strongest nodes, which are ablated in pairs


def redundant_partners(f: Faithfulness, nodes: Sequence[Node]) -> dict[str, tuple[str, ...]]:
    """Find pairs of nodes that cost more together than the sum of what each costs alone.

    The difference must reach 0.1, which is as much as (c) lets a node outside the circuit matter.

    Args:
        f: faithfulness on discovery pairs, under one ablation; the first SCREEN_PAIRS are used.
        nodes: the nodes of the circuit, the strongest first.

    Returns:
        For each node that has partners, the names of its partners.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    nodes = nodes[:MAX_PAIRED_NODES]
    pairs = list(itertools.combinations(nodes, 2))
    ablated = [*([node] for node in nodes), *pairs]
    n_pairs = min(SCREEN_PAIRS, f.n_pairs)
    values = f([f.everything - set(group) for group in ablated], "pairs of nodes", n_pairs)
    losses = (1 - values).tolist()
    alone = dict(zip(nodes, losses, strict=False))
    pair_losses = losses[len(nodes) :]
    partners: dict[str, list[str]] = defaultdict(list)
    for (u, v), loss in zip(pairs, pair_losses, strict=True):
        if loss - max(alone[u], 0.0) - max(alone[v], 0.0) >= thresholds.MAX_GAP_OUT:
            partners[str(u)].append(str(v))
            partners[str(v)].append(str(u))
    return {name: tuple(names) for name, names in partners.items()}
