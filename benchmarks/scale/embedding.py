"""Puts a construction into a large model, among bystanders that are not silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.known_circuits.known_circuit import KnownCircuit, assemble
from benchmarks.known_circuits.prompts import write_pairs
from benchmarks.known_circuits.weights import Head, Mlp
from benchmarks.scale.bystanders import Geometry, list_free_places, make_plan, write_layers
from benchmarks.scale.constructions import (
    HAND_BUILT,
    KINDS,
    Construction,
    Kind,
    build_program,
    list_program_seeds,
)

PAIRS_PER_TEMPLATE = 60
GEOMETRIES: Mapping[int, Geometry] = {
    20: Geometry(n_layers=4, n_heads=4),
    40: Geometry(n_layers=5, n_heads=7),
    156: Geometry(n_layers=12, n_heads=12),
    300: Geometry(n_layers=30, n_heads=9),
    1056: Geometry(n_layers=32, n_heads=32),
}


@dataclass(frozen=True, kw_only=True)
class HiddenCircuit:
    """A large model whose circuit is known.

    Attributes:
        kind: the kind of the circuit.
        seed: decides everything that is drawn.
        known_circuit: the model and its task.
        truth: the names of the circuit's nodes.
    """

    kind: Kind
    seed: int
    known_circuit: KnownCircuit
    truth: frozenset[str]

    @property
    def n_nodes(self) -> int:
        """The number of heads and MLPs of the model."""
        return len(self.known_circuit.universe)


def hide_circuit(kind: Kind, n_nodes: int, seed: int) -> HiddenCircuit:
    """Build the circuit of a kind and a seed in a model of `n_nodes` nodes.

    For a program, the seed counts the accepted programs without LayerNorm.

    Raises:
        ValueError: if there is no such size or no such program.
    """
    if n_nodes not in GEOMETRIES:
        raise ValueError(f"There is no geometry of {n_nodes} nodes. Use one of {[*GEOMETRIES]}.")
    geometry = GEOMETRIES[n_nodes]
    rng = np.random.default_rng([KINDS.index(kind), n_nodes, seed])
    construction = _construct(kind, seed, rng)
    layers = _draw_layers(construction, geometry, rng)
    constructed: dict[tuple[int, int | None], Head | Mlp] = {}
    truth = set()
    for stage, layer in zip(construction.stages, layers, strict=True):
        numbers = rng.choice(geometry.n_heads, len(stage.heads), replace=False)
        for part, number in zip(stage.heads, map(int, numbers), strict=True):
            constructed[layer, number] = part.head
            if part.is_true:
                truth.add(f"a{layer}.h{number}")
        if stage.mlp is not None:
            constructed[layer, None] = _widen(stage.mlp, 2 * construction.layout.n_content)
            truth.add(f"m{layer}")
    places = list(list_free_places(geometry, set(constructed)))
    plan = make_plan(construction, layers, places, rng)
    circuit = assemble(
        f"{kind}-{n_nodes}-{seed}",
        f"A circuit of the kind {kind!r} among {n_nodes} nodes.",
        layout=construction.layout,
        layers=write_layers(construction, constructed, plan, geometry, rng),
        pairs=write_pairs(construction.scheme, construction.layout, PAIRS_PER_TEMPLATE, seed),
        rng=rng,
    )
    return HiddenCircuit(kind=kind, seed=seed, known_circuit=circuit, truth=frozenset(truth))


def _construct(kind: Kind, seed: int, rng: np.random.Generator) -> Construction:
    if kind != "program":
        return HAND_BUILT[kind](rng)
    seeds = list_program_seeds()
    if not 0 <= seed < len(seeds):
        raise ValueError(f"There is no program {seed}. Programs are counted to {len(seeds) - 1}.")
    return build_program(seeds[seed])


def _draw_layers(
    construction: Construction, geometry: Geometry, rng: np.random.Generator
) -> list[int]:
    """Draw the layer of each stage: the first stage early, the others behind it, in order."""
    n_later = len(construction.stages) - 1
    first = int(rng.integers(min(geometry.n_layers // 3 + 1, geometry.n_layers - n_later)))
    later = rng.choice(range(first + 1, geometry.n_layers), n_later, replace=False)
    return [first, *sorted(map(int, later))]


def _widen(mlp: Mlp, d_mlp: int) -> Mlp:
    """Return an MLP with hidden units added that do nothing."""
    missing = d_mlp - mlp.W_in.shape[1]
    return Mlp(
        role=mlp.role,
        W_in=np.pad(mlp.W_in, ((0, 0), (0, missing))),
        b_in=np.pad(mlp.b_in, (0, missing)),
        W_out=np.pad(mlp.W_out, ((0, missing), (0, 0))),
        b_out=mlp.b_out,
    )
