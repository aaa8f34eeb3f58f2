"""The short texts that every drawing shows of a node, an edge or a record.

A node's number is its denoising effect, or its noising effect if only that was measured. An
edge's number is the effect of all its inputs together; for an edge into a feature it is the share
of the feature's own change that the edge makes. Signs are always written. The arguments `facts`
are the attributes that `CircuitGraph.to_networkx` gives: plain JSON data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from discovery.sites import SLOTS, Node

Tone = Literal["up", "down", "flat", "end"]
"""Whether a node moves the metric up, down or not (or nobody knows), or is one of the two ends."""


def node_lines(name: str, facts: Mapping[str, Any]) -> list[str]:
    """Return the label, the parts of the role and the effect of a node, as far as known."""
    effect = node_effect(facts)
    label = str(facts.get("label") or Node.parse(name).label)
    role = facts.get("role") or _describe_firing(facts)
    parts = str(role).split("; ") if role else []
    lines = [label, *parts, None if effect is None else format_signed(effect)]
    return [_to_one_line(line) for line in lines if line]


def _describe_firing(facts: Mapping[str, Any]) -> str | None:
    """Return what a feature fires on, in brief."""
    tokens = (facts.get("feature") or {}).get("fires_on") or []
    return f"fires on {' '.join(token.strip() for token in tokens[:2])}" if tokens else None


def node_effect(facts: Mapping[str, Any]) -> float | None:
    """Return the node's denoising effect; if it is unknown, its noising effect; else None."""
    effect = facts.get("effect") or {}
    for direction in ("denoising", "noising"):
        mean = (effect.get(direction) or {}).get("mean")
        if mean is not None:
            return float(mean)
    return None


def node_tone(name: str, facts: Mapping[str, Any]) -> Tone:
    """Return the tone of a node, from its `sign` or, if there is none, from its effect."""
    if Node.parse(name).layer is None:
        return "end"
    sign = facts.get("sign")
    moves = node_effect(facts) if sign is None else sign
    if not moves:
        return "flat"
    return "up" if moves > 0 else "down"


def edge_effect(facts: Mapping[str, Any]) -> float | None:
    """Return the edge's effect over all inputs; None if it was not measured.

    For an edge into a feature it is how far the edge moves the feature itself.
    """
    mean = (facts.get("activation") or facts.get("effect") or {}).get("mean")
    return None if mean is None else float(mean)


def edge_line(facts: Mapping[str, Any]) -> str:
    """Return the inputs of an edge and its effect, such as ``q k +0.12``."""
    effect = edge_effect(facts)
    slots = [
        slot
        for slot in SLOTS
        if slot in (facts.get("inputs") or {}) and slot not in ("mlp", "feature", "logits")
    ]
    return " ".join(slots + ([] if effect is None else [format_signed(effect)]))


def format_signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign: +0.12, -0.03. Zero has no sign: 0.00."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def record_title(facts: Mapping[str, Any]) -> str:
    """Return a title of the record: task, model, verdict."""
    task = (facts.get("task") or {}).get("name")
    model = (facts.get("model") or {}).get("name")
    verdict = str(facts.get("verdict") or "not evaluated").replace("_", " ")
    return _to_one_line(f"{task or 'a task'} in {model or 'a model'}: {verdict}")


def _to_one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
