"""Which conditions hold on trained models, and how far from their bounds? `python -m benchmarks.calibration [--models DIR]`

The four built-in tasks on the bundled model, and small trained models. A margin is the distance to the bound in the condition's own unit,
negative where it does not hold; for (a) and (b) of the interval's nearer end. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import header
from benchmarks.trained import add_models, cases
from discovery import discover, load_model, load_task
from discovery.backends.base import Backend
from discovery.evaluation import thresholds
from discovery.graph import EVIDENCE_ABLATIONS, AblationEvidence, CircuitGraph
from discovery.tasks import BUILTIN
from discovery.tasks.task import Task


def margins(found: AblationEvidence | None) -> list[str]:
    """Of (a) to (e) under one ablation."""
    if found is None or found.faithfulness is None or found.knockout is None:
        return ["–"] * 5
    out: list[float | None] = []
    for score, (low, high) in ((found.faithfulness, thresholds.FAITHFUL), (found.knockout, thresholds.NECESSARY)):
        out.append(min((score.low or 0.0) - low, high - (score.high or 0.0)))
    c = found.completeness
    out.append(None if c is None else min(thresholds.GAP_IN - (c.max_gap_in or 0.0), thresholds.GAP_OUT - (c.max_gap_out or 0.0)))
    out.append(min(((row.drop or 0.0) - thresholds.DROP for row in found.minimality or ()), default=None))
    controls = (
        [control for control in (found.random_controls.size, found.random_controls.layer) if control] if found.random_controls else []
    )
    out.append(min((thresholds.ALPHA - (control.p or 0.0) for control in controls), default=None))
    return ["–" if value is None else f"{value:+.3f}" for value in out]


def rows(name: str, circuit: CircuitGraph) -> Iterator[str]:
    """A line for each ablation."""
    held = circuit.evaluation.heldout
    stability = circuit.evaluation.tests.get("stability")
    jaccard = stability.get("mean_jaccard") if isinstance(stability, dict) else None
    last = f"{jaccard - thresholds.JACCARD:+.2f}" if isinstance(jaccard, float) else "–"
    for ablation in EVIDENCE_ABLATIONS:
        evidence = held.ablations.under(ablation) if held else None
        yield f"| {name} | {circuit.verdict} | {circuit.size} | {ablation} | {' | '.join(margins(evidence))} | {last} |"


def every(models: Path) -> Iterator[tuple[str, Backend, Task]]:
    """All cases."""
    model = load_model("bundled")
    for name in BUILTIN:
        yield name, model, load_task(name, model)
    yield from cases(models)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_models(parser)
    chosen = parser.parse_args()
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as made:
        out.write(header("model, task", "verdict", "nodes", "ablation", *(f"({name})" for name in "abcdef")))
        reasons = []
        for name, model, task in every(chosen.models or Path(made)):
            circuit = discover(model, task, runs_dir=Path(made) / "runs").circuit
            out.write("".join(f"{line}\n" for line in rows(name, circuit)))
            out.flush()
            reasons += [f"- {name}: {reason}" for reason in circuit.reasons]
        out.write("\n" + "".join(f"{line}\n" for line in reasons))


if __name__ == "__main__":
    main()
