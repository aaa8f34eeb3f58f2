"""What a run is estimated to take against what it takes: before it begins, and while it works.

    python -m benchmarks.performance.estimates
    python -m benchmarks.performance.estimates bundled:ioi ~/models/smollm2:ioi

Each argument is MODEL:TASK; without arguments these are the hand-built models and the bundled one.
Prints a Markdown table with a row for each run: estimated divided by actual, for the work and for
the time, before the run and at each of its plans (after the check, the candidate and the circuit).
The last line counts the ratios within a factor of 1.5. Ratios of time only mean something on a
machine that does nothing else meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.output import Output, format_header, format_row, open_output
from discovery import discover, load_model, load_task
from discovery.agent import estimate_cost
from discovery.backends.base import Backend
from discovery.store import open_run
from discovery.tasks import BUNDLED_TASKS
from discovery.tasks.task import Task

PAIRS = 240
ALLOWED_FACTOR = 1.5
COLUMNS = ("run", "when", "estimated work", "actual work", "work ratio", "time ratio")


@dataclass(frozen=True, kw_only=True)
class RunPrediction:
    """One prediction of what a whole run takes.

    Attributes:
        when: when it was made.
        work: the forward-pass equivalents of the whole run.
        seconds: the seconds of the whole run.
    """

    when: str
    work: float
    seconds: float


def within_factor(ratio: float, factor: float = ALLOWED_FACTOR) -> bool:
    """Return whether an estimate is right up to a factor, in either direction."""
    return 1 / factor <= ratio <= factor


def predict(model: Backend, task: Task, folder: Path) -> tuple[list[RunPrediction], float, float]:
    """Run a discovery, and return every prediction with the actual work and seconds."""
    before = estimate_cost(model, task)
    predictions = [
        RunPrediction(when="before", work=before.forward_equivalents, seconds=before.seconds)
    ]
    run = discover(model, task, runs_dir=folder)
    names = iter(("after check", "after candidate", "after mend"))
    for event in open_run(folder, run.run_id).events():
        if event["kind"] == "plan":
            measured = event["measured"]
            predictions.append(
                RunPrediction(
                    when=next(names),
                    work=event["forward_equivalents"] + measured["forward_equivalents_left"],
                    seconds=event["state"]["seconds"] + measured["seconds_left"],
                )
            )
    cost = run.circuit.cost
    assert cost.forward_equivalents is not None
    assert cost.seconds is not None
    return predictions, cost.forward_equivalents, cost.seconds


def open_cases(words: list[str], folder: Path) -> Iterator[tuple[str, Backend, Task]]:
    """Yield the name, model and task of every run."""
    for word in words:
        source, _, name = word.rpartition(":")
        model = load_model(source)
        yield word, model, load_task(name, model)
    if words:
        return
    for name in sorted(KNOWN_CIRCUITS):
        model, task = build_known_circuit(name).load(folder / name, PAIRS)
        yield name, model, task
    bundled = load_model("bundled")
    for name in BUNDLED_TASKS:
        yield f"bundled:{name}", bundled, load_task(name, bundled)


def write_case(output: Output, name: str, model: Backend, task: Task) -> list[tuple[float, float]]:
    """Write the rows of one run, and return its ratios of work and of time."""
    predictions, work, seconds = predict(model, task, output.folder / "runs")
    ratios = []
    for prediction in predictions:
        ratio = (prediction.work / work, prediction.seconds / seconds)
        ratios.append(ratio)
        row = (f"{prediction.work:,.0f}", f"{work:,.0f}", f"{ratio[0]:.2f}", f"{ratio[1]:.2f}")
        output.write(format_row(name, prediction.when, *row))
    return ratios


def main(words: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", metavar="MODEL:TASK", nargs="*")
    arguments = parser.parse_args(words)
    with open_output() as output:
        output.write(format_header(*COLUMNS))
        ratios = [
            ratio
            for name, model, task in open_cases(arguments.cases, output.folder)
            for ratio in write_case(output, name, model, task)
        ]
        for number, kind in enumerate(("work", "time")):
            n_right = sum(within_factor(ratio[number]) for ratio in ratios)
            output.write(f"\n{kind}: {n_right} of {len(ratios)} within {ALLOWED_FACTOR}\n")


if __name__ == "__main__":
    main()
