"""The tables of evidence: conditions with their numbers, splits, minimality, the curve, the tests.

Features beside the circuit, and the dictionaries that they are from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from discovery.graph import (
    CONDITION_MEANINGS,
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    AblationEvidence,
    CircuitGraph,
    CircuitNode,
    Condition,
    Control,
    Evaluation,
    EvidenceAblation,
    SAEFacts,
    SplitEvaluation,
)
from discovery.graph.strict_json import dumps
from discovery.report.formatting import (
    UNKNOWN_MARK,
    format_effect,
    format_number,
    format_outcome,
    format_p_value,
    format_score,
    format_share,
)
from discovery.report.markup import Html, element, join, table
from discovery.sites import Node


def conditions_table(evaluation: Evaluation) -> Html:
    """(a) to (f) under each ablation: outcome, then the held-out numbers behind it."""
    rows = []
    for name in CONDITIONS:
        meaning = CONDITION_MEANINGS[name]
        cells = [_condition_cell(evaluation, name, ablation) for ablation in EVIDENCE_ABLATIONS]
        bounds = _format_bounds(evaluation, name)
        explanation = f"{meaning.explanation} ({bounds})" if bounds else meaning.explanation
        title = join([f"({name}) {meaning.name}", element("div", explanation, class_="soft")])
        rows.append([title, *cells])
    head = ["condition", *(f"{ablation} ablation" for ablation in EVIDENCE_ABLATIONS)]
    return table("Conditions, on held-out pairs, with 95% intervals", head, rows)


def splits_table(evaluation: Evaluation) -> Html:
    """What the model does on each split, and where the ablations start from."""
    rows = [
        _split_row(name, split)
        for name, split in (("discovery", evaluation.discovery), ("held-out", evaluation.heldout))
        if split
    ]
    head = [
        "pairs",
        "n",
        "metric, clean",
        "metric, corrupted",
        "accuracy",
        "top-1",
        "all ablated (resample / mean)",
        "f(C) (resample / mean)",
    ]
    return table("The behaviour on both splits", head, rows)


def minimality_tables(evaluation: Evaluation) -> Html:
    """Condition d node by node, a table for each ablation that was tried."""
    tables = []
    for ablation in EVIDENCE_ABLATIONS:
        found = _heldout_evidence(evaluation, ablation)
        if found and found.minimality:
            rows = [
                [
                    node_label(row.node),
                    " ".join(map(node_label, row.context)) or "∅",
                    format_number(row.drop, 3),
                    format_p_value(row.p),
                    format_p_value(row.p_holm),
                ]
                for row in sorted(found.minimality, key=lambda row: row.drop or 0.0)
            ]
            tables.append(
                table(
                    f"Minimality under {ablation} ablation, the least needed first",
                    ["node", "taken out with", "drop", "p", "Holm p"],
                    rows,
                )
            )
    return join(tables)


def curve_table(evaluation: Evaluation) -> Html:
    """The numbers of the faithfulness curve."""
    rows = [
        [
            point.size,
            point.ablation,
            format_number(point.faithfulness),
            " ".join(map(node_label, point.nodes)),
        ]
        for point in evaluation.curve
    ]
    return (
        table("Faithfulness against size", ["size", "ablation", "f", "nodes"], rows)
        if rows
        else Html()
    )


def tests_table(evaluation: Evaluation) -> Html:
    """Every test by name, with what it was given and gave."""
    rows = [[name, element("code", dumps(value))] for name, value in evaluation.tests.items()]
    return table("Tests and their numbers", ["test", "numbers"], rows) if rows else Html()


def node_label(node_id: str) -> str:
    """A node as people write it."""
    return Node.parse(node_id).label


def _heldout_evidence(
    evaluation: Evaluation, ablation: EvidenceAblation
) -> AblationEvidence | None:
    return evaluation.heldout.ablations.under(ablation) if evaluation.heldout else None


def _condition_cell(evaluation: Evaluation, name: Condition, ablation: EvidenceAblation) -> Html:
    found = _heldout_evidence(evaluation, ablation)
    says = (
        _FORMATTERS[name](found)
        if found and name in _FORMATTERS
        else _format_stability(evaluation)
        if name == "f"
        else ""
    )
    return join(
        [format_outcome(evaluation.conditions.of(name).under(ablation)), element("div", says)]
    )


def _format_bounds(evaluation: Evaluation, name: Condition) -> str:
    """The thresholds recorded under the condition's letter: ``a_faithfulness`` is (a)'s."""
    own = {key: bound for key, bound in evaluation.thresholds.items() if key.split("_")[0] == name}
    return ", ".join(
        f"{key[2:].replace('_', ' ')} {dumps(bound)}".strip() for key, bound in own.items()
    )


def _format_stability(evaluation: Evaluation) -> str:
    """Condition f belongs to the selection, not to an ablation; its number stands among the tests."""
    match evaluation.tests.get("stability"):
        case {"mean_jaccard": int() | float() as jaccard, **more}:
            bound = (
                f"{'at least' if evaluation.conditions.f.resample == 'holds' else 'at most'} "
                if more.get("cut_searches")
                else ""
            )
            return f"mean Jaccard {bound}{format_number(jaccard)} with the sets that resampled pairs select"
        case {"resamples": int() as made, "cut_searches": int() as cut}:
            return f"not known: {cut} of {made} repeated searches ended where their share of the work was spent"
    return ""


def _format_completeness(found: AblationEvidence) -> str:
    gaps = found.completeness
    if gaps is None:
        return ""
    inside = f"largest gap inside {format_number(gaps.max_gap_in)}" + (
        f" at {node_label(gaps.node_in)}" if gaps.node_in else ""
    )
    outside = f"outside {format_number(gaps.max_gap_out)}" + (
        f" at {node_label(gaps.node_out)}" if gaps.node_out else ""
    )
    return f"{inside}; {outside}"


def _format_minimality(found: AblationEvidence) -> str:
    drops = [row for row in found.minimality or () if row.drop is not None]
    if not drops:
        return ""
    least = min(drops, key=lambda row: row.drop or 0.0)
    return f"least needed: {node_label(least.node)}, drop {format_number(least.drop, 3)}, Holm p {format_p_value(least.p_holm)}"


def _format_controls(found: AblationEvidence) -> str:
    if found.random_controls is None:
        return ""
    return f"same size: {_format_control(found.random_controls.size)}; same layers: {_format_control(found.random_controls.layer)}"


def _format_control(control: Control | None) -> str:
    if control is None or control.n is None:
        return "no alternative"
    return f"{UNKNOWN_MARK if control.as_good is None else control.as_good} of {control.n} as good, p {format_p_value(control.p)}"


_FORMATTERS: Mapping[Condition, Callable[[AblationEvidence], str]] = {
    "a": lambda found: f"f(C) = {format_score(found.faithfulness)}",
    "b": lambda found: f"f(U∖C) = {format_score(found.knockout)}",
    "c": _format_completeness,
    "d": _format_minimality,
    "e": _format_controls,
}


def _split_row(name: str, split: SplitEvaluation) -> list[object]:
    both = [split.ablations.under(ablation) for ablation in EVIDENCE_ABLATIONS]
    empty = " / ".join(
        UNKNOWN_MARK if found is None else format_number(found.metric_empty) for found in both
    )
    faith = " / ".join(
        UNKNOWN_MARK if found is None else format_score(found.faithfulness) for found in both
    )
    return [
        name,
        split.n,
        format_number(split.metric_clean),
        format_number(split.metric_corrupted),
        format_share(split.accuracy),
        format_share(split.top1),
        empty,
        faith,
    ]


_FEATURE_COLUMNS = [
    "feature",
    "fires on",
    "promotes",
    "suppresses",
    "noising",
    "denoising",
    "set to 0",
    "control p",
    "page",
]


def render_feature_tables(circuit: CircuitGraph) -> Html:
    """Render one table for each SAE whose features stand beside the circuit."""
    return join([_sae_table(circuit, sae) for sae in circuit.dictionaries])


def _sae_table(circuit: CircuitGraph, sae: SAEFacts) -> Html:
    nodes = [
        node
        for node in circuit.nodes
        if node.feature and (node.layer, node.feature.site) == (sae.layer, sae.site)
    ]
    holding = {node.id for node in nodes}
    rejected = [node_label(name) for name in sae.candidates if name not in holding]
    summary = (
        f"{len(sae.candidates)} candidates, found on {sae.found_on} pairs and verified on "
        f"{sae.verified_on}; {format_share(sae.variance_explained)} of the variance explained, "
        f"{format_number(sae.l0, 1)} features at a position, {format_number(sae.share)} of the "
        "metric left by the reconstruction."
    )
    caption = f"Features of {sae.sae} ({sae.site} of layer {sae.layer})"
    rows = [_feature_row(node) for node in nodes]
    parts = [element("p", warning) for warning in sae.warnings]
    parts.append(
        table(caption, _FEATURE_COLUMNS, rows) if rows else element("p", f"{caption}: none holds.")
    )
    parts.append(element("p", summary, class_="soft"))
    parts.append(element("p", sae.note or "", class_="soft"))
    if rejected:
        parts.append(element("p", f"Did not hold: {', '.join(rejected)}.", class_="soft"))
    return join(parts)


def _feature_row(node: CircuitNode) -> list[object]:
    feature, effect = node.feature, node.effect
    assert feature is not None
    return [
        node.label,
        " ".join(feature.fires_on) or UNKNOWN_MARK,
        " ".join(feature.promotes) or UNKNOWN_MARK,
        " ".join(feature.suppresses) or UNKNOWN_MARK,
        format_effect(effect.noising if effect else None),
        format_effect(effect.denoising if effect else None),
        format_effect(feature.removal),
        format_p_value(feature.control_p),
        feature.link or UNKNOWN_MARK,
    ]
