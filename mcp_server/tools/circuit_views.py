"""A circuit record as an assistant reads it.

The evaluation of a circuit as an assistant reads it: the `evaluation` block of circuit.json, its bulk left out unless asked for.
"""

from __future__ import annotations

import json
from typing import Any

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
)
from discovery.store import Run
from mcp_server.session import Session
from mcp_server.tools.result import Result, make_image, make_link, round_number, round_numbers


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
    """One condition of the verdict: holds, fails, undecided or not_run."""

    condition: str
    meaning: str
    resample: str
    mean: str


class ScoreView(Result):
    """f(C) and f(U∖C) on held-out pairs (on discovery pairs where those were not looked at)."""

    ablation: str
    faithfulness: float | None
    faithfulness_low: float | None
    faithfulness_high: float | None
    knockout: float | None


def node_views(circuit: CircuitGraph) -> list[NodeView]:
    """The circuit's heads and MLPs, largest effect first."""
    members = [node for node in circuit.nodes if node.id not in ("embed", "logits")]
    return [
        _node_view(node)
        for node in sorted(members, key=lambda node: (-_effect_size(node), node.node))
    ]


def edge_views(circuit: CircuitGraph) -> list[EdgeView]:
    """The circuit's edges, largest effect first."""
    ordered = sorted(circuit.edges, key=lambda edge: -abs(_mean(edge.effect) or 0.0))
    return [_edge_view(edge) for edge in ordered]


def condition_views(circuit: CircuitGraph) -> list[ConditionView]:
    """(a) to (f)."""
    conditions = circuit.evaluation.conditions
    return [
        ConditionView(
            condition=name,
            meaning=CONDITION_MEANINGS[name].name,
            resample=conditions.of(name).resample,
            mean=conditions.of(name).mean,
        )
        for name in CONDITIONS
    ]


def score_views(circuit: CircuitGraph) -> list[ScoreView]:
    """Faithfulness and knockout under each ablation."""
    split = circuit.evaluation.heldout or circuit.evaluation.discovery
    views = []
    for ablation in EVIDENCE_ABLATIONS if split else ():
        found = split.ablations.under(ablation) if split else None
        if found is None:
            continue
        kept, knocked = found.faithfulness, found.knockout
        views.append(
            ScoreView(
                ablation=ablation,
                faithfulness=round_number(kept.value, 4) if kept else None,
                faithfulness_low=round_number(kept.low, 4) if kept else None,
                faithfulness_high=round_number(kept.high, 4) if kept else None,
                knockout=round_number(knocked.value, 4) if knocked else None,
            )
        )
    return views


def run_content(session: Session, run: Run, *, image: bool) -> list[ContentBlock]:
    """The circuit's drawing, and links to what the run left."""
    blocks: list[ContentBlock] = []
    names = run.figure_names()
    if image and session.settings.images == "include" and "circuit" in names:
        blocks.append(make_image(run.load_figure("circuit")))
    return blocks + [make_link(uri, name, kind) for uri, name, kind in run_links(run)]


def run_links(run: Run) -> list[tuple[str, str, str]]:
    """URI, name and MIME type of a finished run's files."""
    base = f"scout://runs/{run.id}"
    links = [(f"{base}/run.json", "run.json", "application/json")]
    if (run.path / "circuit.json").exists():
        links.insert(0, (f"{base}/circuit.json", "circuit.json", "application/json"))
    if (run.path / "report.html").exists():
        links.append((f"{base}/report.html", "report.html", "text/html"))
    links += [
        (f"{base}/figures/{name}.png", f"figure {name}", "image/png") for name in run.figure_names()
    ]
    return links + [
        (f"{base}/arrays/{name}.safetensors", f"array {name}", "application/octet-stream")
        for name in run.array_ids()
    ]


def load_circuit_if_any(run: Run) -> CircuitGraph | None:
    """The record, where the run is that far."""
    try:
        return run.load_circuit()
    except StoreError:
        if (run.path / "circuit.json").exists():
            raise
        return None


def facts_of(circuit: CircuitGraph) -> dict[str, Any]:
    """Model and task in brief."""
    return {"model": circuit.model.name, "task": circuit.task.name, "metric": circuit.task.metric}


def _node_view(node: CircuitNode) -> NodeView:
    effect = node.effect
    return NodeView(
        id=node.id,
        label=node.label,
        denoising=_mean(effect.denoising) if effect else None,
        noising=_mean(effect.noising) if effect else None,
        sign=node.sign,
        role=node.role or _describe_feature(node),
        positions=list(node.positions) if node.positions is not None else None,
    )


def _describe_feature(node: CircuitNode) -> str | None:
    """What is known of a feature, in a few words."""
    if node.feature is None:
        return None
    return f"feature; fires on {' '.join(node.feature.fires_on)}; promotes {' '.join(node.feature.promotes)}"


def _edge_view(edge: CircuitEdge) -> EdgeView:
    return EdgeView(
        source=edge.source,
        target=edge.target,
        effect=_mean(edge.effect),
        inputs=[str(name) for name in edge.inputs],
    )


def _effect_size(node: CircuitNode) -> float:
    effect = node.effect
    return (
        abs(_mean(effect.denoising) or 0.0) + abs(_mean(effect.noising) or 0.0) if effect else 0.0
    )


def _mean(effect: Effect | None) -> float | None:
    return round_number(effect.mean, 4) if effect else None


def evaluation_block(evaluation: Evaluation, *, detailed: bool) -> dict[str, Any]:
    """`evaluation` as in circuit.json; concise leaves out minimality rows, thresholds and the curve's node lists."""
    block: dict[str, Any] = round_numbers(evaluation.model_dump(mode="json", by_alias=True), 4)
    block["meaning"] = {name: CONDITION_MEANINGS[name].name for name in CONDITIONS}
    if detailed:
        return block
    block.pop("thresholds", None)
    block["curve"] = [
        {k: point[k] for k in ("ablation", "size", "faithfulness")}
        for point in block.get("curve", [])
    ][:40]
    for split in ("discovery", "heldout"):
        for found in ((block.get(split) or {}).get("ablations") or {}).values():
            if found:
                found.pop("reference", None)
                rows = found.pop("minimality", None)
                if rows:
                    found["minimality_smallest_drops"] = sorted(
                        rows, key=lambda row: row["drop"] or 0.0
                    )[:3]
    return block


def shorten_evaluation(block: dict[str, Any], limit: int) -> dict[str, Any]:
    """The block within so many characters: first the curve goes, then the discovery split's evidence."""
    for cut in ("curve", "discovery", "tests", "heldout"):
        if len(json.dumps(block)) <= limit:
            break
        if cut in ("discovery", "heldout") and block.get(cut):
            block = {
                **block,
                cut: {key: value for key, value in block[cut].items() if key != "ablations"},
            }
        else:
            block = {key: value for key, value in block.items() if key != cut}
    return block
