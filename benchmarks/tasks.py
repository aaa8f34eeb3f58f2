"""The four built-in tasks on the bundled model: verdict, circuit and cost, as a table. `python -m benchmarks.tasks [seed]`

Runs are kept in a temporary directory, so that the held-out pairs are looked at once. Prints Markdown.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time

from discovery import discover, load_model, load_task
from discovery.graph import CONDITIONS, CircuitGraph
from discovery.report.formatting import format_score
from discovery.tasks import BUILTIN


def format_row(name: str, circuit: CircuitGraph, seconds: float) -> str:
    """One task's line."""
    held = circuit.evaluation.heldout
    cells = [name, f"**{circuit.verdict}**", ", ".join(node.label for node in circuit.members)]
    for ablation in ("resample", "mean"):
        found = getattr(held.ablations, ablation) if held else None
        if found is None or found.faithfulness is None or found.knockout is None:
            cells.append("not measured")
            continue
        f, k = found.faithfulness, found.knockout
        cells.append(f"{format_score(f)} / {format_score(k)}")
    missed = [
        f"{c} {a}"
        for c in CONDITIONS
        for a in ("resample", "mean")
        if getattr(circuit.evaluation.conditions.of(c), a) != "holds"
    ]
    stability = (circuit.evaluation.tests.get("stability") or {}).get("mean_jaccard")  # type: ignore[union-attr]
    cells += [
        "all hold" if not missed else "not: " + ", ".join(missed),
        "–" if stability is None else f"{stability:.2f}",
    ]
    cells += [f"{circuit.cost.forward_equivalents:,.0f}", f"{seconds:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run every task and print the table."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as runs:
        model = load_model("bundled")
        lines = [
            "| task | verdict | circuit | f(C) / f(U∖C), resample | mean | conditions | (f) Jaccard | forward-pass equivalents | seconds |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        reasons: list[str] = []
        for name in BUILTIN:
            began = time.monotonic()
            circuit = discover(
                model, load_task(name, model, seed=seed), seed=seed, runs_dir=runs
            ).circuit
            lines.append(format_row(name, circuit, time.monotonic() - began))
            reasons += [f"- {name}: {reason}" for reason in circuit.reasons]
            out.write(f"{lines[-1]}\n")
            out.flush()
    out.write("\n" + "\n".join([*lines, "", *reasons]) + "\n")


if __name__ == "__main__":
    main()
