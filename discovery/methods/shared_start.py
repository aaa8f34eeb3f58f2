"""Runs of similar sets that start where they begin to differ.

The sets that a search measures together mostly differ from one set by a single node: C without each
node, or with each node. Up to the layer of that node they run alike. So the set that they have in
common is run once and its residual stream is kept at every layer where another one starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from discovery.engine import Block, Rows, Window
from discovery.sites import Node

MIN_LAYERS_SPARED = 2.0  # passes over all layers that must be spared for a shared run to be made


@dataclass(kw_only=True)
class SharedRun:
    """One ablated set whose residual stream other sets start from.

    Attributes:
        ablated: the nodes that are ablated in it.
        block: the pairs.
        rows: its rows, one for each of some consecutive pairs.
        first_pair: the first of these pairs.
        layers: the layers at whose input its stream is needed.
    """

    ablated: frozenset[Node]
    block: Block
    rows: Rows
    first_pair: int
    layers: Sequence[int]
    _streams: dict[int, Float[Tensor, "pair pos d_model"]] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """The forward-pass equivalents of the run."""
        return self.block.estimate_streams(self.rows, max(self.layers))

    def stream(self, layer: int, window: Window) -> Float[Tensor, "n pos d_model"]:
        """Return its residual stream at a layer's input, for the rows of a window."""
        if not self._streams:
            self._streams = self.block.measure_streams(self.rows, self.layers)
        return self._streams[layer][window.pair - self.first_pair, window.first : window.end]


def first_layer(nodes: Iterable[Node]) -> int:
    """Return the first layer of some nodes, of which there is at least one."""
    return min(node.layer for node in nodes if node.layer is not None)


def choose_shared_set(
    ablated_sets: Sequence[frozenset[Node]], n_layers: int
) -> frozenset[Node] | None:
    """Return the ablated set whose run would spare others the most; None if it is not worth it.

    It is what more than half of the large sets ablate. Small ones start late by themselves.

    Args:
        ablated_sets: what each set ablates.
        n_layers: the number of layers of the model.
    """
    largest = max(map(len, ablated_sets), default=0)
    large_sets = [nodes for nodes in ablated_sets if 2 * len(nodes) >= largest]
    counts = Counter(node for nodes in large_sets for node in nodes)
    majority = frozenset(node for node, count in counts.items() if 2 * count > len(large_sets))
    if not majority:
        return None
    spared = -(n_layers - first_layer(majority))
    for nodes in ablated_sets:
        if nodes:
            spared += max(0, start_from(majority, nodes, n_layers) - first_layer(nodes))
    return majority if spared >= MIN_LAYERS_SPARED * n_layers else None


def start_from(shared: frozenset[Node], ablated: frozenset[Node], n_layers: int) -> int:
    """Return the first layer in which a set differs from the shared one; n_layers if in none."""
    different = shared ^ ablated
    return first_layer(different) if different else n_layers
