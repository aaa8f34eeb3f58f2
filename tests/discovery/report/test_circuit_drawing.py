from __future__ import annotations

import io

import pytest
from PIL import Image

from discovery.graph import CircuitEdge, CircuitGraph, CircuitNode, Effect
from discovery.report import draw_circuit
from discovery.report.circuit_drawing import _box_lines, _layout
from tests.discovery.graph.example import ioi_circuit


def test_a_circuit_is_drawn_in_rows_from_embed_to_logits() -> None:
    names = ("a0.h1", "a0.h2", "m0", "a3.h0")
    points, rows = _layout(CircuitGraph(nodes=tuple(map(CircuitNode.of, names))))
    assert rows == ["", "layer 0 heads", "layer 0 MLP", "layer 3 heads", ""]
    assert [points[name].y for name in ("embed", *names, "logits")] == [0, 1, 1, 2, 3, 4]
    assert points["a0.h1"].x == -points["a0.h2"].x < 0
    assert len(set(points.values())) == len(points)


def test_the_same_circuit_gives_the_same_bytes_and_an_effect_shows() -> None:
    assert draw_circuit(ioi_circuit()) == draw_circuit(ioi_circuit())
    weaker = CircuitEdge(source="a9.h6", target="a10.h0", effect=Effect(mean=0.5))
    assert draw_circuit(ioi_circuit(edges=(weaker,))) != draw_circuit(ioi_circuit())


def test_a_box_shows_the_name_of_a_role_and_not_its_explanation() -> None:
    facts = {"role": "hidden: no effect alone in either direction"}
    assert _box_lines("a1.h0", facts) == ["L1H0", "hidden"]
    assert _box_lines("m0", {"role": "x" * 28}) == ["MLP0", "x" * 28]
    assert _box_lines("m0", {"role": "x" * 29}) == ["MLP0", "x" * 27 + "…"]


def test_an_edge_without_effect_is_drawn_lighter_than_a_real_one() -> None:
    def darkness(mean: float) -> int:
        edge = CircuitEdge(source="embed", target="logits", effect=Effect(mean=mean))
        picture = Image.open(io.BytesIO(draw_circuit(CircuitGraph(edges=(edge,)))))
        return sum(255 - value for value in picture.convert("L").tobytes())

    frame = darkness(0.0)
    assert 0 < (darkness(0.05) - frame) < (darkness(0.2) - frame) < (darkness(0.9) - frame)
    assert darkness(0.002) - frame < 0.1 * (darkness(0.2) - frame)


def test_an_empty_record_can_be_drawn() -> None:
    assert draw_circuit(CircuitGraph(verdict="no_behaviour")).startswith(b"\x89PNG")


def test_a_large_circuit_grows_the_drawing() -> None:
    nodes = tuple(CircuitNode.of(f"a{layer}.h{head}") for layer in range(12) for head in range(8))
    edges = tuple(
        CircuitEdge(source=f"a{layer}.h0", target=f"a{layer + 1}.h7") for layer in range(11)
    )
    large = Image.open(io.BytesIO(draw_circuit(CircuitGraph(nodes=nodes, edges=edges))))
    small = Image.open(io.BytesIO(draw_circuit(ioi_circuit())))
    assert large.size > small.size


@pytest.mark.parametrize("role", ["$x$", "中 🙂", "<b>", "a\nb", "x" * 300])
def test_hostile_roles_are_drawn_as_text(role: str) -> None:
    assert draw_circuit(CircuitGraph(nodes=(CircuitNode.of("m0", role=role),))).startswith(
        b"\x89PNG"
    )
