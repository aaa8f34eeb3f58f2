"""The type of a circuit as a networkx graph: node ids are text, attributes plain JSON data.

The stubs know that a graph has a type of node; the class itself cannot be subscripted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import networkx

if TYPE_CHECKING:
    Graph: TypeAlias = networkx.Graph[str]
    DiGraph: TypeAlias = networkx.DiGraph[str]
else:
    Graph = networkx.Graph
    DiGraph = networkx.DiGraph
