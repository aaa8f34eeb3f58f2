"""The summary of a run for a person at a terminal.

It gives the verdict and its reasons, the nodes, the edges, the evidence, the cost, and the commands
to continue with. The words and the formats of numbers are those of the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from discovery.cli.console import format_columns
from discovery.cli.suggested_commands import format_runs_command
from discovery.graph import (
    CONDITION_MEANINGS,
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    CircuitGraph,
    SAEFacts,
    SplitEvaluation,
)
from discovery.report import formatting
from discovery.sites import Node

_MAX_EDGES = 12
"""How many edges are shown. The others are counted."""

_MIN_EDGE_EFFECT = 0.01
"""The smallest effect of an edge that is shown. The others are counted."""


def describe_circuit(circuit: CircuitGraph, folder: Path | None = None) -> str:
    """Return the summary of a record.

    Args:
        circuit: the record.
        folder: the folder of its run, if it has one.
    """
    parts = [
        _describe_verdict(circuit),
        _describe_nodes(circuit),
        _describe_roles(circuit),
        describe_features(circuit),
        _describe_edges(circuit),
        _describe_evidence(circuit),
        _describe_cost(circuit),
        _next_commands(folder),
    ]
    return "\n\n".join(part for part in parts if part)


def _describe_verdict(circuit: CircuitGraph) -> str:
    meaning = formatting.VERDICT_MEANINGS[circuit.verdict]
    title = formatting.format_title(circuit)
    lines = [f"{title}: {circuit.verdict or 'not evaluated'}", f"  {meaning.sense}"]
    lines += [f"  - {reason}" for reason in circuit.reasons]
    return "\n".join(lines)


def _describe_nodes(circuit: CircuitGraph) -> str:
    rows = [("node", "denoising", "noising", "role", "at")]
    for node in circuit.nodes:
        if node.kind in ("attention_head", "mlp"):
            denoising = formatting.format_effect(node.effect.denoising if node.effect else None)
            noising = formatting.format_effect(node.effect.noising if node.effect else None)
            positions = ", ".join(map(str, node.positions or ()))
            rows.append((node.label, denoising, noising, node.role or "", positions))
    if len(rows) == 1:
        return ""
    size = f"{circuit.size} {'nodes' if circuit.size > 1 else 'node'}"
    heading = f"The circuit has {size}; effects are shares of m(clean) − m(corrupted):"
    return f"{heading}\n{format_columns(rows)}"


def _describe_roles(circuit: CircuitGraph) -> str:
    """Return what the roles rest on; the text is empty if no node has one."""
    rows = [
        (node.label, *formatting.format_role_measurement(item))
        for node in circuit.nodes
        for item in node.role_measurements
    ]
    if not rows:
        return ""
    heading = "The roles rest on these measurements:"
    head = ("node", "role", "measured", "value", "by chance", "p")
    return f"{heading}\n{format_columns([head, *rows])}"


def describe_features(circuit: CircuitGraph) -> str:
    """Return the SAE features beside a circuit, by SAE. The text is empty if there are none."""
    return "\n".join(line for sae in circuit.dictionaries for line in _describe_sae(circuit, sae))


def _describe_sae(circuit: CircuitGraph, sae: SAEFacts) -> Iterator[str]:
    features = [
        (node, node.feature)
        for node in circuit.nodes
        if node.feature and (node.layer, node.feature.site) == (sae.layer, sae.site)
    ]
    yield f"Features of {sae.sae} beside the circuit:"
    yield from (f"  - {warning}" for warning in sae.warnings)
    explained = formatting.format_share(sae.variance_explained)
    sparsity = formatting.format_number(sae.l0, 1)
    share = formatting.format_number(sae.share)
    yield (
        f"  {explained} of the variance explained, L0 {sparsity}; "
        f"the reconstruction keeps {share} of the metric"
    )
    yield f"  {len(features)} of {len(sae.candidates)} candidates hold; they enter no verdict"
    rows = [("feature", "noising", "", "", "", "")]
    for node, feature in features:
        sources = (edge.source for edge in circuit.edges if edge.target == node.id)
        targets = (edge.target for edge in circuit.edges if edge.source == node.id)
        rows.append(
            (
                node.label,
                formatting.format_effect(node.effect.noising if node.effect else None),
                f"fires on {_join_quoted(feature.fires_on)}",
                f"promotes {_join_quoted(feature.promotes)}",
                f"from {_join_labels(sources)}",
                f"to {_join_labels(targets)}",
            )
        )
    if features:
        yield format_columns(rows)


def _join_labels(nodes: Iterable[str]) -> str:
    return " ".join(Node.parse(node).label for node in nodes) or formatting.UNKNOWN_MARK


def _join_quoted(tokens: Iterable[str]) -> str:
    return " ".join(repr(token) for token in tokens) or formatting.UNKNOWN_MARK


def _describe_edges(circuit: CircuitGraph) -> str:
    sizes = [
        (abs(edge.effect.mean), edge)
        for edge in circuit.edges
        if edge.effect and edge.effect.mean is not None
    ]
    if not sizes:
        return ""
    strongest = sorted(sizes, key=lambda pair: -pair[0])[:_MAX_EDGES]
    rows = [
        (
            f"{Node.parse(edge.source).label} → {Node.parse(edge.target).label}",
            formatting.format_effect(edge.effect),
            " ".join(edge.inputs),
        )
        for size, edge in strongest
        if size >= _MIN_EDGE_EFFECT
    ]
    lines = ["Edges, the strongest first:"]
    if rows:
        lines.append(format_columns(rows))
    hidden = len(sizes) - len(rows)
    if hidden:
        kind = "that are weaker" if rows else f"below {_MIN_EDGE_EFFECT}"
        lines.append(f"  and {hidden} {kind}")
    if circuit.model.shares_key_values:
        lines.append(f"  {formatting.SHARED_EDGES}")
    return "\n".join(lines)


def _describe_evidence(circuit: CircuitGraph) -> str:
    evaluation = circuit.evaluation
    split = evaluation.heldout or evaluation.discovery
    if split is None:
        return ""
    name = "held-out" if evaluation.heldout else "discovery"
    accuracy = formatting.format_share(split.accuracy)
    clean = formatting.format_number(split.metric_clean)
    corrupted = formatting.format_number(split.metric_corrupted)
    behaviour = (
        f"On {split.n} {name} pairs: accuracy {accuracy}, "
        f"metric {clean} clean and {corrupted} corrupted."
    )
    return "\n".join([behaviour, *_describe_scores(split), *_describe_conditions(circuit)])


def _describe_scores(split: SplitEvaluation) -> Iterator[str]:
    rows = [("ablation", "f(C): circuit alone", "f(U∖C): circuit ablated")]
    for ablation in EVIDENCE_ABLATIONS:
        evidence = split.ablations.under(ablation)
        if evidence:
            faithfulness = formatting.format_score(evidence.faithfulness)
            rows.append((ablation, faithfulness, formatting.format_score(evidence.knockout)))
    if len(rows) > 1:
        yield format_columns(rows)


def _describe_conditions(circuit: CircuitGraph) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("condition", *EVIDENCE_ABLATIONS)]
    was_run = False
    for name in CONDITIONS:
        conditions = circuit.evaluation.conditions
        outcomes = [conditions.under(name, ablation) for ablation in EVIDENCE_ABLATIONS]
        was_run = was_run or any(outcome != "not_run" for outcome in outcomes)
        words = [formatting.OUTCOME_MEANINGS[outcome].word for outcome in outcomes]
        if conditions.has_one_status(name):
            words = [f"{words[0]} (both)", ""]
        rows.append((f"({name}) {CONDITION_MEANINGS[name].name}", *words))
    if was_run:
        yield format_columns(rows)


def _describe_cost(circuit: CircuitGraph) -> str:
    cost = circuit.cost
    parts = []
    if cost.forward_equivalents is not None:
        parts.append(f"{cost.forward_equivalents:,.0f} forward-pass equivalents")
    if duration := formatting.format_duration(cost.seconds):
        parts.append(duration)
    if memory := formatting.format_bytes(cost.peak_memory_bytes):
        parts.append(f"peak memory {memory}")
    return f"Cost: {', '.join(parts)}" if parts else ""


def _next_commands(folder: Path | None) -> str:
    if folder is None:
        return ""
    run_id = folder.name
    runs_dir = folder.parent
    rows = [("run", str(folder))]
    if (folder / "report.html").exists():
        rows.append(("report", str(folder / "report.html")))
    rows += [
        ("again", format_runs_command("show", run_id, runs_dir)),
        ("check", format_runs_command("verify", run_id, runs_dir)),
        ("graph", format_runs_command("export", run_id, runs_dir, "--format", "mermaid")),
    ]
    return format_columns(rows, indent=0)
