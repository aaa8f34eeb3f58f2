"""Which conditions hold on trained models, and how far are they from their bounds?

    python -m benchmarks.circuits.calibration [--models DIR]

The cases are the four built-in tasks on the bundled model, and small trained models. A margin is
the distance to the bound in the condition's own unit. It is negative if the condition does not hold
(undecided or failed). For (a) and (b) it is measured from the nearer end of the interval. (d) names
the largest Holm p if that is above 0.05. (e) shows how many alternatives are as good, size-matched
and layer-matched, and, if there are 19 or more of them, the distance of p to 0.05. Prints a
Markdown table, and then the reasons behind the verdicts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.known_circuits.trained import (
    DEVELOPMENT_SEEDS,
    add_model_flags,
    iterate_trained_cases,
)
from benchmarks.output import format_header, format_list, format_row, open_output
from discovery import discover, load_model, load_task
from discovery.backends.base import Backend
from discovery.evaluation import thresholds
from discovery.graph import EVIDENCE_ABLATIONS, AblationEvidence, CircuitGraph, Control
from discovery.tasks import BUNDLED_TASKS
from discovery.tasks.task import Task

COLUMNS = ("model, task", "verdict", "nodes", "ablation", *(f"({name})" for name in "abcdef"))


def format_margins(evidence: AblationEvidence | None) -> list[str]:
    """Return the margins of (a) to (e) under one ablation."""
    if evidence is None or evidence.faithfulness is None or evidence.knockout is None:
        return ["–"] * 5
    bands = (
        (evidence.faithfulness, thresholds.FAITHFULNESS_BAND),
        (evidence.knockout, thresholds.KNOCKOUT_BAND),
    )
    band_margins = [
        min((score.low or 0.0) - low, high - (score.high or 0.0)) for score, (low, high) in bands
    ]
    return [
        *map(_format_signed, band_margins),
        _format_completeness(evidence),
        _format_minimality(evidence),
        _format_controls(evidence),
    ]


def _format_completeness(evidence: AblationEvidence) -> str:
    completeness = evidence.completeness
    if completeness is None:
        return "–"
    margin_in = thresholds.MAX_GAP_IN - (completeness.max_gap_in or 0.0)
    margin_out = thresholds.MAX_GAP_OUT - (completeness.max_gap_out or 0.0)
    return _format_signed(min(margin_in, margin_out))


def _format_minimality(evidence: AblationEvidence) -> str:
    rows = evidence.minimality
    if not rows:
        return "–"
    needed = thresholds.MIN_DROP if evidence.minimal_drop is None else evidence.minimal_drop
    margin = min((row.drop or 0.0) - needed for row in rows)
    p = max(row.p_holm if row.p_holm is not None else 1.0 for row in rows)
    return _format_signed(margin) + (f", p {p:.2f}" if p > thresholds.SIGNIFICANCE_LEVEL else "")


def _format_controls(evidence: AblationEvidence) -> str:
    controls = evidence.random_controls
    if controls is None:
        return "–"
    measured = [control for control in (controls.size, controls.layer) if control]
    return "; ".join(map(_format_control, measured)) or "–"


def _format_control(control: Control) -> str:
    text = f"{control.as_good} of {control.n}"
    if (control.n or 0) < thresholds.MIN_ALTERNATIVES_FOR_P:
        return text  # with so few alternatives none may be as good, and p plays no part
    return f"{text} ({_format_signed(thresholds.SIGNIFICANCE_LEVEL - (control.p or 0.0))})"


def _format_signed(value: float) -> str:
    return f"{value:+.3f}"


def format_case(name: str, circuit: CircuitGraph) -> str:
    """Return one case's rows, one for each ablation."""
    heldout = circuit.evaluation.heldout
    stability = circuit.evaluation.tests.get("stability")
    jaccard = (
        stability.get("mean_weighted_jaccard", stability.get("mean_jaccard"))
        if isinstance(stability, dict)
        else None
    )
    stability_margin = "–"
    if isinstance(jaccard, float):
        stability_margin = f"{jaccard - thresholds.MIN_JACCARD:+.2f}"
    rows = []
    for ablation in EVIDENCE_ABLATIONS:
        evidence = heldout.ablations.under(ablation) if heldout else None
        facts = (name, circuit.verdict, circuit.size, ablation)
        rows.append(format_row(*facts, *format_margins(evidence), stability_margin))
    return "".join(rows)


def iterate_cases(models: Path, limit: int) -> Iterator[tuple[str, Backend, Task]]:
    """Yield name, model and task of every case."""
    model = load_model("bundled")
    for name in BUNDLED_TASKS:
        yield name, model, load_task(name, model)
    yield from iterate_trained_cases(models, DEVELOPMENT_SEEDS[:limit])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_flags(parser)
    arguments = parser.parse_args()
    with open_output() as output:
        models = arguments.models or output.folder
        output.write(format_header(*COLUMNS))
        reasons = []
        for name, model, task in iterate_cases(models, arguments.trained):
            circuit = discover(model, task, runs_dir=output.folder / "runs").circuit
            output.write(format_case(name, circuit))
            reasons += [f"{name}: {reason}" for reason in circuit.reasons]
        output.write("\n" + format_list(reasons))


if __name__ == "__main__":
    main()
