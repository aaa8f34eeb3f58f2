"""What a run found, for a person at a terminal: the verdict and why, the nodes, the evidence, the cost, what to do next.

The words and number formats are the report's.
"""

from __future__ import annotations

from collections.abc import Iterable
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

_MAX_EDGES, _MIN_EDGE_EFFECT = (
    12,
    0.01,
)  # so many edges are shown, and none below this effect; the rest is counted


def describe_circuit(circuit: CircuitGraph, folder: Path | None = None) -> str:
    """A record as text.

    Args:
        circuit: the record.
        folder: its run's.
    """
    found = (
        _describe_nodes(circuit),
        describe_features(circuit),
        _describe_edges(circuit),
        _describe_evidence(circuit),
    )
    parts = (
        _describe_verdict(circuit),
        *found,
        _describe_cost(circuit),
        _next_commands(circuit, folder),
    )
    return "\n\n".join(part for part in parts if part)


def _describe_verdict(circuit: CircuitGraph) -> str:
    task, model, meaning = circuit.task, circuit.model, formatting.VERDICT_MEANINGS[circuit.verdict]
    lines = [
        f"{task.name or 'A task'} in {model.name or 'a model'}: {circuit.verdict or 'not evaluated'}",
        f"  {meaning.sense}",
    ]
    lines += [f"  - {reason}" for reason in circuit.reasons]
    return "\n".join(lines)


def _describe_nodes(circuit: CircuitGraph) -> str:
    members = [node for node in circuit.nodes if node.kind in ("attention_head", "mlp")]
    if not members:
        return ""
    effects = [node.effect for node in members]
    cells = [
        (
            node.label,
            formatting.format_effect(effect.denoising if effect else None),
            formatting.format_effect(effect.noising if effect else None),
            node.role or "",
            ", ".join(map(str, node.positions or ())),
        )
        for node, effect in zip(members, effects, strict=True)
    ]
    size = f"The circuit has {circuit.size} {'nodes' if circuit.size > 1 else 'node'}; effects are shares of m(clean) − m(corrupted):"
    return f"{size}\n{format_columns([('node', 'denoising', 'noising', 'role', 'at'), *cells])}"


def describe_features(circuit: CircuitGraph) -> str:
    """The features beside the circuit, by dictionary; nothing where there is none."""
    return "\n".join(
        line for known in circuit.dictionaries for line in _describe_dictionary(circuit, known)
    )


def _describe_dictionary(circuit: CircuitGraph, known: SAEFacts) -> Iterable[str]:
    nodes = [
        node
        for node in circuit.nodes
        if node.feature and (node.layer, node.feature.site) == (known.layer, known.site)
    ]
    yield f"Features of {known.sae} beside the circuit:"
    yield from (f"  - {warning}" for warning in known.warnings)
    explained, left = (
        formatting.format_share(known.variance_explained),
        formatting.format_number(known.share),
    )
    yield f"  {explained} of the variance explained, L0 {formatting.format_number(known.l0, 1)}; spliced in it leaves {left} of the metric"
    yield f"  {len(nodes)} of {len(known.candidates)} candidates hold; they enter no verdict"
    rows = [
        (
            node.label,
            formatting.format_effect(node.effect.noising if node.effect else None),
            f"fires on {_join_quoted(node.feature.fires_on)}",
            f"promotes {_join_quoted(node.feature.promotes)}",
            f"from {_join_labels(edge.source for edge in circuit.edges if edge.target == node.id)}",
            f"to {_join_labels(edge.target for edge in circuit.edges if edge.source == node.id)}",
        )
        for node in nodes
        if node.feature
    ]
    if rows:
        yield format_columns([("feature", "noising", "", "", "", ""), *rows])


def _join_labels(nodes: Iterable[str]) -> str:
    return " ".join(Node.parse(node).label for node in nodes) or formatting.UNKNOWN_MARK


def _join_quoted(tokens: Iterable[str]) -> str:
    return " ".join(repr(token) for token in tokens) or formatting.UNKNOWN_MARK


