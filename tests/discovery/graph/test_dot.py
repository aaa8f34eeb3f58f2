"""DOT, read by a small parser of the Graphviz grammar, so that the tests need no graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from discovery.graph import CircuitGraph, CircuitNode
from tests.discovery.graph.example import ioi_circuit, records

TOKEN = re.compile(
    r'\s*(?:("(?:[^"\\]|\\.)*")|(->|[{}\[\];,=])|([A-Za-z_]\w*|-?\d+(?:\.\d+)?))', re.DOTALL
)
Attributes = dict[str, str]


class DotParser:
    """digraph ID { (attr_stmt | node_stmt | edge_stmt | subgraph | ID=ID) ; ... }"""

    def __init__(self, text: str) -> None:
        self.tokens = list(self._tokens(text))
        self.nodes: dict[str, Attributes] = {}
        self.edges: dict[tuple[str, str], Attributes] = {}
        self.graph: Attributes = {}
        self.rows: list[list[str]] = []
        assert [self._next(), self._next()] == ["digraph", "circuit"]
        self._statements([])
        assert not self.tokens

    @staticmethod
    def _tokens(text: str) -> Iterator[str]:
        start = 0
        text = text.rstrip()
        while start < len(text):
            match = TOKEN.match(text, start)
            assert match, f"no DOT token at {text[start : start + 30]!r}"
            start = match.end()
            yield match[0].strip()

    def _next(self) -> str:
        return self.tokens.pop(0)

    def _name(self) -> str:
        token = self._next()
        assert token[0] == '"' or re.fullmatch(r"\w+|-?[\d.]+", token), token
        if token[0] != '"':
            return token
        return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], token[1:-1])

    def _statements(self, row: list[str]) -> None:
        assert self._next() == "{"
        while self.tokens[0] != "}":
            if self.tokens[0] == "{":
                inner: list[str] = []
                self._statements(inner)
                self.rows.append(inner)
            else:
                self._statement(row)
            if self.tokens[0] == ";":
                self._next()
        self._next()

    def _statement(self, row: list[str]) -> None:
        name = self._name()
        if self.tokens[0] == "=":
            self._next()
            row.append(f"{name}={self._name()}")
        elif self.tokens[0] == "->":
            self._next()
            target = self._name()
            self.edges[name, target] = self._attributes()
        elif name == "graph":
            self.graph = self._attributes()
        elif name in ("node", "edge"):
            self._attributes()
        elif self.tokens[0] == "[":
            self.nodes[name] = self._attributes()
        else:
            row.append(name)

    def _attributes(self) -> Attributes:
        assert self._next() == "["
        attributes: Attributes = {}
        while self.tokens[0] != "]":
            name = self._name()
            assert self._next() == "="
            attributes[name] = self._name()
            if self.tokens[0] == ",":
                self._next()
        self._next()
        return attributes


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(records())
def test_every_record_is_valid_dot_with_its_nodes_and_edges(facts: dict[str, Any]) -> None:
    circuit = CircuitGraph.model_validate(facts)
    dot = DotParser(circuit.to_dot())
    assert list(dot.nodes) == [node.id for node in circuit.nodes]
    assert list(dot.edges) == [(edge.source, edge.target) for edge in circuit.edges]


def test_labels_say_what_is_known() -> None:
    dot = DotParser(ioi_circuit().to_dot())
    assert dot.nodes["a9.h6"]["label"] == "L9H6\nname mover\n+0.52"
    assert dot.nodes["a10.h0"]["label"] == "L10H0\n-0.31"
    assert dot.nodes["embed"]["label"] == "embed"
    assert dot.edges["a9.h6", "a10.h0"]["label"] == "q v -0.12"
    assert dot.graph["label"] == "ioi in bundled: partial"


def test_sign_shows_without_colour() -> None:
    dot = DotParser(ioi_circuit().to_dot())
    assert "dashed" in dot.nodes["a10.h0"]["style"]
    assert "dashed" not in dot.nodes["a9.h6"].get("style", "")
    assert dot.edges["a9.h6", "a10.h0"]["style"] == "dashed"


def test_a_layer_is_a_row() -> None:
    circuit = CircuitGraph(
        nodes=tuple(CircuitNode.of(name) for name in ("a1.h0", "a1.h3", "m1", "a2.h0"))
    )
    assert DotParser(circuit.to_dot()).rows == [["rank=same", "a1.h0", "a1.h3"]]


@pytest.mark.parametrize(
    "role", ['"];evil [label="', "back\\", "\\N \\G", "<b>x</b>", "a\nb\x00c", "é 中 🙂"]
)
def test_hostile_text_stays_text(role: str) -> None:
    dot = DotParser(CircuitGraph(nodes=(CircuitNode.of("m0", role=role),)).to_dot())
    assert list(dot.nodes) == ["embed", "m0", "logits"]
    assert dot.nodes["m0"]["label"] == "MLP0\n" + " ".join(role.replace("\x00", " ").split())
