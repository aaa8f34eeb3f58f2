"""Ours against the field, on models whose circuits are known: `python -m benchmarks.recovery [--models DIR] [--published FILE]`

The models written by hand, random programs compiled to weights (`tests/handbuilt/programs.py`), and small trained ones, which are scored by
regret against the brute-force optimum. Every method gets the same discovery pairs, metric and ablations. Prints Markdown: precision,
recall, the share of circuits found exactly with its Clopper–Pearson interval, how often the truth is a prefix of the ranking (what the best
threshold could find), ROC AUC of the ranking, forward-pass equivalents.
`benchmarks.published` says how to add the methods of `auto-circuit`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import binomtest

from benchmarks.rivals import RIVALS, Scores, prefixes, run
from benchmarks.subsets import Table, smallest, tabulate
from benchmarks.table import header
from benchmarks.trained import add_models, cases
from discovery import discover, load_model, load_task
from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.evaluation import Bench
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.store import open_run
from discovery.tasks.task import Task
from tests.handbuilt.models import CASES, build
from tests.handbuilt.programs import stored
from tests.handbuilt.truth import known

PAIRS = 240
OURS = "Circuit Scout"


@dataclass(frozen=True)
class Answer:
    """One method on one model."""

    circuit: NodeSet
    scores: Mapping[Node, float]
    forward_equivalents: float
    verdict: str = ""


def answers(model: Backend, task: Task, folder: Path, published: Mapping[str, Any] | None) -> dict[str, Answer]:
    """Every method's answer on the task's discovery pairs; only the published ones' where there are any."""
    found = {OURS: ours(model, task, folder)} if published is None else {}
    rivals = RIVALS if published is None else {name: scored(answer) for name, answer in published.items()}
    known = fresh(model, task)
    for name, rival in rivals.items():
        made = run(rival, fresh(model, task), known)
        found[name] = Answer(made.circuit, made.scores, made.forward_equivalents)
    return found


def fresh(model: Backend, task: Task) -> Bench:
    """A bench that has measured nothing yet."""
    return Bench.of(model, task.discovery, "all", 0, metric=None, memory=None, meter=Meter())


def scored(answer: Mapping[str, Any]) -> Callable[[Bench], Scores]:
    """A rival whose scores were computed elsewhere, at the cost that they had there."""

    def rival(bench: Bench) -> Scores:
        bench.engine.meter.spent += answer["forward_equivalents"]
        return {node: answer["scores"].get(str(node), 0.0) for node in bench.engine.backend.info.nodes()}

    return rival


def export(folder: Path, cases_of: Iterable[tuple[str, Backend, Task]]) -> None:
    """Every model with its discovery pairs as token ids, for methods that run elsewhere."""
    for name, model, task in cases_of:
        place = folder / name.replace(" ", "-")
        shutil.copytree(model.info.source, place)
        pairs = [{"clean": p.clean, "corrupted": p.corrupted, "answer": p.answer, "wrong": p.wrong} for p in task.discovery.pairs]
        (place / "pairs.json").write_text(json.dumps(pairs))


def ours(model: Backend, task: Task, folder: Path) -> Answer:
    """A discovery; its ranking is by inclusion frequency, then by |effect|."""
    done = discover(model, task, runs_dir=folder / "runs")
    stability: Any = done.circuit.evaluation.tests.get("stability") or {}
    inclusion, size = stability.get("inclusion", {}), effects_of(open_run(folder / "runs", done.run_id).events())
    largest = max(size.values(), default=0.0) or 1.0
    scores = {node: inclusion.get(str(node), 0.0) + 1e-3 * size.get(str(node), 0.0) / largest for node in model.info.nodes()}
    return Answer(frozenset(done.circuit.members), scores, done.circuit.cost.forward_equivalents or 0.0, str(done.circuit.verdict))


def effects_of(events: Sequence[Any]) -> dict[str, float]:
    """The larger of each node's two effects, from the run's journal."""
    effects: Any = next((event["state"]["effects"] for event in reversed(events) if "state" in event), {})
    return {name: max((abs(part["mean"] or 0.0) for part in effect.values() if part), default=0.0) for name, effect in effects.items()}


def auc(scores: Mapping[Node, float], truth: NodeSet) -> float | None:
    """Chance that a true node ranks above a false one; ties count one half."""
    inside, outside = [scores[n] for n in scores if n in truth], [scores[n] for n in scores if n not in truth]
    if not inside or not outside:
        return None
    return mean((a > b) + 0.5 * (a == b) for a in inside for b in outside)


