"""report.html: a run on one self-contained page.

The verdict and its reasons come first, then the evidence, the figures, the circuit, the journal,
the cost and the commands that repeat the run. The page loads nothing and runs nothing: the style is
inline, figures are embedded, and a content security policy forbids scripts. Everything that comes
from a task or a model is shown as text.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from discovery.graph import CircuitEdge, CircuitGraph, Effect
from discovery.graph.strict_json import dumps
from discovery.report.canvas import DPI
from discovery.report.formatting import (
    SHARED_EDGES,
    UNKNOWN_MARK,
    VERDICT_MEANINGS,
    format_bytes,
    format_duration,
    format_effect,
    format_number,
    format_role_measurement,
    format_title,
)
from discovery.report.markup import (
    Html,
    definition_list,
    element,
    escape_text,
    join,
    table,
    void_element,
)
from discovery.report.stylesheet import CSS
from discovery.report.tables import (
    conditions_table,
    curve_table,
    minimality_tables,
    node_label,
    render_feature_tables,
    splits_table,
    tests_table,
)

_FIRST_FIGURES = ("circuit", "curve")
_CAPTIONS = {
    "circuit": (
        "The circuit. Green moves the metric up; purple and dashed moves it down. The width of a "
        "line shows its effect."
    ),
    "curve": (
        "Faithfulness of the best circuit of each size. The band shows what counts as sufficient."
    ),
    "resid_pre": "Residual stream before each layer, by position: where the information is.",
    "attn_out": "Output of each attention layer, by position.",
    "mlp_out": "Output of each MLP, by position.",
    "head_out": "Output of each attention head.",
}
_MAX_VALUE_LENGTH = 600  # characters of one value in the journal


def render_page(
    circuit: CircuitGraph, figures: Mapping[str, bytes], events: Sequence[Mapping[str, Any]]
) -> str:
    """Return the page of a run.

    Args:
        circuit: the record.
        figures: the figures as PNG, by name, as in the folder figures/ of the run.
        events: the journal, as in events.jsonl.
    """
    heading = format_title(circuit)
    sections = [
        _render_verdict(circuit),
        _render_facts(circuit),
        _render_evidence(circuit),
        _render_figures(figures),
        _render_circuit(circuit),
        _render_journal(events),
        _render_cost(circuit),
        _render_commands(circuit),
    ]
    main = element("main", *sections, id="main")
    head = join(
        [
            void_element("meta", charset="utf-8"),
            void_element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            void_element(
                "meta",
                http_equiv="Content-Security-Policy",
                content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
            ),
            element(
                "title", f"{heading}: {VERDICT_MEANINGS[circuit.verdict].word} · Circuit Scout"
            ),
            element("style", Html(CSS)),
        ]
    )
    top = element("header", element("p", "Circuit Scout", class_="soft"), element("h1", heading))
    body = element(
        "body", element("a", "Skip to the verdict", class_="skip", href="#main"), top, main
    )
    return f"<!DOCTYPE html>\n{element('html', element('head', head), body, lang='en')}\n"


def _section(heading: str, *content: object) -> Html:
    return element("section", element("h2", heading), *content)


def _render_verdict(circuit: CircuitGraph) -> Html:
    meaning = VERDICT_MEANINGS[circuit.verdict]
    reasons: object = ""
    if circuit.reasons:
        reasons = element("ul", *(element("li", reason) for reason in circuit.reasons))
    word = element("p", f"{meaning.mark} {meaning.word}", class_="word")
    return element(
        "section",
        word,
        element("p", meaning.sense),
        reasons,
        class_=f"verdict {meaning.tone}",
        aria_label="Verdict",
    )


def _render_facts(circuit: CircuitGraph) -> Html:
    task = circuit.task
    model = circuit.model
    split = None
    if task.n_discovery is not None:
        split = f"{task.n_discovery} to find it, {task.n_heldout} to test it"
    covers_mlps = circuit.evaluation.universe == "all"
    shape = None
    if model.n_layers is not None:
        shape = f"{model.n_layers} layers of {model.n_heads} heads"
        if model.shares_key_values:
            shape += f", which share {model.n_kv_heads} key-value heads"
    names = ", ".join(node.label for node in circuit.members)
    return definition_list(
        [
            ("circuit", f"{circuit.size} nodes: {names}" if names else "no nodes"),
            ("metric", task.metric and task.metric.replace("_", " ")),
            ("prompt pairs", split),
            ("model", shape),
            (
                "what could be ablated",
                "every head and MLP" if covers_mlps else "heads only, MLPs kept",
            ),
            ("features beside it", ", ".join(node.label for node in circuit.features) or None),
            ("circuits that used the held-out pairs", circuit.evaluation.heldout_looks),
        ]
    )


def _render_evidence(circuit: CircuitGraph) -> Html:
    evaluation = circuit.evaluation
    tables = join([minimality_tables(evaluation), curve_table(evaluation), tests_table(evaluation)])
    details = Html()
    if tables:
        details = element("details", element("summary", "Node by node, and every test"), tables)
    note = element(
        "p",
        "f is 1 for the whole model and 0 with everything ablated. "
        f"{UNKNOWN_MARK} means not measured.",
        class_="soft",
    )
    return _section(
        "Evidence", conditions_table(evaluation), note, splits_table(evaluation), details
    )


def _render_figures(figures: Mapping[str, bytes]) -> Html:
    first = [name for name in _FIRST_FIGURES if name in figures]
    others = sorted(set(figures) - set(_FIRST_FIGURES))
    if not figures:
        return Html()
    return _section("Figures", *(_render_figure(name, figures[name]) for name in [*first, *others]))


def _render_figure(name: str, png: bytes) -> Html:
    kinds = [kind for kind in _CAPTIONS if name.startswith(kind)]
    caption = _CAPTIONS[max(kinds, key=len)] if kinds else name.replace("_", " ")
    data = base64.b64encode(png).decode("ascii")
    alt = f"{name}: {caption} The numbers are in the tables and in arrays/ of the run."
    width = (
        int.from_bytes(png[16:20], "big") * 96 // DPI
    )  # the width in the PNG header, in CSS pixels
    image = void_element("img", src=f"data:image/png;base64,{data}", alt=alt, width=width)
    return element("figure", image, element("figcaption", element("b", name), " ", caption))


def _render_circuit(circuit: CircuitGraph) -> Html:
    return _section(
        "Circuit",
        _nodes_table(circuit),
        _roles_table(circuit),
        render_feature_tables(circuit),
        _edges_table(circuit),
    )


def _nodes_table(circuit: CircuitGraph) -> Html:
    signs = {1: "▲ up", -1: "▼ down", 0: "neither", None: UNKNOWN_MARK}
    rows = [
        [
            node.label,
            node.kind.replace("_", " "),
            node.role or UNKNOWN_MARK,
            signs[node.sign],
            format_effect(node.effect.denoising if node.effect else None),
            format_effect(node.effect.noising if node.effect else None),
            ", ".join(map(str, node.positions or ())) or UNKNOWN_MARK,
            ", ".join(node.evidence) or UNKNOWN_MARK,
        ]
        for node in circuit.nodes
        if node.kind in ("attention_head", "mlp")
    ]
    if not rows:
        return element("p", "The record has no nodes.")
    head = "node|kind|role|moves the metric|denoising|noising|positions|evidence".split("|")
    return table("Nodes, with their share of the clean − corrupted difference", head, rows)


def _roles_table(circuit: CircuitGraph) -> Html:
    """Return what the roles rest on; the text is empty if no node has one."""
    rows = [
        [node.label, *format_role_measurement(item), item.evidence]
        for node in circuit.nodes
        for item in node.role_measurements
    ]
    if not rows:
        return join([])
    head = "node|role|measured|value|by chance|p|evidence".split("|")
    return table("What the roles rest on", head, rows)


def _edges_table(circuit: CircuitGraph) -> Html:
    rows = []
    for edge in circuit.edges:
        effects = _edge_effects(edge).items()
        by_input = join((f"{slot}: {format_effect(effect)}" for slot, effect in effects), "; ")
        rows.append(
            [
                f"{node_label(edge.source)} → {node_label(edge.target)}",
                format_effect(edge.effect),
                by_input or UNKNOWN_MARK,
                ", ".join(edge.evidence) or UNKNOWN_MARK,
            ]
        )
    if not rows:
        return element("p", "No edges were measured.")
    edges = table("Edges", ["edge", "effect", "by input", "evidence"], rows)
    if not circuit.model.shares_key_values:
        return edges
    return join([edges, element("p", SHARED_EDGES, class_="soft")])


def _edge_effects(edge: CircuitEdge) -> dict[str, Effect | None]:
    """Return the effect of an edge through each input.

    For an edge into a feature, this includes how far it moves the activation of the feature.
    """
    effects: dict[str, Effect | None] = {str(slot): value for slot, value in edge.inputs.items()}
    if edge.activation:
        effects["of the feature's change"] = edge.activation
    return effects


def _render_journal(events: Sequence[Mapping[str, Any]]) -> Html:
    if not events:
        return Html()
    rows = [
        [event.get("index", index), event.get("time", UNKNOWN_MARK), _render_event(event)]
        for index, event in enumerate(events)
    ]
    summary = element("summary", f"{len(events)} events")
    journal = table("What was done, and why", ["", "time", "event"], rows)
    return _section("Journal", element("details", summary, journal))


def _render_event(event: Mapping[str, Any]) -> Html:
    return join(
        element("div", element("b", name), ": ", _shorten_value(value))
        for name, value in event.items()
        if name not in ("index", "time")
    )


def _shorten_value(value: object) -> Html:
    text = value if isinstance(value, str) else dumps(value)
    if len(text) > _MAX_VALUE_LENGTH:
        text = f"{text[:_MAX_VALUE_LENGTH]}… ({len(text)} letters)"
    return escape_text(text)


def _render_cost(circuit: CircuitGraph) -> Html:
    cost = circuit.cost
    provenance = circuit.provenance
    model = circuit.model
    versions = sorted(provenance.versions.items())
    work = None
    if cost.forward_equivalents is not None:
        work = f"{format_number(cost.forward_equivalents, 1)} forward-pass equivalents"
    pairs = [
        ("work", work),
        ("time", format_duration(cost.seconds)),
        ("peak memory", format_bytes(cost.peak_memory_bytes)),
        ("created", provenance.created),
        ("seed", provenance.seed),
        ("device", provenance.device),
        ("backend", " ".join(word for word in (model.backend, model.dtype) if word) or None),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions) or None),
        ("quantisation", model.quantisation),
        ("weights, sha256", model.fingerprint and element("code", model.fingerprint)),
        ("pairs, sha256", circuit.task.fingerprint and element("code", circuit.task.fingerprint)),
    ]
    return _section("Cost and provenance", definition_list(pairs))


def _render_commands(circuit: CircuitGraph) -> Html:
    run_id = circuit.run_id or "ID"
    commands = [
        circuit.provenance.command,
        f"circuit-scout runs verify {run_id}",
        f"circuit-scout runs export {run_id} --format graphml",
    ]
    note = (
        "The command `discover` makes the run again. The command `verify` measures this circuit "
        "again and compares."
    )
    code = element("code", "\n".join(command for command in commands if command))
    return _section("Repeat the run", element("p", note), element("pre", code, tabindex=0))
