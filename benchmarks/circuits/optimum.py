"""Our circuits beside the best there are, found by brute force over every subset.

    python -m benchmarks.circuits.optimum [--models DIR]

The models are the hand-built ones and small trained ones. The optimum is every smallest set that
meets (a) to (d) under both ablations on discovery pairs, as point values. All circuits are scored
again on held-out pairs. Prints a Markdown table: sizes, |1 − f| on held-out pairs (the larger of
the two ablations'), and whether our circuit is one of the optima.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.subsets import find_smallest, measure_all_subsets
from benchmarks.known_circuits.trained import (
    DEVELOPMENT_SEEDS,
    add_model_flags,
    iterate_trained_cases,
)
from benchmarks.output import format_header, format_row, open_output
from discovery import discover
from discovery.backends.base import Backend
from discovery.tasks.task import Task

# The 2^12 subsets of twelve nodes take 4,096 passes a pair, so pairs are few. Whole templates are
# held out, and a verdict needs 48 pairs.
PAIRS = 128
COLUMNS = (
    "model",
    "nodes",
    "ours",
    "verdict",
    "optimum, and how many",
    "ours among them",
    "nodes beyond",
    "nodes that differ",
    "held-out abs(1 − f), ours",
    "best optimum",
    "worse by",
)


def format_case(name: str, model: Backend, task: Task, folder: Path) -> str:
    """Return one case's row."""
    circuit = discover(model, task, runs_dir=folder / "runs").circuit
    ours = frozenset(circuit.members)
    discovery_table = measure_all_subsets(model, task.discovery)
    heldout_table = measure_all_subsets(model, task.heldout)
    facts = (name, len(discovery_table.nodes), len(ours), circuit.verdict)
    passing = discovery_table.passing_sets()
    our_distance = heldout_table.distance(ours)
    if not passing:
        none = ("none meets (a)–(d)", "", "", "", f"{our_distance:.3f}", "", "")
        return format_row(*facts, *none)
    optima = find_smallest(passing)
    size = len(optima[0])
    optimum = f"{size} ({len(optima)} of {len(passing)} that pass)"
    best_distance = min(heldout_table.distance(nodes) for nodes in optima)
    if not ours:
        outcome = (f"none given: {circuit.reasons[0]}", "", "", "", f"{best_distance:.3f}", "")
        return format_row(*facts, optimum, *outcome)
    comparison = (
        "yes" if ours in optima else "no",
        f"{len(ours) - size:+d}",
        min(len(ours ^ nodes) for nodes in optima),
        f"{our_distance:.3f}",
        f"{best_distance:.3f}",
        f"{our_distance - best_distance:+.3f}",
    )
    return format_row(*facts, optimum, *comparison)


def iterate_cases(folder: Path, models: Path, limit: int) -> Iterator[tuple[str, Backend, Task]]:
    """Yield name, model and task of every case."""
    for name in sorted(KNOWN_CIRCUITS):
        model, task = build_known_circuit(name).load(folder / name, PAIRS)
        yield name, model, task
    yield from iterate_trained_cases(models, DEVELOPMENT_SEEDS[:limit], PAIRS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_flags(parser)
    arguments = parser.parse_args()
    with open_output() as output:
        models = arguments.models or output.folder
        output.write(format_header(*COLUMNS))
        for name, model, task in iterate_cases(output.folder, models, arguments.trained):
            output.write(format_case(name, model, task, output.folder))


if __name__ == "__main__":
    main()
