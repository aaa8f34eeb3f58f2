"""The ranking of single nodes in a journal, which is there before any circuit is.

Every stage of a discovery leaves its state in events.jsonl. The ranking is read from there without
the model, so that a run that is at work, or whose budget ended early, shows what it has measured.
A ranking is no circuit: it says what each node does alone, and nothing judges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from discovery.graph import NodeEffect
from discovery.graph.base import mean_of
from discovery.sites import Node
from discovery.store.journal import Event


@dataclass(frozen=True, kw_only=True)
class RankedNode:
    """One node of a ranking.

    Attributes:
        node: the head or MLP.
        denoising: its effect alone, by denoising; None if it is not known.
        noising: its effect alone, by noising; None if it is not known.
    """

    node: Node
    denoising: float | None
    noising: float | None


def read_ranking(events: Sequence[Event]) -> list[RankedNode]:
    """Return the last ranking in a journal, the largest effect first; empty if there is none."""
    for event in reversed(events):
        state = event.get("state") or {}
        if names := state.get("ranking"):
            return [_ranked_node(name, state.get("effects", {}).get(name)) for name in names]
    return []


def read_candidate(events: Sequence[Event]) -> list[Node]:
    """Return the circuit so far, in forward order; empty if there is none yet."""
    for event in reversed(events):
        if "state" in event:
            return [Node.parse(name) for name in event["state"].get("circuit", ())]
    return []


def _ranked_node(name: str, effect: object) -> RankedNode:
    effects = NodeEffect.model_validate(effect or {})
    return RankedNode(
        node=Node.parse(name),
        denoising=mean_of(effects.denoising),
        noising=mean_of(effects.noising),
    )
