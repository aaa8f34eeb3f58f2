"""Which conditions hold on trained models, and how far from their bounds? `python -m benchmarks.calibration [--models DIR]`

The four built-in tasks on the bundled model, and small trained models. A margin is the distance to the bound in the condition's own unit,
negative where it does not hold (undecided or failed); for (a) and (b) of the interval's nearer end. (d) names the largest Holm p where
that is above 0.05. (e) is how many alternatives are as good, size-matched and layer-matched, with the distance of p to 0.05 where there
are 19 or more. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.known_circuits.trained import (
    DEVELOPMENT_SEEDS,
    add_model_flags,
    iterate_trained_cases,
)
from benchmarks.output import format_header
from discovery import discover, load_model, load_task
from discovery.backends.base import Backend
from discovery.evaluation import thresholds
from discovery.graph import EVIDENCE_ABLATIONS, AblationEvidence, CircuitGraph, Control
from discovery.tasks import BUILTIN
from discovery.tasks.task import Task


def format_margins(found: AblationEvidence | None) -> list[str]:
    """Of (a) to (e) under one ablation."""
    if found is None or found.faithfulness is None or found.knockout is None:
        return ["–"] * 5
    scores = (
        (found.faithfulness, thresholds.FAITHFULNESS_BAND),
        (found.knockout, thresholds.KNOCKOUT_BAND),
    )
    out = [
        _signed(min((score.low or 0.0) - low, high - (score.high or 0.0)))
        for score, (low, high) in scores
    ]
    c = found.completeness
    out.append(
        "–"
        if c is None
        else _signed(
            min(
                thresholds.MAX_GAP_IN - (c.max_gap_in or 0.0),
                thresholds.MAX_GAP_OUT - (c.max_gap_out or 0.0),
            )
        )
    )
    drop = min(
        ((row.drop or 0.0) - thresholds.MIN_DROP for row in found.minimality or ()), default=None
    )
    p = max(
        (row.p_holm if row.p_holm is not None else 1.0 for row in found.minimality or ()),
        default=0.0,
    )
    out.append(
        "–" if drop is None else _signed(drop) + (f", p {p:.2f}" if p > thresholds.ALPHA else "")
    )
    controls = found.random_controls
    worst = (
        [_control(control) for control in (controls.size, controls.layer) if control]
        if controls
        else []
    )
    out.append("; ".join(worst) or "–")
    return out


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _control(control: Control) -> str:
    """How many alternatives are as good, and the distance of p to its bound; where there are fewer than 19, none may be."""
    few = (control.n or 0) < thresholds.MIN_ALTERNATIVES_FOR_P
    return f"{control.as_good} of {control.n}" + (
        "" if few else f" ({_signed(thresholds.ALPHA - (control.p or 0.0))})"
    )


def format_rows(name: str, circuit: CircuitGraph) -> Iterator[str]:
    """A line for each ablation."""
    held = circuit.evaluation.heldout
    stability = circuit.evaluation.tests.get("stability")
    jaccard = stability.get("mean_jaccard") if isinstance(stability, dict) else None
    last = f"{jaccard - thresholds.MIN_JACCARD:+.2f}" if isinstance(jaccard, float) else "–"
    for ablation in EVIDENCE_ABLATIONS:
        evidence = held.ablations.under(ablation) if held else None
        yield f"| {name} | {circuit.verdict} | {circuit.size} | {ablation} | {' | '.join(format_margins(evidence))} | {last} |"


def iterate_cases(models: Path, most: int) -> Iterator[tuple[str, Backend, Task]]:
    """All cases."""
    model = load_model("bundled")
    for name in BUILTIN:
        yield name, model, load_task(name, model)
    yield from iterate_trained_cases(models, DEVELOPMENT_SEEDS[:most])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_flags(parser)
    chosen = parser.parse_args()
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as made:
        out.write(
            format_header(
                "model, task", "verdict", "nodes", "ablation", *(f"({name})" for name in "abcdef")
            )
        )
        reasons = []
        for name, model, task in iterate_cases(chosen.models or Path(made), chosen.trained):
            circuit = discover(model, task, runs_dir=Path(made) / "runs").circuit
            out.write("".join(f"{line}\n" for line in format_rows(name, circuit)))
            out.flush()
            reasons += [f"- {name}: {reason}" for reason in circuit.reasons]
        out.write("\n" + "".join(f"{line}\n" for line in reasons))


if __name__ == "__main__":
    main()
