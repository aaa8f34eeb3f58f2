"""What it gives, and what it costs, to choose circuits with a distance to the bounds.

    python -m benchmarks.circuits.margins run --models DIR [--out DIR]
    python -m benchmarks.circuits.margins table [--out DIR]

A circuit is chosen on discovery pairs and judged on others. The search keeps a margin to each bound
(`discovery.agent.search.fit`). Here each case is run twice, with that margin and without it. A case
is a model of the folder with a built-in task that it does. Models whose directory is named with
"free" or "wide" were trained without the penalty that keeps idle nodes silent.

A case has a known passing set if one of its two circuits is verified, or if brute force finds a set
that meets (a) to (d) as point values both on discovery and on held-out pairs. Models of more than
16 nodes have too many subsets for brute force. `run` stores one line for each run and goes on where
it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args
from unittest import mock

from scipy.stats import binomtest

from benchmarks.known_circuits.subsets import MAX_NODES, measure_all_subsets
from benchmarks.known_circuits.trained import does_task
from benchmarks.output import format_header, format_row, open_output, print_progress
from benchmarks.scale.results import append_line, read_lines
from discovery import discover, load_model, load_task
from discovery.agent.search.fit import PLAIN, WITH_MARGIN, Bounds
from discovery.backends.base import Backend
from discovery.tasks import BUNDLED_TASKS
from discovery.tasks.task import Task

Margin = Literal["with", "without"]
RESULTS_FILE = "results.jsonl"
DEFAULT_FOLDER = Path("runs/margins")
UNPENALISED = ("free", "wide")
SMALL = 1e-6  # shares of a margin are divided by its width, so that it cannot be 0
NO_MARGIN = Bounds(
    faithfulness=(PLAIN.faithfulness[0] + SMALL, PLAIN.faithfulness[1] - SMALL),
    knockout=PLAIN.knockout - SMALL,
    gap_in=PLAIN.gap_in - SMALL,
    gap_out=PLAIN.gap_out - SMALL,
    drop_share=PLAIN.drop_share + SMALL,
)
COLUMNS = (
    "models",
    "cases",
    "known to pass",
    "margin",
    "verified",
    "of those known to pass",
    "95% interval",
    "nodes, mean",
)


@dataclass(frozen=True, kw_only=True)
class MarginResult:
    """One run.

    Attributes:
        model, task: the case.
        n_nodes: heads and MLPs of the model.
        margin: whether the search kept a margin.
        verdict, reasons: of the record.
        size: nodes of the circuit.
        forward_equivalents: of the whole run.
        n_passing: the sets that pass on both splits, by brute force; None if that is impossible.
    """

    model: str
    task: str
    n_nodes: int
    margin: Margin
    verdict: str
    reasons: tuple[str, ...]
    size: int
    forward_equivalents: float
    n_passing: int | None

    @property
    def case(self) -> tuple[str, str]:
        """What identifies the case."""
        return self.model, self.task

    @property
    def is_penalised(self) -> bool:
        """Whether the model was trained with the penalty."""
        return not any(word in self.model for word in UNPENALISED)


@contextmanager
def use_margin(margin: Margin) -> Iterator[None]:
    """Let the search keep its margin, or none, inside a `with` block."""
    if margin == "with":
        yield
        return
    holders = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("discovery.agent.") and getattr(module, "WITH_MARGIN", 0) is WITH_MARGIN
    ]
    patches = [mock.patch.object(module, "WITH_MARGIN", NO_MARGIN) for module in holders]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def run_cases(models: Path, folder: Path) -> None:
    """Run every case that the folder does not hold yet, and store one line for each run."""
    done = {(*result.case, result.margin) for result in load_results(folder)}
    for directory in sorted(path.parent for path in models.glob("*/model.safetensors")):
        for task_name in BUNDLED_TASKS:
            missing = [
                margin
                for margin in get_args(Margin)
                if (directory.name, task_name, margin) not in done
            ]
            if missing:
                _run_case(directory, task_name, missing, folder)


def _run_case(directory: Path, task_name: str, margins: Sequence[Margin], folder: Path) -> None:
    model = load_model(directory)
    task = load_task(task_name, model)
    if not does_task(model, task):
        return
    n_passing = count_passing_sets(model, task)
    for margin in margins:
        with tempfile.TemporaryDirectory() as runs_dir, use_margin(margin):
            circuit = discover(model, task, runs_dir=runs_dir).circuit
        result = MarginResult(
            model=directory.name,
            task=task_name,
            n_nodes=len(model.info.nodes()),
            margin=margin,
            verdict=str(circuit.verdict),
            reasons=circuit.reasons,
            size=circuit.size,
            forward_equivalents=circuit.cost.forward_equivalents or 0.0,
            n_passing=n_passing,
        )
        append_line(folder / RESULTS_FILE, asdict(result))
        print_progress(directory.name, task_name, margin, "margin:", circuit.verdict, circuit.size)


def count_passing_sets(model: Backend, task: Task) -> int | None:
    """Count the sets that meet (a) to (d) as point values on both splits.

    Returns:
        The number; None if the model has too many nodes.
    """
    if len(model.info.nodes()) > MAX_NODES:
        return None
    by_split = [
        set(measure_all_subsets(model, split).passing_sets())
        for split in (task.discovery, task.heldout)
    ]
    return len(set.intersection(*by_split))


def load_results(folder: Path) -> list[MarginResult]:
    """Load the results in a folder. A line that was cut off by an interruption is left out."""
    return [
        MarginResult(**{**line, "reasons": tuple(line["reasons"])})
        for line in read_lines(folder / RESULTS_FILE)
    ]


def find_known(results: Sequence[MarginResult]) -> set[tuple[str, str]]:
    """Return the cases of which a passing set is known."""
    return {result.case for result in results if result.n_passing or result.verdict == "verified"}


def format_results(results: Sequence[MarginResult]) -> Iterator[str]:
    """Yield the table: for each kind of model, with the margin and without it."""
    yield format_header(*COLUMNS)
    groups = {
        "with the penalty": [r for r in results if r.is_penalised],
        "without it, 10 nodes": [
            r for r in results if not r.is_penalised and r.n_passing is not None
        ],
        "without it, larger": [r for r in results if not r.is_penalised and r.n_passing is None],
        "all": list(results),
    }
    for name, group in groups.items():
        known = find_known(group)
        for margin in get_args(Margin):
            part = [result for result in group if result.margin == margin]
            if part:
                yield _format_row(name, margin, part, known)


def _format_row(
    name: str, margin: Margin, part: Sequence[MarginResult], known: set[tuple[str, str]]
) -> str:
    verified = [result for result in part if result.verdict == "verified"]
    n_known = sum(result.case in known for result in part)
    share, interval = "–", "–"
    if n_known:
        bounds = binomtest(len(verified), n_known).proportion_ci(0.95, "exact")
        share = f"{len(verified) / n_known:.0%}"
        interval = f"{bounds.low:.0%} to {bounds.high:.0%}"
    mean_size = sum(result.size for result in part) / len(part)
    return format_row(
        name,
        len(part),
        n_known,
        margin,
        f"{len(verified)} ({len(verified) / len(part):.0%})",
        share,
        interval,
        f"{mean_size:.1f}",
    )


def main(words: list[str] | None = None) -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="the results")
        if name == "run":
            command.add_argument("--models", type=Path, required=True, help="trained models")
    arguments = parser.parse_args(words)
    if arguments.command == "run":
        run_cases(arguments.models, arguments.out)
        return
    results = load_results(arguments.out)
    if not results:
        sys.exit(f"{arguments.out} holds no results. Make them with the command `run`.")
    with open_output() as output:
        for line in format_results(results):
            output.write(line)


if __name__ == "__main__":
    main()
