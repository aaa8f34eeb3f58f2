"""How a circuit record and its evaluation are shown to an assistant.

The `evaluation` block is the one of circuit.json. Its bulky parts are left out unless a call asks
for detail.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mcp.types import ContentBlock
from pydantic import Field

from discovery.errors import StoreError
from discovery.graph import (
    CONDITION_MEANINGS,
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    CircuitEdge,
    CircuitGraph,
    CircuitNode,
    Effect,
    Evaluation,
    RoleMeasurement,
)
from discovery.store import Run
from mcp_server.session import Session
from mcp_server.tools.result import Result, make_image, make_link, round_number, round_numbers

_DIGITS = 4
_MAX_CURVE_POINTS = 40
_SMALLEST_DROPS_SHOWN = 3  # rows of condition (d)


class NodeView(Result):
    """A head or MLP of the circuit; effects are shares of clean − corrupted."""

    id: str
    label: str
    denoising: float | None
    noising: float | None
    sign: int | None = Field(description="Which way it moves the metric.")
    role: str | None
    positions: list[int | str] | None


class EdgeView(Result):
    """What one node sends to a later one; k and v: those that the target head alone reads."""

    source: str
    target: str
    effect: float | None
    inputs: list[str]


class ConditionView(Result):
    """One condition: holds, fails, undecided or not_run; (d), (f) have one status for both."""

    condition: str
    meaning: str
    resample: str
    mean: str


class ScoreView(Result):
    """f(C) and f(U∖C) on held-out pairs, or on discovery pairs if nothing was held out."""

    ablation: str
    faithfulness: float | None
    faithfulness_low: float | None
    faithfulness_high: float | None
    knockout: float | None


class RunLink(NamedTuple):
    """A file of a run as a resource."""

    uri: str
    name: str
    mime_type: str


def node_views(circuit: CircuitGraph, *, detailed: bool = False) -> list[NodeView]:
    """Return the circuit's heads, MLPs and features, the largest effect first.

    Args:
        detailed: whether roles say which measurement each of their parts rests on.
    """
    nodes = [node for node in circuit.nodes if node.id not in ("embed", "logits")]
    nodes.sort(key=lambda node: (-_effect_size(node), node.node))
    return [_node_view(node, detailed=detailed) for node in nodes]


def edge_views(circuit: CircuitGraph) -> list[EdgeView]:
    """Return the circuit's edges, the largest effect first."""
    edges = sorted(circuit.edges, key=lambda edge: -abs(_mean(edge.effect) or 0.0))
    return [_edge_view(edge) for edge in edges]


def condition_views(circuit: CircuitGraph) -> list[ConditionView]:
    """Return the outcomes of the conditions (a) to (f)."""
    conditions = circuit.evaluation.conditions
    return [
        ConditionView(
            condition=name,
            meaning=CONDITION_MEANINGS[name].name,
            resample=conditions.under(name, "resample"),
            mean=conditions.under(name, "mean"),
        )
        for name in CONDITIONS
    ]


def score_views(circuit: CircuitGraph) -> list[ScoreView]:
    """Return faithfulness and knockout under each ablation that was measured."""
    split = circuit.evaluation.heldout or circuit.evaluation.discovery
    if split is None:
        return []
    views = []
    for ablation in EVIDENCE_ABLATIONS:
        evidence = split.ablations.under(ablation)
        if evidence is None:
            continue
        faithfulness = evidence.faithfulness
        knockout = evidence.knockout
        views.append(
            ScoreView(
                ablation=ablation,
                faithfulness=round_number(faithfulness.value, _DIGITS) if faithfulness else None,
                faithfulness_low=round_number(faithfulness.low, _DIGITS) if faithfulness else None,
                faithfulness_high=round_number(faithfulness.high, _DIGITS)
                if faithfulness
                else None,
                knockout=round_number(knockout.value, _DIGITS) if knockout else None,
            )
        )
    return views


def run_content(session: Session, run: Run, *, image: bool) -> list[ContentBlock]:
    """Return the drawing of the circuit, if wanted, and links to every file of the run."""
    blocks: list[ContentBlock] = []
    if image and session.settings.images == "include" and "circuit" in run.figure_names():
        blocks.append(make_image(run.load_figure("circuit")))
    return blocks + [make_link(*link) for link in run_links(run)]


def run_links(run: Run) -> list[RunLink]:
    """Return the files of a finished run as resources."""
    base = f"scout://runs/{run.id}"
    documents = {
        "circuit.json": "application/json",
        "run.json": "application/json",
        "report.html": "text/html",
    }
    links = [
        RunLink(f"{base}/{name}", name, mime_type)
        for name, mime_type in documents.items()
        if name == "run.json" or (run.path / name).exists()
    ]
    for name in run.figure_names():
        links.append(RunLink(f"{base}/figures/{name}.png", f"figure {name}", "image/png"))
    for name in run.array_ids():
        uri = f"{base}/arrays/{name}.safetensors"
        links.append(RunLink(uri, f"array {name}", "application/octet-stream"))
    return links


