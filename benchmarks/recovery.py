"""Ours against the field, on models whose circuits are known: `python -m benchmarks.recovery [--models DIR] [--published FILE]`

The models written by hand; random programs compiled to weights (`benchmarks/known_circuits/random_programs.py`); and small trained ones, whose truth is the
brute-force optimum nearest to the answer; of the last two those that were there while the agent was written apart from those that were made
after. Every method gets the same discovery pairs, metric and ablations. Prints Markdown: precision, recall, the share of circuits found
exactly with its Clopper–Pearson interval, how often the truth is a prefix of the ranking (what the best threshold could find), ROC AUC of
the ranking, and forward-pass equivalents up to the ranking, up to the circuit, and with its verdict. `benchmarks.methods.auto_circuit_scores` says how to add
the methods of `auto-circuit`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from benchmarks.methods.baselines import BASELINES, run_baseline
from benchmarks.methods.scoring import COLUMNS, COSTS, MethodResult, MethodScores
from benchmarks.methods.transformer_lens_tools import Scores
from benchmarks.output import format_header
from discovery import discover, load_model, load_task
from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.evaluation import SplitEvaluator
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.store import open_run
from discovery.tasks.task import Task

PAIRS = 240
OURS = "Circuit Scout"
FIRST_FRESH_SEED = 130  # the agent was written while the programs of the seeds below were there
KINDS = ("by hand", "programs", "fresh programs", "trained", "fresh trained")
TRAINED_KINDS = KINDS[3:]


def run_methods(
    model: Backend, task: Task, folder: Path, published: Mapping[str, Any]
) -> Iterator[tuple[str, MethodResult]]:
    """Every method's answer on the task's discovery pairs."""
    yield OURS, run_circuit_scout(model, task, folder)
    known = new_evaluator(model, task.discovery)
    for name, rival in {
        **BASELINES,
        **{name: baseline_from_scores(answer) for name, answer in published.items()},
    }.items():
        made = run_baseline(rival, new_evaluator(model, task.discovery), known)
        yield (
            name,
            MethodResult(made.circuit, made.scores, made.forward_equivalents, made.ranking_cost),
        )


def new_evaluator(model: Backend, task: Task) -> SplitEvaluator:
    """A bench that has measured nothing yet, on all pairs of a task."""
    return SplitEvaluator.of(model, task, "all", 0, metric=None, memory=None, meter=Meter())


def baseline_from_scores(answer: Mapping[str, Any]) -> Callable[[SplitEvaluator], Scores]:
    """A rival whose scores were computed elsewhere, at the cost that they had there."""

    def rival(bench: SplitEvaluator) -> Scores:
        bench.engine.meter.spent += answer["forward_equivalents"]
        return {node: answer["scores"][str(node)] for node in bench.engine.backend.info.nodes()}

    return rival


def export_cases(folder: Path, cases_of: Iterable[tuple[str, Backend, Task]]) -> None:
    """Every model with its metric and discovery pairs as token ids, for methods that run elsewhere."""
    for name, model, task in cases_of:
        place = folder / folder_name(name)
        shutil.copytree(model.info.source, place)
        (place / "pairs.json").write_text(json.dumps(export_record(model, task)))


def folder_name(name: str) -> str:
    """A model's name as a folder's."""
    return name.replace(" ", "-")


def export_record(model: Backend, task: Task) -> dict[str, Any]:
    """Metric and discovery pairs, with a stamp that is another for other weights or pairs."""
    pairs = [
        {"clean": p.clean, "corrupted": p.corrupted, "answer": p.answer, "wrong": p.wrong}
        for p in task.discovery.pairs
    ]
    stamp = hashlib.sha256(
        json.dumps([model.info.fingerprint, task.metric, pairs]).encode()
    ).hexdigest()
    return {"stamp": stamp, "metric": task.metric, "pairs": pairs}


def published_methods(
    published: Mapping[str, Any], name: str, model: Backend, task: Task
) -> Mapping[str, Any]:
    """The answers of the methods that ran elsewhere, by method; none where there is no such file.

    Raises:
        ValueError: where they are of other weights or pairs.
    """
    if not published:
        return {}
    found: Mapping[str, Any] = published[folder_name(name)]
    if found["stamp"] != export_record(model, task)["stamp"]:
        raise ValueError(
            f"the published scores of {name} are of other weights or pairs: export and compute them again"
        )
    return found["methods"]  # type: ignore[no-any-return]  # of a JSON file


def run_circuit_scout(model: Backend, task: Task, folder: Path) -> MethodResult:
    """A discovery; its ranking is by inclusion frequency, then by |effect|."""
    done = discover(model, task, runs_dir=folder / "runs")
    events: Sequence[Any] = open_run(folder / "runs", done.run_id).events()
    stability: Any = done.circuit.evaluation.tests.get("stability") or {}
    inclusion, size = stability.get("inclusion", {}), largest_effects(events)
    largest = max(size.values(), default=0.0) or 1.0
    scores = {
        node: inclusion.get(str(node), 0.0) + 1e-3 * size.get(str(node), 0.0) / largest
        for node in model.info.nodes()
    }
    spent = {
        event["stage"]: event["forward_equivalents"] for event in events if event["kind"] == "stage"
    }
    whole = done.circuit.cost.forward_equivalents or 0.0
    verdict = str(done.circuit.verdict)
    return MethodResult(
        frozenset(done.circuit.members),
        scores,
        spent.get("mend", whole),
        spent.get("stability"),
        whole,
        verdict,
    )


def largest_effects(events: Sequence[Any]) -> dict[str, float]:
    """The larger of each node's two effects, from the run's journal."""
    effects: Any = next(
        (event["state"]["effects"] for event in reversed(events) if "state" in event), {}
    )
    return {
        name: max((abs(part["mean"] or 0.0) for part in effect.values() if part), default=0.0)
        for name, effect in effects.items()
    }


def known_models(
    kind: str, folder: Path, most: int
) -> Iterator[tuple[str, Backend, Task, NodeSet]]:
    """Name, model, task and truth."""
    if kind == "by hand":
        for name in sorted(KNOWN_CIRCUITS):
            model = load_model(build_known_circuit(name).save(folder / name))
            truth = frozenset(map(Node.parse, load_truth(name, "resample").nodes))
            yield name, model, load_task(folder / name / "task.jsonl", model, pairs=PAIRS), truth
        return
    chosen = [
        program
        for program in load_programs()
        if (program.seed >= FIRST_FRESH_SEED) == (kind == "fresh programs")
    ]
    for program in chosen[:most]:
        place = program.known_circuit.save(folder / program.known_circuit.name)
        model = load_model(place)
        yield (
            program.known_circuit.name,
            model,
            load_task(place / "task.jsonl", model, pairs=PAIRS),
            frozenset(map(Node.parse, program.truth)),
        )


def seeds_of_kind(kind: str) -> tuple[int, ...]:
    """The seeds of the trained models of a kind."""
    return FRESH_SEEDS if kind == "fresh trained" else DEVELOPMENT_SEEDS


def measure_regrets(
    model: Backend, task: Task, circuits: Sequence[NodeSet], best: Sequence[NodeSet]
) -> list[float]:
    """By how much each circuit's |1 − f|, the larger of both ablations', is beyond the least of the optima's; 0 where it is not."""
    bench = new_evaluator(model, task)
    sets = [*circuits, *best]
    distances = (
        torch.stack(
            [(1 - bench.f(ablation)(sets, "regret")).abs() for ablation in EVIDENCE_ABLATIONS]
        )
        .amax(0)
        .tolist()
    )
    return [max(0.0, own - min(distances[len(circuits) :])) for own in distances[: len(circuits)]]