class Tally:
    """What a method got right."""

    def __init__(self) -> None:
        self.precision: list[float] = []
        self.recall: list[float] = []
        self.exact: list[bool] = []
        self.auc: list[float] = []
        self.cost: list[float] = []
        self.within: list[bool] = []
        self.missed: list[str] = []

    def add(self, name: str, answer: Answer, truth: NodeSet) -> None:
        """One model."""
        both = len(answer.circuit & truth)
        self.precision.append(both / len(answer.circuit) if answer.circuit else 0.0)
        self.recall.append(both / len(truth))
        self.exact.append(answer.circuit == truth)
        area = auc(answer.scores, truth)
        self.auc += [] if area is None else [area]
        self.cost.append(answer.forward_equivalents)
        self.within.append(truth in prefixes(answer.scores))
        if answer.circuit != truth:
            missing, beside = sorted(map(str, truth - answer.circuit)), sorted(map(str, answer.circuit - truth))
            self.missed.append(f"{name} ({answer.verdict}): missing {missing}, beside it {beside}")

    def row(self, method: str) -> str:
        """One line of the table."""
        low, high = binomtest(sum(self.exact), len(self.exact)).proportion_ci(0.95, "exact")
        share = f"{mean(self.exact):.3f} ({low:.3f}–{high:.3f})"
        return (
            f"| {method} | {mean(self.precision):.3f} | {mean(self.recall):.3f} | {share} | {mean(self.within):.3f} | "
            f"{mean(self.auc):.3f} | {mean(self.cost):,.0f} |"
        )


def known_models(folder: Path, programs: int) -> Iterator[tuple[str, str, Backend, Task, NodeSet]]:
    """Kind, name, model, task and truth."""
    for name in sorted(CASES):
        model = load_model(build(name).save(folder / name))
        truth = frozenset(map(Node.parse, known(name, "resample").nodes))
        yield "by hand", name, model, load_task(folder / name / "task.jsonl", model, pairs=PAIRS), truth
    for program in islice(stored(), programs):
        place = program.case.save(folder / program.case.name)
        model = load_model(place)
        truth = frozenset(map(Node.parse, program.truth))
        yield "programs", program.case.name, model, load_task(place / "task.jsonl", model, pairs=PAIRS), truth


def regret(table: Table, circuit: NodeSet, passing: list[NodeSet]) -> tuple[int, float]:
    """Nodes that differ from the nearest smallest circuit that passes, and by how much |1 − f| is larger than the best of these."""
    best = smallest(passing)
    return min(len(made ^ circuit) for made in best), table.distance(circuit) - min(table.distance(made) for made in best)


def against_truth(folder: Path, programs: int, published: Mapping[str, Any] | None) -> str:
    """The tables of the models whose circuits are known."""
    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    for kind, name, model, task, truth in known_models(folder, programs):
        for method, answer in answers(model, task, folder, published and published[name]).items():
            tallies[kind][method].add(name, answer, truth)
        print(kind, name, file=sys.stderr, flush=True)
    columns = header("method", "precision", "recall", "exactly (95%)", "truth is a prefix", "AUC", "forward-pass equivalents")
    text = ""
    for kind, by_method in tallies.items():
        text += f"\n{kind}, {max(len(tally.exact) for tally in by_method.values())} models\n\n{columns}"
        text += "".join(f"{tally.row(method)}\n" for method, tally in by_method.items())
        text += "".join(f"- {line}\n" for line in by_method[OURS].missed) if OURS in by_method else ""
    return text


def against_optimum(folder: Path, models: Path, published: Mapping[str, Any] | None) -> str:
    """The table of the trained models."""
    regrets: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for name, model, task in cases(models):
        table, held = tabulate(model, task.discovery), tabulate(model, task.heldout)
        passing = table.passing()
        for method, answer in answers(model, task, folder, published and published[name.replace(" ", "-")]).items() if passing else ():
            regrets[method].append(regret(held, answer.circuit, passing))
        print("trained", name, "" if passing else "left out: no set meets (a) to (d)", file=sys.stderr, flush=True)
    columns = ("method", "models", "nodes that differ from the nearest optimum", "abs(1 − f) beyond the best optimum's, held-out")
    rows = [
        f"| {method} | {len(values)} | {mean(n for n, _ in values):.2f} | {mean(d for _, d in values):+.3f} |\n"
        for method, values in regrets.items()
    ]
    return f"\ntrained\n\n{header(*columns)}{''.join(rows)}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=10**6, help="how many of the random programs (all that are stored)")
    parser.add_argument("--only", choices=("known", "trained"), help="one of the two parts")
    add_models(parser)
    parser.add_argument("--export", type=Path, help="only write every model with its discovery pairs into this folder")
    parser.add_argument("--published", type=Path, help="the rows of the methods whose scores benchmarks/published.py computed, alone")
    chosen = parser.parse_args()
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        models = chosen.models or folder
        published = json.loads(chosen.published.read_text()) if chosen.published else None
        if chosen.only != "trained":
            if chosen.export is not None:
                export(chosen.export, ((name, model, task) for _, name, model, task, _ in known_models(folder, chosen.programs)))
            else:
                out.write(against_truth(folder, chosen.programs, published))
                out.flush()
        if chosen.only != "known":
            if chosen.export is not None:
                export(chosen.export, cases(models))
            else:
                out.write(against_optimum(folder, models, published))


if __name__ == "__main__":
    main()
