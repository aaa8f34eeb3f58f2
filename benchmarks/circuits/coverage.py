"""Do 95% intervals hold the true value in 95 of 100 cases?

    python -m benchmarks.circuits.coverage [--tasks NAME …] [--references N] [--samples N] …

A finite population of pairs of the bundled model is measured, so that f(C) and f(U∖C) are known
exactly. Samples of 48 and of 200 pairs are then drawn as a task is (each template with its share),
and each sample gets the interval that a verdict would use.

For mean ablation the true value is f with the population's means, which are taken over many fresh
prompts of each template and token count. The intervals are first those of samples with the same
means, and then, as in a verdict, with means over 52 reference prompts. For these rows the reference
prompts are drawn again and again, each time by another seed, and the samples are divided among the
draws. An interval describes f given its means. So these rows show whether 52 prompts are enough
that this can be neglected. The last column is the standard deviation of the population's f over the
draws of the reference prompts. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.methods.evaluator import as_one_split, new_evaluator
from benchmarks.output import format_header, format_row, open_output
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.graph import EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.methods.statistics import Interval, Resamples, interval_of_ratio
from discovery.sites import Node
from discovery.tasks import BUILTIN
from discovery.tasks.builtin.reference import DrawnReference
from discovery.tasks.reference import REFERENCE_PROMPTS
from discovery.tasks.task import EncodedPair, Task

# For each task the circuit that `discover` found, and a part of it whose f is far from 0 and 1.
CIRCUITS = {
    "ioi": ("a0.h3 m0 a1.h0 a1.h3 a2.h0 m2 m3", "a0.h3 m0 a1.h0 a2.h0 m3"),
    "agreement": ("a0.h0 a0.h2 m0 m1 a2.h0 a2.h2 m2 a3.h2 m3", "a0.h0 m0 a2.h0 m2 a3.h2 m3"),
}
POPULATION_SIZE = 2400
POPULATION_REFERENCE = 20 * REFERENCE_PROMPTS  # prompts of each template for the population's means
N_SAMPLES = 2000
N_REFERENCES = 40  # draws of the reference prompts
SAMPLE_SIZES = (48, 200)
FIRST_SEED = 1000  # of the draws; tasks of the tests have smaller ones
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
    "sd of f over draws",
)
IntervalsByDraw = list[list[Interval]]  # [draw][set]


@dataclass(frozen=True)
class MeasuredPopulation:
    """The numerators and the denominator of f, for every pair of the population.

    Attributes:
        above: m(S) − m(∅) of each set, [set pair].
        below: m(U) − m(∅), [pair].
    """

    above: Float[Tensor, "set pair"]
    below: Float[Tensor, "pair"]

    @property
    def values(self) -> list[float]:
        """f of each set."""
        values: list[float] = (self.above.mean(1) / self.below.mean()).tolist()
        return values


@dataclass(frozen=True)
class SampleCounts:
    """How much is drawn.

    Attributes:
        references: draws of the reference prompts.
        samples: samples of pairs for each row.
        population_prompts: prompts of each template for the population's means.
    """

    references: int
    samples: int
    population_prompts: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=CIRCUITS, default=list(CIRCUITS))
    parser.add_argument("--population", type=int, default=POPULATION_SIZE)
    parser.add_argument("--references", type=int, default=N_REFERENCES)
    parser.add_argument("--samples", type=int, default=N_SAMPLES)
    parser.add_argument(
        "--prompts",
        type=int,
        default=POPULATION_REFERENCE,
        help="prompts of each template for the population's means",
    )
    arguments = parser.parse_args()
    counts = SampleCounts(arguments.references, arguments.samples, arguments.prompts)
    with open_output() as output:
        model = load_model("bundled")
        output.write(format_header(*COLUMNS))
        for name in arguments.tasks:
            task = load_task(name, model, pairs=arguments.population)
            for rows in measure_task(model, task, counts):
                output.write(rows)


def measure_task(model: Backend, task: Task, counts: SampleCounts) -> Iterator[str]:
    """Yield a task's rows, those of one source of means at a time."""
    evaluator = new_evaluator(model, as_one_split(task, task.pairs))
    population = evaluator.engine.task
    sets = sets_by_label(CIRCUITS[task.name], frozenset(model.info.nodes()))

    def measure(ablation: EvidenceAblation, seed: int, per_group: int) -> MeasuredPopulation:
        source = draw_reference(model, population, seed, per_group)
        return measure_population(
            model, replace(population, reference=source), ablation, list(sets.values())
        )

    resample = measure("resample", FIRST_SEED, REFERENCE_PROMPTS)
    true_mean = measure("mean", FIRST_SEED, counts.population_prompts)
    draws = [
        measure("mean", FIRST_SEED + 1 + draw, REFERENCE_PROMPTS)
        for draw in range(counts.references)
    ]
    for ablation, source, truth, measured in (
        ("resample", "–", resample, [resample]),
        ("mean", "the population", true_mean, [true_mean]),
        ("mean", f"{REFERENCE_PROMPTS} prompts", true_mean, draws),
    ):
        for n_pairs in SAMPLE_SIZES:
            intervals = intervals_of_samples(population, measured, n_pairs, counts.samples)
            rows = []
            for index, (label, true_value) in enumerate(zip(sets, truth.values, strict=True)):
                facts = (f"{task.name}, {len(task)} pairs", label, ablation, source)
                own_intervals = [intervals_of_draw[index] for intervals_of_draw in intervals]
                scores = format_coverage(true_value, n_pairs, own_intervals)
                values = [each.values[index] for each in measured]
                spread = f"{stdev(values):.3f}" if len(values) > 1 else "–"
                rows.append(format_row(*facts, *scores, spread))
            yield "".join(rows)


def draw_reference(model: Backend, task: Task, seed: int, per_group: int) -> DrawnReference:
    """Return fresh reference prompts of a built-in task, so many of each group."""
    assert model.tokenizer is not None
    source = DrawnReference(BUILTIN[task.name], model.tokenizer, seed, task.pairs)
    source.per_group = per_group
    return source


def measure_population(
    model: Backend, task: Task, ablation: EvidenceAblation, sets: Sequence[NodeSet]
) -> MeasuredPopulation:
    """Measure f of some sets on every pair, with the means of the task's reference prompts."""
    f = new_evaluator(model, task).f(ablation)
    above = f.set_metric(sets).double().cpu() - f.empty
    order = {pair: place for place, pair in enumerate(map(pair_key, f.engine.task.pairs))}
    places = [order[pair_key(pair)] for pair in task.pairs]
    return MeasuredPopulation(above[:, places], (f.full - f.empty)[places])


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


def pair_key(pair: EncodedPair) -> tuple[object, ...]:
    """Return what tells a pair of the population from the others."""
    return pair.clean, pair.corrupted, pair.answer, pair.wrong


def intervals_of_samples(
    task: Task, measured: Sequence[MeasuredPopulation], n: int, n_samples: int
) -> IntervalsByDraw:
    """Return the intervals of samples of n pairs, which are divided among several measurements.

    Args:
        task: the population, in the order of the measurements.
        measured: the population with one draw of the reference prompts each.
        n: the number of pairs in a sample.
        n_samples: the number of samples, all measurements together.
    """
    intervals = []
    for draw, indices in enumerate(draw_samples(task, n, n_samples, with_replacement=True)):
        population = measured[draw % len(measured)]
        sample = as_one_split(task, [task.pairs[i] for i in indices.tolist()])
        resamples = Resamples.of(sample, seed=draw)
        below = population.below[indices]
        intervals.append(
            [interval_of_ratio(row[indices], below, resamples)[0] for row in population.above]
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
