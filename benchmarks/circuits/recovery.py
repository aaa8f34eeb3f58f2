"""Our circuits against those of other methods, on models whose circuits are known.

    python -m benchmarks.circuits.recovery [--models DIR] [--published FILE]

There are three kinds of models: written by hand; random programs compiled to weights
(`benchmarks/known_circuits/random_programs.py`); and small trained ones, whose truth is the
brute-force optimum nearest to the answer. Of the last two kinds, the models that existed while the
agent was written are kept apart from those made afterwards.

Every method gets the same discovery pairs, metric and ablations. Prints Markdown tables: precision
and recall; the share of circuits that are exactly right, with its Clopper–Pearson interval; how
often the truth is a prefix of the ranking, which is what the best threshold could find; the ROC AUC
of the ranking; and the forward-pass equivalents until the ranking, the circuit and its verdict are
known. `benchmarks.methods.auto_circuit_scores` says how to add the methods of `auto-circuit`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.random_programs import load_programs
from benchmarks.known_circuits.subsets import find_smallest, measure_all_subsets
from benchmarks.known_circuits.trained import (
    DEVELOPMENT_SEEDS,
    FRESH_SEEDS,
    add_model_flags,
    iterate_trained_cases,
)
from benchmarks.known_circuits.truth import load_truth
from benchmarks.methods.baselines import BASELINES, ScoringMethod, run_baseline
from benchmarks.methods.evaluator import new_evaluator
from benchmarks.methods.scoring import COLUMNS, COSTS, MethodResult, MethodScores, Scores
from benchmarks.output import format_header, format_list, open_output, print_progress
from discovery import discover
from discovery.backends.base import Backend
from discovery.evaluation import SplitEvaluator
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.store import open_run
from discovery.tasks.task import Task

PAIRS = 240
OURS = "Circuit Scout"
FIRST_FRESH_SEED = 130  # programs with smaller seeds existed while the agent was written
KINDS = ("by hand", "programs", "fresh programs", "trained", "fresh trained")
TRAINED_KINDS = KINDS[3:]
OPTIMUM_COLUMNS = ("meets (a) to (d)", "nodes that differ", "nodes beyond", "regret")


@dataclass(frozen=True)
class ModelSelection:
    """Where the models of a kind come from, and how many are used.

    Attributes:
        folder: models and runs are written here.
        trained_models: the folder of the trained models.
        max_programs: the largest number of random programs of a kind.
        max_trained: the largest number of trained models of a kind.
    """

    folder: Path
    trained_models: Path
    max_programs: int
    max_trained: int

    def trained_cases(self, kind: str) -> Iterator[tuple[str, Backend, Task]]:
        """Yield name, model and task of the trained models."""
        seeds = FRESH_SEEDS if kind == "fresh trained" else DEVELOPMENT_SEEDS
        return iterate_trained_cases(self.trained_models, seeds[: self.max_trained])

    def known_cases(self, kind: str) -> Iterator[tuple[str, Backend, Task, NodeSet]]:
        """Yield name, model, task and truth of the models written by hand or compiled."""
        if kind == "by hand":
            for name in sorted(KNOWN_CIRCUITS):
                truth = load_truth(name, "resample").nodes
                model, task = build_known_circuit(name).load(self.folder / name, PAIRS)
                yield name, model, task, frozenset(map(Node.parse, truth))
            return
        wants_fresh = kind == "fresh programs"
        programs = [
            program
            for program in load_programs()
            if (program.seed >= FIRST_FRESH_SEED) == wants_fresh
        ]
        for program in programs[: self.max_programs]:
            circuit = program.known_circuit
            model, task = circuit.load(self.folder / circuit.name, PAIRS)
            yield circuit.name, model, task, frozenset(map(Node.parse, program.truth))

    def all_cases(self, kind: str) -> Iterator[tuple[str, Backend, Task]]:
        """Yield name, model and task of all models of a kind."""
        if kind in TRAINED_KINDS:
            yield from self.trained_cases(kind)
        else:
            for name, model, task, _ in self.known_cases(kind):
                yield name, model, task


def run_methods(
    model: Backend, task: Task, folder: Path, published: Mapping[str, Any]
) -> Iterator[tuple[str, MethodResult]]:
    """Run every method on the task's discovery pairs.

    Args:
        model: the model.
        task: its task.
        folder: our own runs are kept here.
        published: the scores of methods that ran elsewhere, by method.
    """
    yield OURS, run_circuit_scout(model, task, folder)
    shared_evaluator = new_evaluator(model, task.discovery)
    methods = {**BASELINES, **{name: use_scores(record) for name, record in published.items()}}
    for name, method in methods.items():
        yield name, run_baseline(method, new_evaluator(model, task.discovery), shared_evaluator)


def use_scores(record: Mapping[str, Any]) -> ScoringMethod:
    """Make a method of scores that were computed elsewhere, at the cost that they had there."""

    def score(evaluator: SplitEvaluator) -> Scores:
        evaluator.engine.meter.spent += record["forward_equivalents"]
        nodes = evaluator.engine.backend.info.nodes()
        return {node: record["scores"][str(node)] for node in nodes}

    return score


def export_cases(folder: Path, cases: Iterable[tuple[str, Backend, Task]]) -> None:
    """Write every model with its metric and pairs, for methods that run elsewhere."""
    for name, model, task in cases:
        directory = folder / folder_name(name)
        shutil.copytree(model.info.source, directory)
        (directory / "pairs.json").write_text(json.dumps(export_record(model, task)))


def folder_name(name: str) -> str:
    """Return a model's name as the name of a folder."""
    return name.replace(" ", "-")


