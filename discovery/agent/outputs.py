"""The last stage: the state becomes the record, its figures and its page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.errors import StoreError
from discovery.evaluation import conclude_without_circuit
from discovery.graph import CircuitGraph, CircuitNode, Cost, ModelFacts, TaskFacts
from discovery.report import (
    draw_circuit,
    draw_faithfulness_curve,
    draw_layer_head_heatmap,
    draw_layer_position_heatmap,
    render_page,
)
from discovery.sites import EMBED, LOGITS


def write_record(state: State, context: RunContext) -> CircuitGraph:
    """Write circuit.json, figures and report.html; return the record."""
    circuit = build_record(state, context)
    run = context.run
    run.save_circuit(circuit)
    for name, png in draw_figures(circuit, context).items():
        run.save_figure(name, png)
    figures = {name: run.load_figure(name) for name in run.figure_names()}
    run.save_report(render_page(circuit, figures, run.events()))
    return circuit


def build_record(state: State, context: RunContext) -> CircuitGraph:
    """The record of a finished, or cut short, state."""
    info, task, configuration = context.model.info, context.task, context.run.record
    evaluation, verdict, reasons = state.evaluation, state.verdict, state.reasons
    if verdict is None:
        evaluation, verdict, reasons = conclude_without_circuit(
            state.splits,
            gates=state.gates,
            curve=state.curve,
            size=len(state.circuit),
            n_heldout=len(task.heldout),
            cut_short=state.cut_short,
            universe=context.universe,
        )
    shown = () if verdict == "no_behaviour" else state.circuit
    return CircuitGraph(
        run_id=context.run.id,
        model=ModelFacts(
            name=info.name,
            fingerprint=info.fingerprint,
            backend=info.backend,
            dtype=info.dtype,
            weight_processing=info.weight_processing,
            n_layers=info.n_layers,
            n_heads=info.n_heads,
            n_kv_heads=info.n_kv_heads if info.shares_key_values else None,
        ),
        task=TaskFacts(
            name=task.name,
            metric=context.metric,
            fingerprint=task.fingerprint,
            n_discovery=len(task.discovery),
            n_heldout=len(task.heldout),
            split=task.split_method,
        ),
        evaluation=evaluation,
        verdict=verdict,
        reasons=reasons,
        cost=Cost(
            forward_equivalents=context.meter.spent,
            seconds=context.seconds,
            peak_memory_bytes=state.peak_memory_bytes,
        ),
        provenance=configuration.provenance,
        nodes=(
            CircuitNode.of(EMBED),
            *(_circuit_node(state, name) for name in shown),
            CircuitNode.of(LOGITS),
        ),
        edges=tuple(edge for edge in state.edges if shown),
    )


def _circuit_node(state: State, name: str) -> CircuitNode:
    effect = state.effects.get(name)
    means = (
        [part.mean for part in (effect.noising, effect.denoising) if part and part.mean]
        if effect
        else []
    )
    total = sum(means)
    return CircuitNode.of(
        name,
        effect=effect,
        sign=(total > 0) - (total < 0),
        positions=state.positions.get(name),
        role=state.labels.get(name),
        inclusion=state.inclusion.get(name),
        evidence=state.evidence.get(name, ()),
    )


def draw_figures(circuit: CircuitGraph, context: RunContext) -> Mapping[str, bytes]:
    """The figures of what was measured."""
    figures: dict[str, bytes] = {}
    run = context.run
    for result in run.array_ids():
        values, meta = run.load_arrays(result).get("values"), run.array_metadata(result)
        if values is None or values.ndim != 2:
            continue
        positions = meta.get("positions", "").split(",")
        figures[result] = draw_layer_position_heatmap(
            values, positions, title=result.replace("-", ", ")
        )
    for direction in ("denoising", "noising"):
        grid = _head_grid(context, f"nodes-{direction}")
        if grid is not None:
            figures[f"head_out-{direction}"] = draw_layer_head_heatmap(
                grid, title=f"head_out, {direction}"
            )
    if circuit.evaluation.curve:
        figures["curve"] = draw_faithfulness_curve(circuit.evaluation.curve)
    if circuit.size:
        figures["circuit"] = draw_circuit(circuit)
    return figures


def _head_grid(context: RunContext, result: str) -> np.ndarray | None:
    try:
        values, names = (
            context.run.load_arrays(result)["values"],
            context.run.array_metadata(result)["nodes"].split(","),
        )
    except StoreError:
        return None  # the run ended before its heads were measured
    info = context.model.info
    grid = np.full((info.n_layers, info.n_heads), np.nan, dtype=np.float32)
    for name, value in zip(names, values, strict=True):
        if name.startswith("a"):
            layer, head = name[1:].split(".h")
            grid[int(layer), int(head)] = value
    return grid
