"""A smallest part of a set that still does something, found by leaving out ever smaller groups.

This is delta debugging (Zeller and Hildebrandt 2002, "Simplifying and isolating failure-inducing
input"). It takes about k · log2(n) measurements for k nodes among n. It also finds nodes that act
only together, however many they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from discovery.methods.ablation import NodeSet
from discovery.sites import Node


def find_sufficient_subset(
    nodes: Sequence[Node], are_enough: Callable[[Sequence[NodeSet]], Sequence[bool]]
) -> list[Node]:
    """Find a subset that is enough, and of which no node can be left out.

    Args:
        nodes: the nodes, the most promising first; together they are enough.
        are_enough: says of each of several sets whether it is enough.

    Returns:
        The subset, in the order of `nodes`. If `are_enough` is not monotonic, it may not be the
        smallest.
    """
    kept = shorten(nodes, are_enough)
    n_parts = 2
    while len(kept) > 1:
        parts = _split(kept, min(n_parts, len(kept)))
        outcomes = are_enough([frozenset(kept) - set(part) for part in parts])
        # The least promising part that can be left out goes first.
        spare = next((n for n in reversed(range(len(parts))) if outcomes[n]), None)
        if spare is not None:
            left_out = set(parts[spare])
            kept = [node for node in kept if node not in left_out]
            n_parts = max(n_parts - 1, 2)
        elif n_parts >= len(kept):
            break
        else:
            n_parts *= 2
    return kept


def shorten(
    nodes: Sequence[Node], are_enough: Callable[[Sequence[NodeSet]], Sequence[bool]]
) -> list[Node]:
    """Return a short beginning of a list that is enough, found by bisection.

    Args:
        nodes: the nodes, the most promising first; together they are enough.
        are_enough: says of each of several sets whether it is enough.
    """
    low, high = 0, len(nodes)  # the first `low` nodes are not enough, the first `high` are
    while high - low > 1:
        middle = (low + high) // 2
        if are_enough([frozenset(nodes[:middle])])[0]:
            high = middle
        else:
            low = middle
    return list(nodes[:high])


def _split(nodes: list[Node], n_parts: int) -> list[list[Node]]:
    """Split a list into parts of about equal length."""
    edges = [len(nodes) * n // n_parts for n in range(n_parts + 1)]
    return [nodes[low:high] for low, high in itertools.pairwise(edges)]
