"""The four built-in tasks on the bundled model: verdict, circuit and cost.

    python -m benchmarks.circuits.tasks [SEED]

Runs are kept in a temporary directory, so that each run is the first to look at its held-out pairs.
Prints a Markdown table, and then the reasons behind the verdicts.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.output import format_header, format_list, format_row, open_output
from discovery import discover, load_model, load_task
from discovery.graph import CONDITIONS, EVIDENCE_ABLATIONS, CircuitGraph, EvidenceAblation
from discovery.report.formatting import format_score
from discovery.tasks import BUNDLED_TASKS

COLUMNS = (
    "task",
    "verdict",
    "circuit",
    "f(C) / f(U∖C), resample",
    "mean",
    "conditions",
    "(f) Jaccard",
    "forward-pass equivalents",
    "seconds",
)


def format_task(name: str, circuit: CircuitGraph, seconds: float) -> str:
    """Return one task's row."""
    missed = [
        f"{condition} {ablation}"
        for condition in CONDITIONS
        for ablation in EVIDENCE_ABLATIONS
        if circuit.evaluation.conditions.under(condition, ablation) != "holds"
    ]
    stability: Any = circuit.evaluation.tests.get("stability") or {}
    jaccard = stability.get("mean_weighted_jaccard", stability.get("mean_jaccard"))
    facts = (name, f"**{circuit.verdict}**", ", ".join(node.label for node in circuit.members))
    measurements = (
        *(_format_scores(circuit, ablation) for ablation in EVIDENCE_ABLATIONS),
        "not: " + ", ".join(missed) if missed else "all hold",
        "–" if jaccard is None else f"{jaccard:.2f}",
        f"{circuit.cost.forward_equivalents:,.0f}",
        f"{seconds:.0f}",
    )
    return format_row(*facts, *measurements)


def _format_scores(circuit: CircuitGraph, ablation: EvidenceAblation) -> str:
    heldout = circuit.evaluation.heldout
    evidence = heldout.ablations.under(ablation) if heldout else None
    if evidence is None or evidence.faithfulness is None or evidence.knockout is None:
        return "not measured"
    return f"{format_score(evidence.faithfulness)} / {format_score(evidence.knockout)}"


def main() -> None:
    """Run every task and print the table."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with open_output() as output:
        model = load_model("bundled")
        output.write(format_header(*COLUMNS))
        reasons: list[str] = []
        for name in BUNDLED_TASKS:
            start = time.monotonic()
            task = load_task(name, model, seed=seed)
            circuit = discover(model, task, seed=seed, runs_dir=output.folder).circuit
            output.write(format_task(name, circuit, time.monotonic() - start))
            reasons += [f"{name}: {reason}" for reason in circuit.reasons]
        output.write("\n" + format_list(reasons))


if __name__ == "__main__":
    main()
