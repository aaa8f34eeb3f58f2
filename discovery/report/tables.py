"""The tables of the page: the evidence for the verdict, and the SAE features beside the circuit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from discovery.graph import (
    CONDITION_MEANINGS,
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    AblationEvidence,
    CircuitGraph,
    CircuitNode,
    Completeness,
    Condition,
    Control,
    Evaluation,
    EvidenceAblation,
    MinimalityCheck,
    SAEFacts,
    Side,
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
    """Return the outcome of each condition under each ablation, with its held-out numbers."""
    rows = []
    for name in CONDITIONS:
        meaning = CONDITION_MEANINGS[name]
        cells = [_condition_cell(evaluation, name, ablation) for ablation in EVIDENCE_ABLATIONS]
        if evaluation.conditions.has_one_status(name):
            cells[1] = _one_status_note(evaluation, name)
        bounds = _format_bounds(evaluation, name)
        explanation = f"{meaning.explanation} ({bounds})" if bounds else meaning.explanation
        title = join([f"({name}) {meaning.name}", element("div", explanation, class_="soft")])
        rows.append([title, *cells])
    head = ["condition", *(f"{ablation} ablation" for ablation in EVIDENCE_ABLATIONS)]
    return table("Conditions, on held-out pairs, with 95% intervals", head, rows)


def splits_table(evaluation: Evaluation) -> Html:
    """Return what the model does on each split, and where the ablations start from."""
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
    """Return the numbers of condition (d) by node, with a table for each ablation."""
    tables = []
    for ablation in EVIDENCE_ABLATIONS:
        evidence = _heldout_evidence(evaluation, ablation)
        if evidence and evidence.minimality:
            rows = [
                [
                    node_label(row.node),
                    " ".join(map(node_label, row.context)) or "∅",
                    format_number(row.drop, 3),
                    format_p_value(row.p),
                    format_p_value(row.p_holm),
                    UNKNOWN_MARK if row.n is None else row.n,
                ]
                for row in sorted(evidence.minimality, key=lambda row: row.drop or 0.0)
            ]
            caption = f"Minimality under {ablation} ablation, the least needed node first"
            if evidence.minimal_drop is not None:
                caption += f"; a drop of {format_number(evidence.minimal_drop, 4)} is needed"
            head = ["node", "context", "drop", "p", "Holm p", "pairs"]
            tables.append(table(caption, head, rows))
    return join(tables)


def curve_table(evaluation: Evaluation) -> Html:
    """Return the numbers of the faithfulness curve."""
    rows = [
        [
            point.size,
            point.ablation,
            format_number(point.faithfulness),
            " ".join(map(node_label, point.nodes)),
        ]
        for point in evaluation.curve
    ]
    if not rows:
        return Html()
    return table("Faithfulness against size", ["size", "ablation", "f", "nodes"], rows)


def tests_table(evaluation: Evaluation) -> Html:
    """Return the numbers of each statistical test, by its name."""
    rows = [[name, element("code", dumps(value))] for name, value in evaluation.tests.items()]
    if not rows:
        return Html()
    return table("Tests and their numbers", ["test", "numbers"], rows)


def node_label(node_id: str) -> str:
    """Return a node as people write it, such as L9H6."""
    return Node.parse(node_id).label


def _heldout_evidence(
    evaluation: Evaluation, ablation: EvidenceAblation
) -> AblationEvidence | None:
    return evaluation.heldout.ablations.under(ablation) if evaluation.heldout else None


def _condition_cell(evaluation: Evaluation, name: Condition, ablation: EvidenceAblation) -> Html:
    evidence = _heldout_evidence(evaluation, ablation)
    numbers = ""
    if evidence and name in _FORMATTERS:
        numbers = _FORMATTERS[name](evidence)
    elif name == "f":
        numbers = _format_stability(evaluation)
    outcome = evaluation.conditions.under(name, ablation)
    return join([format_outcome(outcome), element("div", numbers)])


def _one_status_note(evaluation: Evaluation, name: Condition) -> Html:
    """Return the second cell of a condition that has one status for both ablations."""
    evidence = _heldout_evidence(evaluation, EVIDENCE_ABLATIONS[1])
    numbers = [_FORMATTERS[name](evidence)] if evidence and name in _FORMATTERS else []
    check = evaluation.heldout.minimality if evaluation.heldout else None
    if name == "d" and check:
        numbers += _describe_check(check)
    note = element("div", "one status for both ablations", class_="soft")
    return join([note, element("div", "; ".join(filter(None, numbers)))])


def _describe_check(check: MinimalityCheck) -> list[str]:
    """Say which nodes were not checked, and what the circuit is without its weak nodes."""
    texts = []
    if check.unchecked:
        share = format_share(check.unchecked_bound)
        texts.append(f"{check.unchecked} unchecked, at most {share} of them not needed")
    for trial in check.padding:
        outcome = "meets (a) to (c)" if trial.meets else f"misses {trial.why_not}"
        texts.append(f"without {' '.join(map(node_label, trial.left_out))} it {outcome}")
    return texts


def _format_bounds(evaluation: Evaluation, name: Condition) -> str:
    """Format the thresholds of a condition. The threshold ``a_faithfulness`` belongs to (a)."""
    thresholds = {
        key[2:].replace("_", " "): bound
        for key, bound in evaluation.thresholds.items()
        if key.split("_")[0] == name
    }
    return ", ".join(f"{key} {dumps(bound)}".strip() for key, bound in thresholds.items())


def _format_stability(evaluation: Evaluation) -> str:
    """Format the number of condition (f), which depends on the selection and not on an ablation."""
    stability = evaluation.tests.get("stability")
    match stability:
        case {"mean_weighted_jaccard": int() | float() as jaccard, **details}:
            plain = details.get("mean_jaccard")
            bound = _format_jaccard_bound(evaluation, details)
            text = f"mean weighted Jaccard {bound}{format_number(jaccard)} with the sets that "
            text += "resampled pairs select"
            return text + (f"; unweighted {plain:.2f}" if isinstance(plain, float) else "")
        case {"mean_jaccard": int() | float() as jaccard, **details}:
            bound = _format_jaccard_bound(evaluation, details)
            return (
                f"mean Jaccard {bound}{format_number(jaccard)} with the sets that resampled "
                "pairs select"
            )
        case {"resamples": int() as resamples, "cut_searches": int() as cut_searches}:
            return (
                f"not known: {cut_searches} of {resamples} repeated searches ended because their "
                "share of the budget was spent"
            )
    return ""


def _format_jaccard_bound(evaluation: Evaluation, details: Mapping[Any, Any]) -> str:
    """Say on which side of the true mean a number is, if some searches were cut off."""
    if not details.get("cut_searches"):
        return ""
    return "at least " if evaluation.conditions.under("f", "resample") == "holds" else "at most "


def _format_completeness(evidence: AblationEvidence) -> str:
    gaps = evidence.completeness
    if gaps is None:
        return ""
    inside = f"largest gap inside {_format_gap(gaps.max_gap_in, gaps.node_in)}"
    text = f"{inside}; outside {_format_gap(gaps.max_gap_out, gaps.node_out)}"
    return "; ".join([text, *_describe_unchecked(gaps)])


def _describe_unchecked(gaps: Completeness) -> list[str]:
    """Say how many nodes of each side were not checked one by one, if any."""
    texts = []
    for side in get_args(Side):
        count = gaps.unchecked.on(side) if gaps.unchecked else None
        bound = gaps.unchecked_bound.on(side) if gaps.unchecked_bound else None
        if count:
            share = UNKNOWN_MARK if bound is None else format_share(bound)
            texts.append(f"{count:.0f} {side} unchecked, at most {share} of them too large")
    return texts


def _format_gap(gap: float | None, node: str | None) -> str:
    return format_number(gap) + (f" at {node_label(node)}" if node else "")


def _format_minimality(evidence: AblationEvidence) -> str:
    drops = [row for row in evidence.minimality or () if row.drop is not None]
    if not drops:
        return ""
    smallest = min(drops, key=lambda row: row.drop or 0.0)
    drop = format_number(smallest.drop, 3)
    p_value = format_p_value(smallest.p_holm)
    return f"least needed: {node_label(smallest.node)}, drop {drop}, Holm p {p_value}"


def _format_controls(evidence: AblationEvidence) -> str:
    controls = evidence.random_controls
    if controls is None:
        return ""
    size_matched = _format_control(controls.size)
    return f"same size: {size_matched}; same layers: {_format_control(controls.layer)}"


def _format_control(control: Control | None) -> str:
    if control is None or control.n is None:
        return "no alternative"
    as_good = UNKNOWN_MARK if control.as_good is None else control.as_good
    return f"{as_good} of {control.n} as good, p {format_p_value(control.p)}"


_FORMATTERS: Mapping[Condition, Callable[[AblationEvidence], str]] = {
    "a": lambda evidence: f"f(C) = {format_score(evidence.faithfulness)}",
    "b": lambda evidence: f"f(U∖C) = {format_score(evidence.knockout)}",
    "c": _format_completeness,
    "d": _format_minimality,
    "e": _format_controls,
}


def _split_row(name: str, split: SplitEvaluation) -> list[object]:
    by_ablation = [split.ablations.under(ablation) for ablation in EVIDENCE_ABLATIONS]
    empty_metrics = [
        UNKNOWN_MARK if evidence is None else format_number(evidence.metric_empty)
        for evidence in by_ablation
    ]
    scores = [
        UNKNOWN_MARK if evidence is None else format_score(evidence.faithfulness)
        for evidence in by_ablation
    ]
    return [
        name,
        split.n,
        format_number(split.metric_clean),
        format_number(split.metric_corrupted),
        format_share(split.accuracy),
        format_share(split.top1),
        " / ".join(empty_metrics),
        " / ".join(scores),
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
    """Return a table of features for each SAE beside the circuit."""
    return join([_render_sae(circuit, sae) for sae in circuit.dictionaries])


def _render_sae(circuit: CircuitGraph, sae: SAEFacts) -> Html:
    nodes = [
        node
        for node in circuit.nodes
        if node.feature and (node.layer, node.feature.site) == (sae.layer, sae.site)
    ]
    ids = {node.id for node in nodes}
    rejected = [node_label(name) for name in sae.candidates if name not in ids]
    caption = f"Features of {sae.sae} ({sae.site} of layer {sae.layer})"
    features = element("p", f"{caption}: none holds.")
    if nodes:
        features = table(caption, _FEATURE_COLUMNS, [_feature_row(node) for node in nodes])
    parts = [
        *(element("p", warning) for warning in sae.warnings),
        features,
        element("p", _describe_sae(sae), class_="soft"),
        element("p", sae.note or "", class_="soft"),
    ]
    if rejected:
        parts.append(element("p", f"Did not hold: {', '.join(rejected)}.", class_="soft"))
    return join(parts)


def _describe_sae(sae: SAEFacts) -> str:
    pairs = f"found on {sae.found_on} pairs and verified on {sae.verified_on}"
    explained = f"{format_share(sae.variance_explained)} of the variance explained"
    sparsity = f"{format_number(sae.l0, 1)} features at a position"
    return (
        f"{len(sae.candidates)} candidates, {pairs}; {explained}, {sparsity}, "
        f"{format_number(sae.share)} of the metric left by the reconstruction."
    )


def _feature_row(node: CircuitNode) -> list[object]:
    feature = node.feature
    effect = node.effect
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
