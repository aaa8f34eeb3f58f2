"""Do 95% intervals hold the true value in 95 of 100 cases?

    python -m benchmarks.coverage

A finite population of pairs of the bundled model is measured, so that f(C) and f(U∖C) are known
exactly. Samples of 48 and of 200 pairs are then drawn as a task is (each template with its share),
and each sample gets the interval that a verdict would use.

For mean ablation the means are first those of the population, and then, as in a verdict, each
sample's own. The second is another quantity, since a few prompts give another mean. Prints a
Markdown table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

import torch
from torch import Tensor

from benchmarks.methods.evaluator import as_one_split, new_evaluator
from benchmarks.output import format_header, format_row, open_output
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import NodeSet
from discovery.methods.statistics import Interval, Resamples, interval_of_ratio
from discovery.sites import Node
from discovery.tasks.task import Task

# For each task the circuit that `discover` found, and a part of it whose f is far from 0 and 1.
CIRCUITS = {
    "ioi": ("a0.h3 m0 a1.h0 a1.h3 a2.h0 m2 m3", "a0.h3 m0 a1.h0 a2.h0 m3"),
    "agreement": ("a0.h0 a0.h2 m0 m1 a2.h0 a2.h2 m2 a3.h2 m3", "a0.h0 m0 a2.h0 m2 a3.h2 m3"),
}
POPULATION_SIZE = 2400
N_SAMPLES = 2000
N_MEASURED_SAMPLES = 100  # fewer, since every sample is measured for itself
SAMPLE_SIZES = (48, 200)
COLUMNS = (
    "task",
    "set",
    "ablation",
    "means of",
    "value",
    "pairs",
    "samples",
    "mean estimate",
    "coverage",
)
IntervalsByDraw = list[list[Interval]]  # [draw][set]


def main() -> None:
    """Print the table."""
    with open_output() as output:
        model = load_model("bundled")
        output.write(format_header(*COLUMNS))
        for name, circuits in CIRCUITS.items():
            for rows in measure_task(model, name, circuits):
                output.write(rows)


def measure_task(model: Backend, name: str, circuits: Sequence[str]) -> Iterator[str]:
    """Yield a task's rows, those of one source of means at a time."""
    task = load_task(name, model, pairs=POPULATION_SIZE)
    evaluator = new_evaluator(model, as_one_split(task, task.pairs))
    population = evaluator.engine.task
    sets = sets_by_label(circuits, evaluator.f("resample").everything)
    node_sets = list(sets.values())
    for ablation in EVIDENCE_ABLATIONS:
        f = evaluator.f(ablation)
        above = f.set_metric(node_sets).double() - f.empty
        below = f.full - f.empty
        true_values = (above.mean(1) / below.mean()).tolist()
        for n_pairs in SAMPLE_SIZES:
            sources = {
                "the population": intervals_with_population_means(population, above, below, n_pairs)
            }
            if ablation == "mean":
                sources["the sample"] = intervals_with_sample_means(
                    model, population, node_sets, n_pairs
                )
            for source, intervals in sources.items():
                rows = []
                for index, (label, true_value) in enumerate(zip(sets, true_values, strict=True)):
                    facts = (f"{name}, {len(task)} pairs", label, ablation, source)
                    own_intervals = [intervals_of_draw[index] for intervals_of_draw in intervals]
                    scores = format_coverage(true_value, n_pairs, own_intervals)
                    rows.append(format_row(*facts, *scores))
                yield "".join(rows)


def sets_by_label(circuits: Sequence[str], everything: NodeSet) -> dict[str, NodeSet]:
    """Return each circuit and its complement."""
    sets = {}
    for names in circuits:
        circuit = frozenset(map(Node.parse, names.split()))
        sets[f"C of {len(circuit)}"] = circuit
        sets[f"U∖C of {len(circuit)}"] = everything - circuit
    return sets


def format_coverage(
    true_value: float, n_pairs: int, intervals: Sequence[Interval]
) -> tuple[object, ...]:
    """Return the last five cells of a row."""
    coverage = mean(interval.low <= true_value <= interval.high for interval in intervals)
    estimate = mean(interval.mean for interval in intervals)
    return f"{true_value:.3f}", n_pairs, len(intervals), f"{estimate:.3f}", f"{coverage:.1%}"


def intervals_with_population_means(
    task: Task, above: Tensor, below: Tensor, n: int
) -> IntervalsByDraw:
    """Return the intervals of many samples of n pairs, whose metrics were measured before.

    Args:
        task: the population.
        above: the numerators of f, [set pair].
        below: the denominator of f, [pair].
        n: the number of pairs in a sample.
    """
    intervals = []
    for draw, indices in enumerate(draw_samples(task, n, N_SAMPLES, with_replacement=True)):
        sample = as_one_split(task, [task.pairs[i] for i in indices.tolist()])
        resamples = Resamples.of(sample, seed=draw)
        intervals.append(
            [interval_of_ratio(row[indices], below[indices], resamples)[0] for row in above]
        )
    return intervals


def intervals_with_sample_means(
    model: Backend, task: Task, sets: Sequence[NodeSet], n: int
) -> IntervalsByDraw:
    """Return the intervals under mean ablation of samples measured with their own means."""
    intervals = []
    for indices in draw_samples(task, n, N_MEASURED_SAMPLES, with_replacement=False):
        sample = as_one_split(task, [task.pairs[i] for i in indices.tolist()])
        f = new_evaluator(model, sample).f("mean")
        below = f.full - f.empty
        intervals.append(
            [interval_of_ratio(row - f.empty, below, f.resamples)[0] for row in f.set_metric(sets)]
        )
    return intervals


def draw_samples(task: Task, n: int, draws: int, *, with_replacement: bool) -> Iterator[Tensor]:
    """Draw samples of n pairs, each template with its share, and yield the indices of the pairs.

    With replacement, the population stands for an endless one.
    """
    templates = [pair.template for pair in task.pairs]
    groups = [
        torch.tensor([index for index, template in enumerate(templates) if template == name])
        for name in sorted(set(templates))
    ]
    generator = torch.Generator().manual_seed(0)
    sizes = divide_proportionally([len(group) for group in groups], n)
    for _ in range(draws):
        picks = [
            torch.randint(len(group), (size,), generator=generator)
            if with_replacement
            else torch.randperm(len(group), generator=generator)[:size]
            for group, size in zip(groups, sizes, strict=True)
        ]
        yield torch.cat([group[pick] for group, pick in zip(groups, picks, strict=True)])


def divide_proportionally(counts: Sequence[int], n: int) -> list[int]:
    """Divide n in the proportions of `counts`. The largest remainders are rounded up."""
    exact = [n * count / sum(counts) for count in counts]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(counts)), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: n - sum(shares)]:
        shares[index] += 1
    return shares


if __name__ == "__main__":
    main()