def load_circuit_if_any(run: Run) -> CircuitGraph | None:
    """Return the circuit record; None if the run has none yet.

    Raises:
        StoreError: if the record is damaged.
    """
    try:
        return run.load_circuit()
    except StoreError:
        if (run.path / "circuit.json").exists():
            raise
        return None


def _describe_role(node: CircuitNode, *, detailed: bool) -> str | None:
    if detailed and node.role_measurements:
        return "; ".join(map(_describe_measurement, node.role_measurements))
    return node.role or _describe_feature(node)


def _describe_measurement(item: RoleMeasurement) -> str:
    """Return a part of a role and, in brackets, what was measured, its value, chance and p."""
    text = item.measure
    if item.mean is not None:
        mean, low, high = (round_number(value, 3) for value in (item.mean, item.low, item.high))
        text += f" {mean} [{low}, {high}]"
    if item.chance is not None:
        text += f", chance {round_number(item.chance, 3)}"
    if item.p is not None:
        text += f", p {item.p:.1e}"
    return f"{item.role.partition(':')[0]} ({text})"


def _node_view(node: CircuitNode, *, detailed: bool) -> NodeView:
    effect = node.effect
    return NodeView(
        id=node.id,
        label=node.label,
        denoising=_mean(effect.denoising) if effect else None,
        noising=_mean(effect.noising) if effect else None,
        sign=node.sign,
        role=_describe_role(node, detailed=detailed),
        positions=list(node.positions) if node.positions is not None else None,
    )


def _describe_feature(node: CircuitNode) -> str | None:
    """Return what is known of a feature in a few words; None for other nodes."""
    if node.feature is None:
        return None
    fires_on = " ".join(node.feature.fires_on)
    promotes = " ".join(node.feature.promotes)
    return f"feature; fires on {fires_on}; promotes {promotes}"


def _edge_view(edge: CircuitEdge) -> EdgeView:
    return EdgeView(
        source=edge.source,
        target=edge.target,
        effect=_mean(edge.effect),
        inputs=[str(name) for name in edge.inputs],
    )


def _effect_size(node: CircuitNode) -> float:
    """Return the sum of a node's absolute effects in both directions, for sorting."""
    if not node.effect:
        return 0.0
    return abs(_mean(node.effect.denoising) or 0.0) + abs(_mean(node.effect.noising) or 0.0)


def _mean(effect: Effect | None) -> float | None:
    return round_number(effect.mean, _DIGITS) if effect else None


def evaluation_block(evaluation: Evaluation, *, detailed: bool) -> dict[str, Any]:
    """Return `evaluation` as in circuit.json, with the meaning of each condition.

    Unless `detailed`, it leaves out the thresholds, the reference prompts, the node lists of the
    curve, and all rows of condition (d) but those with the smallest drops.
    """
    block: dict[str, Any] = round_numbers(
        evaluation.model_dump(mode="json", by_alias=True), _DIGITS
    )
    block["meaning"] = {name: CONDITION_MEANINGS[name].name for name in CONDITIONS}
    if detailed:
        return block
    block.pop("thresholds", None)
    points = block.get("curve", [])[:_MAX_CURVE_POINTS]
    block["curve"] = [
        {name: point[name] for name in ("ablation", "size", "faithfulness")} for point in points
    ]
    for split in ("discovery", "heldout"):
        for evidence in ((block.get(split) or {}).get("ablations") or {}).values():
            if evidence:
                _drop_bulk(evidence)
    return block


def _drop_bulk(evidence: dict[str, Any]) -> None:
    """Remove what is long from the evidence under one ablation."""
    evidence.pop("reference", None)
    rows = evidence.pop("minimality", None)
    if rows:
        rows = sorted(rows, key=lambda row: row["drop"] or 0.0)
        evidence["minimality_smallest_drops"] = rows[:_SMALLEST_DROPS_SHOWN]


def shorten_evaluation(block: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return the block within so many characters.

    First the curve is left out, then the evidence on the discovery pairs, the tests, and at last
    the evidence on the held-out pairs. A block that fits is returned as it is.
    """
    for part in ("curve", "discovery", "tests", "heldout"):
        if len(json.dumps(block)) <= limit:
            break
        if part in ("discovery", "heldout") and block.get(part):
            summary = {key: value for key, value in block[part].items() if key != "ablations"}
            block = {**block, part: summary}
        else:
            block = {key: value for key, value in block.items() if key != part}
    return block
