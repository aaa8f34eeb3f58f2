"""report.html: a run on one self-contained page, for a person who was not there.

The verdict and its reasons come first, then the numbers they rest on, the circuit, the journal, the cost and
how to do it again. Nothing is fetched and nothing runs: the style is inline, figures are embedded, and a
content policy forbids scripts. Everything that came from a task or a model is shown as text.
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
    "circuit": "The circuit. Green moves the metric up, purple and dashed moves it down; a line is as thick as its effect.",
    "curve": "Faithfulness of the best circuit of each size, against the band that counts as sufficient.",
    "resid_pre": "Residual stream before each layer, by position: where the information is.",
    "attn_out": "Output of each attention layer, by position.",
    "mlp_out": "Output of each MLP, by position.",
    "head_out": "Output of each attention head.",
}
_MAX_VALUE_LENGTH = 600  # letters of one value in the journal


def render_page(
    circuit: CircuitGraph, figures: Mapping[str, bytes], events: Sequence[Mapping[str, Any]]
) -> str:
    """The page.

    Args:
        circuit: the record.
        figures: PNG by name, as in the run's figures/.
        events: the journal, as in events.jsonl.
    """
    heading = f"{circuit.task.name or 'A task'} in {circuit.model.name or 'a model'}"
    main = element(
        "main",
        *(
            _verdict(circuit),
            _facts(circuit),
            _evidence(circuit),
            _figures(figures),
            _circuit(circuit),
        ),
        *(_journal(events), _cost(circuit), _render_commands(circuit)),
        id="main",
    )
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


def _verdict(circuit: CircuitGraph) -> Html:
    meaning = VERDICT_MEANINGS[circuit.verdict]
    reasons = (
        element("ul", *(element("li", reason) for reason in circuit.reasons))
        if circuit.reasons
        else ""
    )
    word = element("p", f"{meaning.mark} {meaning.word}", class_="word")
    return element(
        "section",
        word,
        element("p", meaning.sense),
        reasons,
        class_=f"verdict {meaning.tone}",
        aria_label="Verdict",
    )


def _facts(circuit: CircuitGraph) -> Html:
    task, model, looks = circuit.task, circuit.model, circuit.evaluation.heldout_looks
    split = (
        f"{task.n_discovery} to find it, {task.n_heldout} to judge it"
        if task.n_discovery is not None
        else None
    )
    universe = (
        "every head and MLP" if circuit.evaluation.universe == "all" else "heads only, MLPs kept"
    )
    shape = (
        f"{model.n_layers} layers of {model.n_heads} heads" if model.n_layers is not None else None
    )
    if shape and model.shares_key_values:
        shape += f", which share {model.n_kv_heads} key-value heads"
    names = ", ".join(node.label for node in circuit.members)
    return definition_list(
        [
            ("circuit", f"{circuit.size} nodes: {names}" if names else "no nodes"),
            ("metric", task.metric and task.metric.replace("_", " ")),
            ("prompt pairs", split),
            ("model", shape),
            ("what could be ablated", universe),
            ("features beside it", ", ".join(node.label for node in circuit.features) or None),
            ("circuits that looked at the held-out pairs", looks),
        ]
    )


def _evidence(circuit: CircuitGraph) -> Html:
    evaluation = circuit.evaluation
    more = join([minimality_tables(evaluation), curve_table(evaluation), tests_table(evaluation)])
    details = (
        element("details", element("summary", "Node by node, and every test"), more)
        if more
        else Html()
    )
    note = element(
        "p",
        f"f is 1 for the whole model and 0 with everything ablated. {UNKNOWN_MARK} means not measured.",
        class_="soft",
    )
    return _section(
        "Evidence", conditions_table(evaluation), note, splits_table(evaluation), details
    )


def _figures(figures: Mapping[str, bytes]) -> Html:
    order = sorted(
        figures,
        key=lambda name: (
            _FIRST_FIGURES.index(name) if name in _FIRST_FIGURES else len(_FIRST_FIGURES),
            name,
        ),
    )
    return (
        _section("Figures", *(_figure(name, figures[name]) for name in order)) if order else Html()
    )


def _figure(name: str, png: bytes) -> Html:
    kind = next(
        (kind for kind in sorted(_CAPTIONS, key=len, reverse=True) if name.startswith(kind)), None
    )
    caption = _CAPTIONS[kind] if kind else name.replace("_", " ")
    data = base64.b64encode(png).decode("ascii")
    alt = f"{name}: {caption} The numbers are in the tables and in arrays/ of the run."
    width = int.from_bytes(png[16:20], "big") * 96 // DPI  # the PNG header's, in CSS pixels
    image = void_element("img", src=f"data:image/png;base64,{data}", alt=alt, width=width)
    return element("figure", image, element("figcaption", element("b", name), " ", caption))


def _circuit(circuit: CircuitGraph) -> Html:
    signs = {1: "▲ up", -1: "▼ down", 0: "neither", None: UNKNOWN_MARK}
    nodes = [
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
    edges = [
        [
            f"{node_label(edge.source)} → {node_label(edge.target)}",
            format_effect(edge.effect),
            join(
                (f"{slot}: {format_effect(value)}" for slot, value in _edge_effects(edge).items()),
                "; ",
            )
            or UNKNOWN_MARK,
            ", ".join(edge.evidence) or UNKNOWN_MARK,
        ]
        for edge in circuit.edges
    ]
    shared = edges and circuit.model.shares_key_values
    head = [
        "node",
        "kind",
        "role",
        "moves the metric",
        "denoising",
        "noising",
        "positions",
        "evidence",
    ]
    return _section(
        "Circuit",
        table("Nodes, with their share of the clean − corrupted difference", head, nodes)
        if nodes
        else element("p", "The record has no nodes."),
        render_feature_tables(circuit),
        table("Edges", ["edge", "effect", "by input", "evidence"], edges)
        if edges
        else element("p", "No edges were measured."),
        element("p", SHARED_EDGES, class_="soft") if shared else Html(),
    )


def _edge_effects(edge: CircuitEdge) -> dict[str, Effect | None]:
    """An edge by input; into a feature, how far it moves the feature itself too."""
    told: dict[str, Effect | None] = {str(slot): value for slot, value in edge.inputs.items()}
    return {**told, "of the feature's change": edge.activation} if edge.activation else told


def _journal(events: Sequence[Mapping[str, Any]]) -> Html:
    if not events:
        return Html()
    rows = [
        [event.get("index", place), event.get("time", UNKNOWN_MARK), _render_event(event)]
        for place, event in enumerate(events)
    ]
    return _section(
        "Journal",
        element(
            "details",
            element("summary", f"{len(events)} events"),
            table("What was done, and why", ["", "time", "event"], rows),
        ),
    )


def _render_event(event: Mapping[str, Any]) -> Html:
    return join(
        element("div", element("b", name), ": ", _shorten_value(value))
        for name, value in event.items()
        if name not in ("index", "time")
    )


def _shorten_value(value: object) -> Html:
    words = value if isinstance(value, str) else dumps(value)
    return escape_text(
        words
        if len(words) <= _MAX_VALUE_LENGTH
        else f"{words[:_MAX_VALUE_LENGTH]}… ({len(words)} letters)"
    )


def _cost(circuit: CircuitGraph) -> Html:
    cost, made, model = circuit.cost, circuit.provenance, circuit.model
    versions = ", ".join(f"{name} {version}" for name, version in sorted(made.versions.items()))
    work = (
        f"{format_number(cost.forward_equivalents, 1)} forward-pass equivalents"
        if cost.forward_equivalents is not None
        else None
    )
    pairs = [
        ("work", work),
        ("time", format_duration(cost.seconds)),
        ("peak memory", format_bytes(cost.peak_memory_bytes)),
        ("created", made.created),
        ("seed", made.seed),
        ("device", made.device),
        ("backend", " ".join(word for word in (model.backend, model.dtype) if word) or None),
        ("versions", versions or None),
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
    return _section(
        "Do it again",
        element(
            "p",
            "The first command below that starts with discover makes the run anew; verify measures this circuit again and compares.",
        ),
        element(
            "pre",
            element("code", "\n".join(command for command in commands if command)),
            tabindex=0,
        ),
    )