def export_record(model: Backend, task: Task) -> dict[str, Any]:
    """Return the metric and discovery pairs, with a stamp that identifies them and the weights."""
    pairs = [
        {
            "clean": pair.clean,
            "corrupted": pair.corrupted,
            "answer": pair.answer,
            "wrong": pair.wrong,
        }
        for pair in task.discovery.pairs
    ]
    identity = json.dumps([model.info.fingerprint, task.metric, pairs])
    stamp = hashlib.sha256(identity.encode()).hexdigest()
    return {"stamp": stamp, "metric": task.metric, "pairs": pairs}


def published_methods(
    published: Mapping[str, Any], name: str, model: Backend, task: Task
) -> Mapping[str, Any]:
    """Return the scores of the methods that ran elsewhere, by method.

    Raises:
        ValueError: if the scores belong to other weights or pairs.
    """
    if not published:
        return {}
    record: Mapping[str, Any] = published[folder_name(name)]
    if record["stamp"] != export_record(model, task)["stamp"]:
        raise ValueError(
            f"The published scores of {name} belong to other weights or pairs."
            " Export the models and compute the scores again."
        )
    methods: Mapping[str, Any] = record["methods"]
    return methods


def run_circuit_scout(model: Backend, task: Task, folder: Path) -> MethodResult:
    """Run the agent. Its ranking is by inclusion frequency, and then by |effect|."""
    run = discover(model, task, runs_dir=folder / "runs")
    events: Sequence[Any] = open_run(folder / "runs", run.run_id).events()
    stability: Any = run.circuit.evaluation.tests.get("stability") or {}
    inclusion = stability.get("inclusion", {})
    effects = largest_effects(events)
    largest = max(effects.values(), default=0.0) or 1.0
    scores = {
        node: inclusion.get(str(node), 0.0) + 1e-3 * effects.get(str(node), 0.0) / largest
        for node in model.info.nodes()
    }
    cost_by_stage = {
        event["stage"]: event["forward_equivalents"] for event in events if event["kind"] == "stage"
    }
    total_cost = run.circuit.cost.forward_equivalents or 0.0
    return MethodResult(
        circuit=frozenset(run.circuit.members),
        scores=scores,
        circuit_cost=cost_by_stage.get("mend", total_cost),
        ranking_cost=cost_by_stage.get("stability"),
        verdict_cost=total_cost,
        verdict=str(run.circuit.verdict),
    )


def largest_effects(events: Sequence[Any]) -> dict[str, float]:
    """Return the larger of each node's two |effects|, from the run's journal."""
    states = (event["state"] for event in reversed(events) if "state" in event)
    effects: Any = next(states, {"effects": {}})["effects"]
    return {
        name: max((abs(part["mean"] or 0.0) for part in effect.values() if part), default=0.0)
        for name, effect in effects.items()
    }


def measure_regrets(
    model: Backend, task: Task, circuits: Sequence[NodeSet], optima: Sequence[NodeSet]
) -> list[float]:
    """Return by how much each circuit's |1 − f| exceeds that of the best optimum.

    |1 − f| is the larger of the two ablations'. A circuit that does better than the optima has a
    regret of 0.
    """
    evaluator = new_evaluator(model, task)
    sets = [*circuits, *optima]
    distances_by_ablation = [
        (1 - evaluator.f(ablation)(sets, "regret")).abs() for ablation in EVIDENCE_ABLATIONS
    ]
    distances = torch.stack(distances_by_ablation).amax(0).tolist()
    best = min(distances[len(circuits) :])
    return [max(0.0, distance - best) for distance in distances[: len(circuits)]]


