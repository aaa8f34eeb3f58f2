"""What a run found, for a person at a terminal: the verdict and why, the nodes, the evidence, the cost, what to do next.

The words and number formats are the report's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from discovery.cli.console import columns
from discovery.cli.suggested_commands import runs_command
from discovery.graph import CONDITIONS, EVIDENCE_ABLATIONS, CircuitGraph, Dictionary, SplitEvaluation
from discovery.report import formatting
from discovery.sites import Node

_EDGES, _SLIGHT = 12, 0.01  # so many edges are shown, and none below this effect; the rest is counted


def describe(circuit: CircuitGraph, folder: Path | None = None) -> str:
    """A record as text.

    Args:
        circuit: the record.
        folder: its run's.
    """
    found = (_nodes(circuit), features(circuit), _edges(circuit), _evidence(circuit))
    parts = (_verdict(circuit), *found, _cost(circuit), _next(circuit, folder))
    return "\n\n".join(part for part in parts if part)


def _verdict(circuit: CircuitGraph) -> str:
    task, model, meaning = circuit.task, circuit.model, formatting.VERDICTS[circuit.verdict]
    lines = [f"{task.name or 'A task'} in {model.name or 'a model'}: {circuit.verdict or 'not evaluated'}", f"  {meaning.sense}"]
    lines += [f"  - {reason}" for reason in circuit.reasons]
    return "\n".join(lines)


def _nodes(circuit: CircuitGraph) -> str:
    members = [node for node in circuit.nodes if node.kind in ("attention_head", "mlp")]
    if not members:
        return ""
    effects = [node.effect for node in members]
    cells = [
        (
            node.label,
            formatting.effect(effect.denoising if effect else None),
            formatting.effect(effect.noising if effect else None),
            node.role or "",
            ", ".join(map(str, node.positions or ())),
        )
        for node, effect in zip(members, effects, strict=True)
    ]
    size = f"The circuit has {circuit.size} {'nodes' if circuit.size > 1 else 'node'}; effects are shares of m(clean) − m(corrupted):"
    return f"{size}\n{columns([('node', 'denoising', 'noising', 'role', 'at'), *cells])}"


def features(circuit: CircuitGraph) -> str:
    """The features beside the circuit, by dictionary; nothing where there is none."""
    return "\n".join(line for known in circuit.dictionaries for line in _dictionary(circuit, known))


def _dictionary(circuit: CircuitGraph, known: Dictionary) -> Iterable[str]:
    nodes = [node for node in circuit.nodes if node.feature and (node.layer, node.feature.site) == (known.layer, known.site)]
    yield f"Features of {known.sae} beside the circuit:"
    yield from (f"  - {warning}" for warning in known.warnings)
    explained, left = formatting.share(known.variance_explained), formatting.number(known.share)
    yield f"  {explained} of the variance explained, L0 {formatting.number(known.l0, 1)}; spliced in it leaves {left} of the metric"
    yield f"  {len(nodes)} of {len(known.candidates)} candidates hold; they enter no verdict"
    rows = [
        (
            node.label,
            formatting.effect(node.effect.noising if node.effect else None),
            f"fires on {_quoted(node.feature.fires_on)}",
            f"promotes {_quoted(node.feature.promotes)}",
            f"from {_labels(edge.source for edge in circuit.edges if edge.target == node.id)}",
            f"to {_labels(edge.target for edge in circuit.edges if edge.source == node.id)}",
        )
        for node in nodes
        if node.feature
    ]
    if rows:
        yield columns([("feature", "noising", "", "", "", ""), *rows])


def _labels(nodes: Iterable[str]) -> str:
    return " ".join(Node.parse(node).label for node in nodes) or formatting.UNKNOWN


def _quoted(tokens: Iterable[str]) -> str:
    return " ".join(repr(token) for token in tokens) or formatting.UNKNOWN


def _edges(circuit: CircuitGraph) -> str:
    measured = [(abs(edge.effect.mean), edge) for edge in circuit.edges if edge.effect and edge.effect.mean is not None]
    if not measured:
        return ""
    ranked = sorted(measured, key=lambda pair: -pair[0])
    strongest = [edge for size, edge in ranked[:_EDGES] if size >= _SLIGHT]
    rows = [
        (f"{Node.parse(edge.source).label} → {Node.parse(edge.target).label}", formatting.effect(edge.effect), " ".join(edge.inputs))
        for edge in strongest
    ]
    rest = len(measured) - len(strongest)
    more = [f"  and {rest} {'that are weaker' if rows else f'below {_SLIGHT}'}"] if rest else []
    table = [columns(rows)] if rows else []
    return "\n".join(["Edges, the strongest first:", *table, *more, *_shared(circuit)])


def _shared(circuit: CircuitGraph) -> list[str]:
    """What an edge into k or v means if heads share them."""
    return [f"  {formatting.SHARED_EDGES}"] if circuit.model.shares_key_values else []


def _evidence(circuit: CircuitGraph) -> str:
    evaluation = circuit.evaluation
    split, name = (evaluation.heldout, "held-out") if evaluation.heldout else (evaluation.discovery, "discovery")
    if split is None:
        return ""
    behaviour = (
        f"On {split.n} {name} pairs: accuracy {formatting.share(split.accuracy)}, "
        f"metric {formatting.number(split.metric_clean)} clean and {formatting.number(split.metric_corrupted)} corrupted."
    )
    return "\n".join([behaviour, *_scores(split), *_conditions(circuit)])


def _scores(split: SplitEvaluation) -> Iterable[str]:
    found = [(name, split.ablations.under(name)) for name in EVIDENCE_ABLATIONS]
    rows = [(name, formatting.score(part.faithfulness), formatting.score(part.knockout)) for name, part in found if part]
    if rows:
        yield columns([("ablation", "f(C): circuit alone", "f(U∖C): circuit ablated"), *rows])


def _conditions(circuit: CircuitGraph) -> Iterable[str]:
    outcomes = {name: circuit.evaluation.conditions.of(name) for name in CONDITIONS}
    if any(outcome.under(ablation) != "not_run" for outcome in outcomes.values() for ablation in EVIDENCE_ABLATIONS):
        told = (
            (f"({name}) {formatting.CONDITIONS[name][0]}", *(formatting.OUTCOMES[outcome.under(a)].word for a in EVIDENCE_ABLATIONS))
            for name, outcome in outcomes.items()
        )
        yield columns([("condition", *EVIDENCE_ABLATIONS), *told])


def _cost(circuit: CircuitGraph) -> str:
    cost = circuit.cost
    work = None if cost.forward_equivalents is None else f"{cost.forward_equivalents:,.0f} forward-pass equivalents"
    memory = formatting.bytes_size(cost.peak_memory_bytes)
    told = [part for part in (work, formatting.duration(cost.seconds), memory and f"peak memory {memory}") if part]
    return f"Cost: {', '.join(told)}" if told else ""


def _next(circuit: CircuitGraph, folder: Path | None) -> str:
    if folder is None:
        return ""
    run_id, place = folder.name, folder.parent
    report = [("report", str(folder / "report.html"))] if (folder / "report.html").exists() else []
    return columns(
        [
            ("run", str(folder)),
            *report,
            ("again", runs_command("show", run_id, place)),
            ("check", runs_command("verify", run_id, place)),
            ("graph", runs_command("export", run_id, place, "--format", "mermaid")),
        ],
        indent=0,
    )
