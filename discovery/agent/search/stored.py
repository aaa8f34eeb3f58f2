"""f from what a search has measured, with the pairs weighted as in a bootstrap resample.

A repeated search asks for sets that the search itself did not measure. Measuring them all would
cost as much as the search, twenty times over. So f of such a set is taken from the most similar set
that was measured, plus what each node by which they differ changed where it was measured: a sum of
measured differences, each from the nearest pair of sets that differ by that node alone. Sets that
were measured give their measured values. What a repeated search chooses in the end is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from discovery.agent.search.measured import UnscreenedFunction
from discovery.evaluation import Faithfulness
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

WORD_BITS = 64


@dataclass(frozen=True)
class Estimate:
    """How f of a set follows from measured sets: a weighted sum of their values.

    Attributes:
        rows: the numbers of the measured sets.
        signs: what each is multiplied by.
    """

    rows: np.ndarray
    signs: np.ndarray


class StoredSets:
    """The sets that a search measured under one ablation, and how others follow from them.

    Attributes:
        faithfulness: f on the pairs of the search.
        everything: the universe.
    """

    def __init__(self, faithfulness: Faithfulness) -> None:
        self.faithfulness = faithfulness
        self.everything = faithfulness.everything
        self._bit = {node: number for number, node in enumerate(sorted(self.everything))}
        self._n_words = -(-len(self._bit) // WORD_BITS)
        self._estimates: dict[NodeSet, Estimate] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take over what has been measured since."""
        whole, parts = self.faithfulness.set_metric.measurements()
        self._sets = [*whole, *parts]
        self._metric = [values.double().cpu() for values in (*whole.values(), *parts.values())]
        self._n_whole = len(whole)
        self._row = {nodes: number for number, nodes in enumerate(self._sets)}
        self._masks = np.stack([self._mask(nodes) for nodes in self._sets])
        self._parents = [
            self._nearest(self._masks[number], self._n_whole)
            for number in range(self._n_whole, len(self._sets))
        ]
        self._steps = self._find_steps()
        self._estimates.clear()

    def values(self, weights: Float[Tensor, "pair"]) -> np.ndarray:
        """Return f of every measured set, [set], with the pairs weighted.

        A set that was measured on the first pairs only is compared there with the most similar set
        that was measured on all.
        """
        f = self.faithfulness
        empty = float(f.empty @ weights)
        gap = float(f.full @ weights) - empty
        whole = [(float(row @ weights) - empty) / gap for row in self._metric[: self._n_whole]]
        values = np.array(whole + [0.0] * len(self._parents))
        for number, parent in enumerate(self._parents, self._n_whole):
            row = self._metric[number]
            part = weights[: len(row)] / weights[: len(row)].sum()
            part_gap = float((f.full[: len(row)] - f.empty[: len(row)]) @ part)
            change = float((row - self._metric[parent][: len(row)]) @ part) / part_gap
            values[number] = values[parent] + change
        return values

    def estimate(self, nodes: NodeSet) -> Estimate:
        """Return how f of a set follows from the measured sets."""
        nodes &= self.everything
        if nodes not in self._estimates:
            self._estimates[nodes] = self._plan(nodes)
        return self._estimates[nodes]

    def _plan(self, nodes: NodeSet) -> Estimate:
        if nodes in self._row:
            return Estimate(np.array([self._row[nodes]]), np.array([1.0]))
        mask = self._mask(nodes)
        nearest = self._nearest(mask, len(self._sets))
        rows = [nearest]
        signs = [1.0]
        base = self._sets[nearest]
        for node in sorted(base ^ nodes):
            steps = self._steps.get(node)
            if steps is None:
                continue
            distance = np.bitwise_count(self._masks[steps[:, 0]] ^ mask).sum(1)
            with_node, without_node = steps[int(distance.argmin())]
            sign = 1.0 if node in nodes else -1.0
            rows += [int(with_node), int(without_node)]
            signs += [sign, -sign]
        return Estimate(np.array(rows), np.array(signs))

    def _mask(self, nodes: Iterable[Node]) -> np.ndarray:
        words = [0] * self._n_words
        for node in nodes:
            word, bit = divmod(self._bit[node], WORD_BITS)
            words[word] |= 1 << bit
        return np.array(words, dtype=np.uint64)

    def _nearest(self, mask: np.ndarray, count: int) -> int:
        """Return the number of the most similar of the first `count` sets."""
        return int(np.bitwise_count(self._masks[:count] ^ mask).sum(1).argmin())

    def _find_steps(self) -> Mapping[Node, np.ndarray]:
        """Return for each node the measured sets that differ by it alone: with it, without it."""
        steps: dict[Node, list[tuple[int, int]]] = {}
        for number, nodes in enumerate(self._sets):
            for node in nodes:
                without = self._row.get(nodes - {node})
                if without is not None:
                    steps.setdefault(node, []).append((number, without))
        return {node: np.array(pairs) for node, pairs in steps.items()}


class StoredFunction(UnscreenedFunction):
    """f under one ablation on a resample, from stored sets.

    Attributes:
        stored: the sets.
        everything: the universe.
        n_pairs: the number of pairs.
        is_defined: whether f means anything under this ablation.
    """

    def __init__(self, stored: StoredSets, weights: Float[Tensor, "pair"]) -> None:
        """Take the values of the stored sets.

        Args:
            stored: the sets.
            weights: the weight of each pair in the resample; they sum to 1.
        """
        self.stored = stored
        self.everything = stored.everything
        self._values = stored.values(weights)
        self.n_pairs = len(weights)
        self.is_defined = True  # otherwise there is no search to repeat

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set"]:
        """Return f of each set on the whole resample, measured or estimated."""
        estimates = [self.stored.estimate(nodes) for nodes in sets]
        values = [float(self._values[e.rows] @ e.signs) for e in estimates]
        return torch.tensor(values, dtype=torch.float64)