def _describe_edges(circuit: CircuitGraph) -> str:
    measured = [
        (abs(edge.effect.mean), edge)
        for edge in circuit.edges
        if edge.effect and edge.effect.mean is not None
    ]
    if not measured:
        return ""
    ranked = sorted(measured, key=lambda pair: -pair[0])
    strongest = [edge for size, edge in ranked[:_MAX_EDGES] if size >= _MIN_EDGE_EFFECT]
    rows = [
        (
            f"{Node.parse(edge.source).label} → {Node.parse(edge.target).label}",
            formatting.format_effect(edge.effect),
            " ".join(edge.inputs),
        )
        for edge in strongest
    ]
    rest = len(measured) - len(strongest)
    more = (
        [f"  and {rest} {'that are weaker' if rows else f'below {_MIN_EDGE_EFFECT}'}"]
        if rest
        else []
    )
    table = [format_columns(rows)] if rows else []
    return "\n".join(["Edges, the strongest first:", *table, *more, *_add_shared_flags(circuit)])


def _add_shared_flags(circuit: CircuitGraph) -> list[str]:
    """What an edge into k or v means if heads share them."""
    return [f"  {formatting.SHARED_EDGES}"] if circuit.model.shares_key_values else []


def _describe_evidence(circuit: CircuitGraph) -> str:
    evaluation = circuit.evaluation
    split, name = (
        (evaluation.heldout, "held-out")
        if evaluation.heldout
        else (evaluation.discovery, "discovery")
    )
    if split is None:
        return ""
    behaviour = (
        f"On {split.n} {name} pairs: accuracy {formatting.format_share(split.accuracy)}, "
        f"metric {formatting.format_number(split.metric_clean)} clean and {formatting.format_number(split.metric_corrupted)} corrupted."
    )
    return "\n".join([behaviour, *_describe_scores(split), *_describe_conditions(circuit)])


def _describe_scores(split: SplitEvaluation) -> Iterable[str]:
    found = [(name, split.ablations.under(name)) for name in EVIDENCE_ABLATIONS]
    rows = [
        (name, formatting.format_score(part.faithfulness), formatting.format_score(part.knockout))
        for name, part in found
        if part
    ]
    if rows:
        yield format_columns(
            [("ablation", "f(C): circuit alone", "f(U∖C): circuit ablated"), *rows]
        )


def _describe_conditions(circuit: CircuitGraph) -> Iterable[str]:
    outcomes = {name: circuit.evaluation.conditions.of(name) for name in CONDITIONS}
    if any(
        outcome.under(ablation) != "not_run"
        for outcome in outcomes.values()
        for ablation in EVIDENCE_ABLATIONS
    ):
        told = (
            (
                f"({name}) {CONDITION_MEANINGS[name].name}",
                *(formatting.OUTCOME_MEANINGS[outcome.under(a)].word for a in EVIDENCE_ABLATIONS),
            )
            for name, outcome in outcomes.items()
        )
        yield format_columns([("condition", *EVIDENCE_ABLATIONS), *told])


def _describe_cost(circuit: CircuitGraph) -> str:
    cost = circuit.cost
    work = (
        None
        if cost.forward_equivalents is None
        else f"{cost.forward_equivalents:,.0f} forward-pass equivalents"
    )
    memory = formatting.format_bytes(cost.peak_memory_bytes)
    told = [
        part
        for part in (
            work,
            formatting.format_duration(cost.seconds),
            memory and f"peak memory {memory}",
        )
        if part
    ]
    return f"Cost: {', '.join(told)}" if told else ""


def _next_commands(circuit: CircuitGraph, folder: Path | None) -> str:
    if folder is None:
        return ""
    run_id, place = folder.name, folder.parent
    report = [("report", str(folder / "report.html"))] if (folder / "report.html").exists() else []
    return format_columns(
        [
            ("run", str(folder)),
            *report,
            ("again", format_runs_command("show", run_id, place)),
            ("check", format_runs_command("verify", run_id, place)),
            ("graph", format_runs_command("export", run_id, place, "--format", "mermaid")),
        ],
        indent=0,
    )
