"""Our circuits beside the best there are, by brute force over every subset: `python -m benchmarks.optimum [--models DIR]`

The hand-built models and small trained ones. The optimum is every smallest set that meets (a) to (d) under both ablations on discovery
pairs, point values; all are scored again on held-out pairs. Prints Markdown: sizes, |1 − f| on held-out pairs (the larger of both
ablations'), and whether ours is among the optima.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.subsets import find_smallest, measure_all_subsets
from benchmarks.known_circuits.trained import (
    DEVELOPMENT_SEEDS,
    add_model_flags,
    iterate_trained_cases,
)
from benchmarks.output import format_header
from discovery import discover, load_model, load_task
from discovery.backends.base import Backend
from discovery.tasks.task import Task

PAIRS = 128  # 2^12 subsets of twelve nodes are 4,096 passes a pair; whole templates are held out, and a verdict needs 48 pairs
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


def format_row(name: str, model: Backend, task: Task, folder: Path) -> str:
    """One case's line."""
    circuit = discover(model, task, runs_dir=folder / "runs").circuit
    ours = frozenset(circuit.members)
    table, held = (
        measure_all_subsets(model, task.discovery),
        measure_all_subsets(model, task.heldout),
    )
    passing = table.passing_sets()
    best = find_smallest(passing)
    facts = f"| {name} | {len(table.nodes)} | {len(ours)} | {circuit.verdict}"
    if not passing:
        return f"{facts} | none meets (a)–(d) | | | | {held.distance(ours):.3f} | | |"
    size, distance = (
        f"{len(best[0])} ({len(best)} of {len(passing)} that pass)",
        min(held.distance(made) for made in best),
    )
    if not ours:
        return f"{facts} | {size} | none given: {circuit.reasons[0]} | | | | {distance:.3f} | |"
    own, apart = held.distance(ours), min(len(ours ^ made) for made in best)
    beyond = f"{'yes' if ours in best else 'no'} | {len(ours) - len(best[0]):+d}"
    return f"{facts} | {size} | {beyond} | {apart} | {own:.3f} | {distance:.3f} | {own - distance:+.3f} |"


def iterate_cases(folder: Path, models: Path, limit: int) -> Iterator[tuple[str, Backend, Task]]:
    """All cases."""
    for name in sorted(KNOWN_CIRCUITS):
        model = load_model(build_known_circuit(name).save(folder / name))
        yield name, model, load_task(folder / name / "task.jsonl", model, pairs=PAIRS)
    yield from iterate_trained_cases(models, DEVELOPMENT_SEEDS[:limit], PAIRS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_flags(parser)
    chosen = parser.parse_args()
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as made:
        out.write(format_header(*COLUMNS))
        for name, model, task in iterate_cases(
            Path(made), chosen.models or Path(made), chosen.trained
        ):
            out.write(format_row(name, model, task, Path(made)) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
