"""Do 95% intervals hold the true value 95 times of 100? `python -m benchmarks.coverage`

A finite population of pairs of the bundled model, whose f(C) and f(U∖C) are known exactly; samples of 48 and of 200 pairs, drawn as a task
is (each template's share), each with the interval that a verdict would use. The means of mean ablation are those of the population first;
then, as in a verdict, each sample's own: what is measured is then another quantity, since few prompts make another mean. Prints Markdown.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean

import torch

from benchmarks.output import format_header
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.evaluation import SplitEvaluator
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import NodeSet
from discovery.methods.statistics import Interval, Resamples, interval_of_ratio
from discovery.sites import Node
from discovery.tasks.task import EncodedPair, SplitName, Task

CIRCUITS = {  # as found by `discover`, and a part of it, whose f is in the middle
    "ioi": ("a0.h3 m0 a1.h0 a1.h3 a2.h0 m2 m3", "a0.h3 m0 a1.h0 a2.h0 m3"),
    "agreement": ("a0.h0 a0.h2 m0 m1 a2.h0 a2.h2 m2 a3.h2 m3", "a0.h0 m0 a2.h0 m2 a3.h2 m3"),
}
POPULATION_SIZE, N_SAMPLES = 2400, 2000
N_MEASURED_SAMPLES = 100  # a sample that is measured takes passes
SAMPLE_SIZES = (48, 200)


def main() -> None:
    """Print the table."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        model = load_model("bundled")
        out.write(
            format_header(
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
        )
        for name, circuits in CIRCUITS.items():
            task = load_task(name, model, pairs=POPULATION_SIZE)
            bench = SplitEvaluator.of(
                model,
                as_one_split(task, task.pairs),
                "all",
                0,
                metric=None,
                memory=None,
                meter=Meter(),
            )
            sets = {}
            for words in circuits:
                circuit = frozenset(map(Node.parse, words.split()))
                sets[f"C of {len(circuit)}"], sets[f"U∖C of {len(circuit)}"] = (
                    circuit,
                    bench.f("resample").everything - circuit,
                )
            for ablation in EVIDENCE_ABLATIONS:
                f = bench.f(ablation)
                above, below = (
                    (f.set_metric(list(sets.values())).double() - f.empty),
                    f.full - f.empty,
                )
                truths = (above.mean(1) / below.mean()).tolist()
                for n in SAMPLE_SIZES:
                    found = {
                        "the population": (
                            N_SAMPLES,
                            intervals_with_population_means(bench.engine.task, above, below, n),
                        )
                    }
                    if ablation == "mean":
                        found["the sample"] = (
                            N_MEASURED_SAMPLES,
                            intervals_with_sample_means(
                                model, bench.engine.task, list(sets.values()), n
                            ),
                        )
                    for source, (draws, intervals) in found.items():
                        for number, (words, truth) in enumerate(zip(sets, truths, strict=True)):
                            mine = [row[number] for row in intervals]
                            held = mean(interval.low <= truth <= interval.high for interval in mine)
                            middle = mean(interval.mean for interval in mine)
                            row = (
                                f"{name}, {len(task)} pairs",
                                words,
                                ablation,
                                source,
                                f"{truth:.3f}",
                                n,
                                draws,
                                f"{middle:.3f}",
                                f"{held:.1%}",
                            )
                            out.write(f"| {' | '.join(map(str, row))} |\n")
                        out.flush()


def intervals_with_population_means(
    task: Task, above: torch.Tensor, below: torch.Tensor, n: int
) -> list[list[Interval]]:
    """The intervals of many samples, whose metrics are the population's: [draw][set]."""
    found = []
    for draw, chosen in enumerate(draw_samples(task, n, N_SAMPLES, with_replacement=True)):
        resamples = Resamples.of(
            as_one_split(task, [task.pairs[i] for i in chosen.tolist()]), seed=draw
        )
        found.append([interval_of_ratio(row[chosen], below[chosen], resamples)[0] for row in above])
    return found


def intervals_with_sample_means(
    model: Backend, task: Task, sets: Sequence[NodeSet], n: int
) -> list[list[Interval]]:
    """The same by mean ablation, each sample measured for itself, with its own means."""
    found = []
    for chosen in draw_samples(task, n, N_MEASURED_SAMPLES, with_replacement=False):
        sample = as_one_split(task, [task.pairs[i] for i in chosen.tolist()])
        f = SplitEvaluator.of(model, sample, "all", 0, metric=None, memory=None, meter=Meter()).f(
            "mean"
        )
        rows = f.set_metric(sets)
        found.append(
            [interval_of_ratio(row - f.empty, f.full - f.empty, f.resamples)[0] for row in rows]
        )
    return found


def draw_samples(
    task: Task, n: int, draws: int, *, with_replacement: bool
) -> Iterator[torch.Tensor]:
    """Pairs of a task, by number, each template with its share; `again`: with replacement, as from an endless population."""
    templates = [pair.template for pair in task.pairs]
    groups = [
        torch.tensor([i for i, t in enumerate(templates) if t == name])
        for name in sorted(set(templates))
    ]
    generator, sizes = (
        torch.Generator().manual_seed(0),
        divide_proportionally([len(group) for group in groups], n),
    )
    for _ in range(draws):
        picks = [
            torch.randint(len(group), (k,), generator=generator)
            if with_replacement
            else torch.randperm(len(group), generator=generator)[:k]
            for group, k in zip(groups, sizes, strict=True)
        ]
        yield torch.cat([group[pick] for group, pick in zip(groups, picks, strict=True)])


def as_one_split(task: Task, pairs: Sequence[EncodedPair]) -> Task:
    """These pairs, all of them in one split."""
    split: SplitName = "discovery"
    return replace(task, pairs=tuple(pairs), splits=tuple(split for _ in pairs))


def divide_proportionally(counts: list[int], n: int) -> list[int]:
    """n divided as the groups are, largest remainders first."""
    exact = [n * count / sum(counts) for count in counts]
    found = [int(value) for value in exact]
    for index in sorted(range(len(counts)), key=lambda i: found[i] - exact[i])[: n - sum(found)]:
        found[index] += 1
    return found


if __name__ == "__main__":
    main()