def compare_with_truth(kind: str, folder: Path, most: int, published: Mapping[str, Any]) -> str:
    """The table of models whose circuits are known."""
    tallies: dict[str, MethodScores] = defaultdict(MethodScores)
    for name, model, task, truth in known_models(kind, folder, most):
        for method, answer in run_methods(
            model, task, folder, published_methods(published, name, model, task)
        ):
            tallies[method].add(name, answer, [truth])
        print(kind, name, file=sys.stderr, flush=True)
    rows = (tally.format_row(method) for method, tally in tallies.items())
    return f"\n{kind}\n\n{format_header(*COLUMNS, *COSTS)}{''.join(rows)}{format_list(tallies[OURS].mistakes)}"


def compare_with_optimum(
    kind: str, folder: Path, models: Path, most: int, published: Mapping[str, Any]
) -> str:
    """The table of trained models."""
    tallies: dict[str, MethodScores] = defaultdict(MethodScores)
    more: dict[str, list[tuple[bool, int, int, float]]] = defaultdict(
        list
    )  # passes, nodes that differ, nodes beyond, regret
    notes = []
    for name, model, task in iterate_trained_cases(models, seeds_of_kind(kind)[:most]):
        passing = measure_all_subsets(model, task.discovery).passing_sets()
        best = find_smallest(passing)
        if not best:
            notes.append(f"{name}: no set meets (a) to (d)")
            continue
        found = dict(
            run_methods(model, task, folder, published_methods(published, name, model, task))
        )
        circuits = [answer.circuit for answer in found.values()]
        for (method, answer), regret in zip(
            found.items(), measure_regrets(model, task.heldout, circuits, best), strict=True
        ):
            nearest = tallies[method].add(name, answer, best)
            beyond = len(answer.circuit) - len(nearest)
            more[method].append(
                (answer.circuit in passing, len(nearest ^ answer.circuit), beyond, regret)
            )
        print(kind, name, file=sys.stderr, flush=True)
    columns = (*COLUMNS, "meets (a) to (d)", "nodes that differ", "nodes beyond", "regret", *COSTS)
    rows = []
    for method, tally in tallies.items():
        meets, apart, beyond, regret = map(mean, zip(*more[method], strict=True))
        rows.append(
            tally.format_row(
                method, f"{meets:.3f}", f"{apart:.2f}", f"{beyond:+.2f}", f"{regret:.3f}"
            )
        )
    return f"\n{kind}\n\n{format_header(*columns)}{''.join(rows)}{format_list([*tallies[OURS].mistakes, *notes])}"


def format_list(lines: Iterable[str]) -> str:
    """As a Markdown list."""
    return "".join(f"- {line}\n" for line in lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=KINDS, action="append", help="one kind of models (again for more)"
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
        help="what benchmarks/methods/auto_circuit_scores.py printed: the rows of its methods too",
    )
    chosen = parser.parse_args()
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        models = chosen.models or folder
        published = json.loads(chosen.published.read_text()) if chosen.published else {}
        for kind in chosen.only or KINDS:
            if chosen.export is not None:
                made_known = (case[:3] for case in known_models(kind, folder, chosen.programs))
                export_cases(
                    chosen.export,
                    iterate_trained_cases(models, seeds_of_kind(kind)[: chosen.trained])
                    if kind in TRAINED_KINDS
                    else made_known,
                )
                continue
            if kind in TRAINED_KINDS:
                out.write(compare_with_optimum(kind, folder, models, chosen.trained, published))
            else:
                out.write(compare_with_truth(kind, folder, chosen.programs, published))
            out.flush()


if __name__ == "__main__":
    main()
