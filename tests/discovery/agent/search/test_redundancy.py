"""Nodes that do each other's work, by an f that is a plain function of the set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from discovery.agent.search.measured import SCREEN_PAIRS
from discovery.agent.search.redundancy import redundant_partners
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

A, B, C, D = (Node.parse(name) for name in ("a0.h0", "a0.h1", "a1.h0", "a1.h1"))


def as_faithfulness(f: Any) -> Any:
    """f of several sets, as the evaluation gives it."""

    def measure(sets: Sequence[NodeSet], label: str, pairs: int) -> torch.Tensor:
        assert pairs == SCREEN_PAIRS
        return torch.tensor([float(f(kept)) for kept in sets])

    measure.everything = frozenset({A, B, C, D})
    measure.n_pairs = 64
    return measure


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        # An OR, and a node that reads it.
        (lambda s: (A in s or B in s) and C in s, {"a0.h0": ("a0.h1",), "a0.h1": ("a0.h0",)}),
        # An AND: ablating both costs no more than ablating one.
        (lambda s: A in s and B in s, {}),
        # A sum.
        (lambda s: 0.5 * (A in s) + 0.5 * (B in s), {}),
        # A sum and an OR.
        (
            lambda s: (
                1 - 0.3 * (A not in s) - 0.3 * (B not in s) - 0.4 * (A not in s and B not in s)
            ),
            {"a0.h0": ("a0.h1",), "a0.h1": ("a0.h0",)},
        ),
        # An OR that is worth less than 0.1.
        (lambda s: 1 - 0.09 * (A not in s and B not in s), {}),
        # A node and an opposing one.
        (lambda s: 1 + 0.5 * (A not in s) - 0.5 * (B not in s), {}),
    ],
)
def test_partners_of_known_functions(f: Any, expected: dict[str, tuple[str, ...]]) -> None:
    assert redundant_partners(as_faithfulness(f), [C, A, B, D]) == expected


def test_a_single_node_has_none() -> None:
    assert redundant_partners(as_faithfulness(lambda s: A in s), [A]) == {}
