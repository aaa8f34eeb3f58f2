"""Searches for the circuit on discovery pairs, under both ablations. This is the whole algorithm:

1. `rank_nodes` sorts all nodes by |noising| + |denoising| of each node alone.
2. `choose_start` takes the shortest prefix of the ranking that meets (a) and (b), else all nodes.
3. `mend` follows the first proposal to a new set, until there is none or 40 sets were examined. It
   adds the node that lowers the total excess of (a) and (b) most, or one that changes f(C) by more
   than 0.1 (c), or, if f(C∖u) and f(U∖u) differ by more than 0.2 (c), one or two that do the work
   of u; or it drops nodes whose largest drop is below 0.02 (d). The set with fewest faults wins.
4. `shrink` drops nodes while (a) and (b) hold and no fault grows, following 5 sets of each size.
5. `choose_among_rivals` mends up to 2 layer-matched sets that do as well, and their unions with C.
   One of them replaces C if it has fewer faults, or if (e) holds for it and not for C.
"""

from __future__ import annotations

from collections.abc import Sequence

from discovery.agent.search.decision import OnDecision
from discovery.agent.search.mend import mend
from discovery.agent.search.rivals import choose_among_rivals
from discovery.agent.search.shrink import shrink
from discovery.evaluation import FaithfulnessByAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node


def search_circuit(
    f_by_ablation: FaithfulnessByAblation,
    start: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    on_decision: OnDecision,
) -> NodeSet:
    """Search for the circuit from a first set: steps 3 to 5 of the algorithm.

    Args:
        f_by_ablation: Faithfulness on discovery pairs, or on one resample of them.
        start: The set to begin with; see `fit.choose_start`.
        ranking: All nodes, the largest effect first.
        seed: The seed that draws layer-matched sets.
        on_decision: Called with each decision of the search.

    Returns:
        The best set. If the budget ends, this is the best set by then, and a decision says so.
    """
    mended = mend(f_by_ablation, start, on_decision)
    smallest = shrink(f_by_ablation, mended, on_decision)
    return choose_among_rivals(f_by_ablation, smallest, ranking, seed, on_decision)