def compare_with_truth(kind: str, source: ModelSelection, published: Mapping[str, Any]) -> str:
    """Return the table of models whose circuits are known."""
    scores_by_method: dict[str, MethodScores] = defaultdict(MethodScores)
    for name, model, task, truth in source.known_cases(kind):
        methods = published_methods(published, name, model, task)
        for method, result in run_methods(model, task, source.folder, methods):
            scores_by_method[method].add(name, result, [truth])
        print_progress(kind, name)
    rows = (scores.format_row(method) for method, scores in scores_by_method.items())
    mistakes = format_list(scores_by_method[OURS].mistakes)
    return f"\n{kind}\n\n{format_header(*COLUMNS, *COSTS)}{''.join(rows)}{mistakes}"


@dataclass(frozen=True)
class OptimumComparison:
    """One circuit beside the nearest optimum.

    Attributes:
        passes: whether the circuit meets (a) to (d).
        n_different: the number of nodes in one of the two and not in the other.
        n_beyond: how many nodes more the circuit has.
        regret: see `measure_regrets`.
    """

    passes: bool
    n_different: int
    n_beyond: int
    regret: float


def compare_with_optimum(kind: str, source: ModelSelection, published: Mapping[str, Any]) -> str:
    """Return the table of trained models."""
    scores_by_method: dict[str, MethodScores] = defaultdict(MethodScores)
    comparisons: dict[str, list[OptimumComparison]] = defaultdict(list)
    notes = []
    for name, model, task in source.trained_cases(kind):
        passing = measure_all_subsets(model, task.discovery).passing_sets()
        optima = find_smallest(passing)
        if not optima:
            notes.append(f"{name}: no set meets (a) to (d)")
            continue
        methods = published_methods(published, name, model, task)
        results = dict(run_methods(model, task, source.folder, methods))
        circuits = [result.circuit for result in results.values()]
        regrets = measure_regrets(model, task.heldout, circuits, optima)
        for (method, result), regret in zip(results.items(), regrets, strict=True):
            nearest = scores_by_method[method].add(name, result, optima)
            comparison = OptimumComparison(
                passes=result.circuit in passing,
                n_different=len(nearest ^ result.circuit),
                n_beyond=len(result.circuit) - len(nearest),
                regret=regret,
            )
            comparisons[method].append(comparison)
        print_progress(kind, name)
    rows = [
        scores.format_row(method, *format_comparisons(comparisons[method]))
        for method, scores in scores_by_method.items()
    ]
    header = format_header(*COLUMNS, *OPTIMUM_COLUMNS, *COSTS)
    mistakes = format_list([*scores_by_method[OURS].mistakes, *notes])
    return f"\n{kind}\n\n{header}{''.join(rows)}{mistakes}"


def format_comparisons(comparisons: Sequence[OptimumComparison]) -> tuple[str, ...]:
    """Return the means of the comparisons, one cell for each of `OPTIMUM_COLUMNS`."""
    return (
        f"{mean(comparison.passes for comparison in comparisons):.3f}",
        f"{mean(comparison.n_different for comparison in comparisons):.2f}",
        f"{mean(comparison.n_beyond for comparison in comparisons):+.2f}",
        f"{mean(comparison.regret for comparison in comparisons):.3f}",
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=KINDS, action="append", help="one kind of models; repeat it for more"
    )
    parser.add_argument(
        "--programs",
        type=int,
        default=10**6,
        help="how many of the random programs of each kind (all that are stored)",
    )
    add_model_flags(parser)
    parser.add_argument(
        "--export",
        type=Path,
        help="only write every model with its discovery pairs into this folder",
    )
    parser.add_argument(
        "--published",
        type=Path,
        help="the output of benchmarks/methods/auto_circuit_scores.py, to add its methods",
    )
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    arguments = parse_arguments()
    published = json.loads(arguments.published.read_text()) if arguments.published else {}
    with open_output() as output:
        source = ModelSelection(
            folder=output.folder,
            trained_models=arguments.models or output.folder,
            max_programs=arguments.programs,
            max_trained=arguments.trained,
        )
        for kind in arguments.only or KINDS:
            if arguments.export is not None:
                export_cases(arguments.export, source.all_cases(kind))
            elif kind in TRAINED_KINDS:
                output.write(compare_with_optimum(kind, source, published))
            else:
                output.write(compare_with_truth(kind, source, published))


if __name__ == "__main__":
    main()
