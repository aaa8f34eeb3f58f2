"""What a run leaves behind at its end: the record (circuit.json), its figures and its page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from discovery.agent.context import RunContext
from discovery.agent.stages.position_sweeps import describe_saved_sweep
from discovery.agent.state import State
from discovery.backends.info import ModelInfo
from discovery.errors import StoreError
from discovery.evaluation import conclude_without_circuit
from discovery.graph import SCHEMAS, CircuitGraph, CircuitNode, Cost, ModelFacts, TaskFacts
from discovery.graph.base import Json, mean_of
from discovery.report import (
    draw_circuit,
    draw_faithfulness_curve,
    draw_layer_head_heatmap,
    draw_layer_position_heatmap,
    render_page,
)
from discovery.sites import EMBED, LOGITS, Node
from discovery.store import Run, split_names

NOT_JUDGED = "not judged yet"
"""The reason of a record that is written before the held-out pairs were looked at."""


def write_record(state: State, context: RunContext) -> CircuitGraph:
    """Write circuit.json, the figures and report.html, and return the record."""
    circuit = build_record(state, context)
    context.run.save_circuit(circuit)
    for name, png in draw_figures(circuit, context).items():
        context.run.save_figure(name, png)
    save_page(context.run, circuit)
    return circuit


def save_page(run: Run, circuit: CircuitGraph) -> None:
    """Write report.html from a record, the saved figures and the journal."""
    figures = {name: run.load_figure(name) for name in run.figure_names()}
    run.save_report(render_page(circuit, figures, run.events()))


def save_interim_record(state: State, context: RunContext) -> None:
    """Write circuit.json of a run that goes on, so that it can be read before the end.

    Until the held-out pairs were looked at, its verdict is `inconclusive` and it says so.
    """
    circuit = build_record(state, context)
    if state.verdict is None:
        circuit = circuit.model_copy(update={"verdict": "inconclusive", "reasons": (NOT_JUDGED,)})
    context.run.save_circuit(circuit)


def build_record(state: State, context: RunContext) -> CircuitGraph:
    """Return the record of a state, which may have been cut short by the budget."""
    evaluation = state.evaluation
    verdict = state.verdict
    reasons = (*state.reasons, *map(_explain_left_out, state.left_out))
    if verdict is None:
        evaluation, verdict, reasons = conclude_without_circuit(
            splits=state.splits,
            gates=state.gates,
            curve=state.curve,
            size=len(state.circuit),
            n_heldout=len(context.task.heldout),
            cut_short=state.cut_short,
            universe=context.universe,
            rules=context.rules,
        )
    evaluation = evaluation.model_copy(
        update={"tests": {**evaluation.tests, **_describe_measurements(state, context)}}
    )
    names = () if verdict == "no_behaviour" else state.circuit
    return CircuitGraph(
        schema=SCHEMAS[context.rules],
        run_id=context.run.id,
        model=_model_facts(context.model.info),
        task=_task_facts(context),
        evaluation=evaluation,
        verdict=verdict,
        reasons=reasons,
        cost=Cost(
            forward_equivalents=context.meter.spent,
            seconds=context.seconds,
            peak_memory_bytes=state.peak_memory_bytes,
        ),
        provenance=context.run.record.provenance,
        nodes=(
            CircuitNode.of(EMBED),
            *(_circuit_node(state, name) for name in names),
            CircuitNode.of(LOGITS),
        ),
        edges=state.edges if names else (),
    )


def _explain_left_out(stage: str) -> str:
    """Return the reason that names a stage that the budget did not reach."""
    reason = f"the budget ended before {stage}"
    if stage == "mend":
        return f"{reason}, so that the circuit is the first candidate"
    # Of stability, the verdict already says that (f) was not run.
    return reason if stage == "stability" else f"{reason}, which enters no verdict"


def _describe_measurements(state: State, context: RunContext) -> dict[str, Json]:
    """Return how much of each sweep and of the edges was measured.

    The state of a run that an older version began lacks what its sweeps measured; that is read
    from their arrays.
    """
    sweeps: dict[str, Json] = {}
    for result_id in context.run.array_ids():
        facts = state.sweeps.get(result_id)
        if facts is None:
            facts = describe_saved_sweep(context.run, result_id, context.seed)
        if facts is not None:
            sweeps[result_id] = dict(facts)
    measured: dict[str, Json] = {"max_statistic": sweeps} if sweeps else {}
    return measured | ({"edges": dict(state.edge_counts)} if state.edge_counts else {})


def _model_facts(info: ModelInfo) -> ModelFacts:
    return ModelFacts(
        name=info.name,
        fingerprint=info.fingerprint,
        quantisation=info.quantisation,
        backend=info.backend,
        dtype=info.dtype,
        weight_processing=info.weight_processing,
        n_layers=info.n_layers,
        n_heads=info.n_heads,
        n_kv_heads=info.n_kv_heads if info.shares_key_values else None,
    )


def _task_facts(context: RunContext) -> TaskFacts:
    task = context.task
    return TaskFacts(
        name=task.name,
        metric=context.metric,
        fingerprint=task.fingerprint,
        n_discovery=len(task.discovery),
        n_heldout=len(task.heldout),
        split=task.split_method,
    )


def _circuit_node(state: State, name: str) -> CircuitNode:
    effect = state.effects.get(name)
    total = 0.0
    if effect is not None:
        total = (mean_of(effect.noising) or 0.0) + (mean_of(effect.denoising) or 0.0)
    measurements = state.role_measurements.get(name, ())
    results = (*state.evidence.get(name, ()), *(item.evidence for item in measurements))
    return CircuitNode.of(
        name,
        effect=effect,
        sign=(total > 0) - (total < 0),
        positions=state.positions.get(name),
        role=state.labels.get(name),
        role_measurements=measurements,
        inclusion=state.inclusion.get(name),
        evidence=tuple(dict.fromkeys(results)),
    )


def draw_figures(circuit: CircuitGraph, context: RunContext) -> Mapping[str, bytes]:
    """Return the figures of what was measured, as PNG by name."""
    figures: dict[str, bytes] = {}
    run = context.run
    for result_id in run.array_ids():
        values = run.load_arrays(result_id).get("values")
        metadata = run.array_metadata(result_id)
        if values is None or values.ndim != 2:
            continue  # not a layer × position grid
        positions = split_names(metadata.get("positions", ""))
        title = result_id.replace("-", ", ")
        figures[result_id] = draw_layer_position_heatmap(values, positions, title=title)
    for direction in ("denoising", "noising"):
        grid = _head_grid(context, f"nodes-{direction}")
        if grid is not None:
            title = f"head_out, {direction}"
            figures[f"head_out-{direction}"] = draw_layer_head_heatmap(grid, title=title)
    if circuit.evaluation.curve:
        figures["curve"] = draw_faithfulness_curve(circuit.evaluation.curve)
    if circuit.size:
        figures["circuit"] = draw_circuit(circuit)
    return figures


def _head_grid(context: RunContext, result_id: str) -> np.ndarray | None:
    """Return the effects of single heads, [layer head]; None if the run ended before them."""
    try:
        values = context.run.load_arrays(result_id)["values"]
        names = split_names(context.run.array_metadata(result_id)["nodes"])
    except StoreError:
        return None
    info = context.model.info
    grid = np.full((info.n_layers, info.n_heads), np.nan, dtype=np.float32)
    for name, value in zip(names, values, strict=True):
        node = Node.parse(name)
        if node.kind == "attention_head":
            grid[node.layer, node.head] = value
    return grid
