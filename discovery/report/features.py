"""Features beside the circuit, and the dictionaries that they are from."""

from __future__ import annotations

from discovery.graph import CircuitGraph, CircuitNode, Dictionary
from discovery.report.evidence import label
from discovery.report.markup import Html, element, join, table
from discovery.report.words import UNKNOWN, effect, number, p_value, share

_HEAD = ["feature", "fires on", "promotes", "suppresses", "noising", "denoising", "set to 0", "control p", "page"]


def features_tables(circuit: CircuitGraph) -> Html:
    """A table for each dictionary; nothing where there is none."""
    return join([_dictionary(circuit, known) for known in circuit.dictionaries])


def _dictionary(circuit: CircuitGraph, known: Dictionary) -> Html:
    nodes = [n for n in circuit.nodes if n.feature and (n.layer, n.feature.site) == (known.layer, known.site)]
    told = f"{len(known.candidates)} candidates, found on {known.found_on} pairs and verified on {known.verified_on}; "
    told += f"{share(known.variance_explained)} of the variance explained, {number(known.l0, 1)} features at a position, "
    told += f"{number(known.share)} of the metric left by the reconstruction."
    lacking = [label(name) for name in known.candidates if name not in {node.id for node in nodes}]
    first = [element("p", warning) for warning in known.warnings]
    parts = [element("p", told, class_="soft"), element("p", known.note or "", class_="soft")]
    parts += [element("p", f"Did not hold: {', '.join(lacking)}.", class_="soft")] if lacking else []
    caption = f"Features of {known.sae} ({known.site} of layer {known.layer})"
    rows = [_row(node) for node in nodes]
    return join([*first, table(caption, _HEAD, rows) if rows else element("p", f"{caption}: none holds."), *parts])


def _row(node: CircuitNode) -> list[object]:
    known, moves = node.feature, node.effect
    assert known is not None
    return [
        node.label,
        " ".join(known.fires_on) or UNKNOWN,
        " ".join(known.promotes) or UNKNOWN,
        " ".join(known.suppresses) or UNKNOWN,
        effect(moves.noising if moves else None),
        effect(moves.denoising if moves else None),
        effect(known.removal),
        p_value(known.control_p),
        known.link or UNKNOWN,
    ]
