"""Do 95% intervals hold the true value 95 times of 100? `python -m benchmarks.coverage`

A finite population of pairs of the bundled model, whose f(C) and f(U∖C) are known exactly; samples of 48 and of 200 pairs, drawn as a task
is (each template's share), each with the interval that a verdict would use. Prints Markdown.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.table import header
from discovery import load_model, load_task
from discovery.engine import Meter
from discovery.evaluation import Bench
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.bootstrap import Resamples, interval_of_ratio
from discovery.sites import Node
from discovery.tasks.task import Pair, SplitName, Task

CIRCUITS = {  # as found by `discover`, and a part of it, whose f is in the middle
    "ioi": ("a0.h3 m0 a1.h0 a1.h3 a2.h0 m2 m3", "a0.h3 m0 a1.h0 a2.h0 m3"),
    "agreement": ("a0.h0 a0.h2 m0 m1 a2.h0 a2.h2 m2 a3.h2 m3", "a0.h0 m0 a2.h0 m2 a3.h2 m3"),
}
POPULATION, DRAWS = 2400, 2000
SIZES = (48, 200)


def main() -> None:
    """Print the table."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        model = load_model("bundled")
        out.write(header("task", "circuit", "ablation", "value", "pairs", "coverage"))
        for name, circuits in CIRCUITS.items():
            task = load_task(name, model, pairs=POPULATION)
            bench = Bench.of(model, whole(task, task.pairs), "all", 0, metric=None, memory=None, meter=Meter())
            templates = [pair.template for pair in bench.engine.task.pairs]
            for words in circuits:
                circuit = frozenset(map(Node.parse, words.split()))
                for ablation in EVIDENCE_ABLATIONS:
                    f = bench.f(ablation)
                    above = f.sets([circuit])[0].double() - f.empty
                    below = f.full - f.empty
                    for n in SIZES:
                        share = covered(bench.engine.task, templates, above, below, n)
                        value = float(above.mean() / below.mean())
                        out.write(f"| {name}, {len(task)} pairs | {len(circuit)} nodes | {ablation} | {value:.3f} | {n} | {share:.1%} |\n")
                        out.flush()


def covered(task: Task, templates: list[str], above: torch.Tensor, below: torch.Tensor, n: int) -> float:
    """Share of samples whose interval holds the population's value."""
    truth = float(above.mean() / below.mean())
    groups = [torch.tensor([i for i, t in enumerate(templates) if t == name]) for name in sorted(set(templates))]
    generator, held = torch.Generator().manual_seed(0), 0
    for draw in range(DRAWS):
        sizes = shares([len(group) for group in groups], n)
        chosen = torch.cat([group[torch.randint(len(group), (k,), generator=generator)] for group, k in zip(groups, sizes, strict=True)])
        sample = whole(task, [task.pairs[i] for i in chosen.tolist()])
        interval, _ = interval_of_ratio(above[chosen], below[chosen], Resamples.of(sample, seed=draw))
        held += interval.low <= truth <= interval.high
    return held / DRAWS


def whole(task: Task, pairs: Sequence[Pair]) -> Task:
    """These pairs, all of them in one split."""
    split: SplitName = "discovery"
    return replace(task, pairs=tuple(pairs), splits=tuple(split for _ in pairs))


def shares(counts: list[int], n: int) -> list[int]:
    """n divided as the groups are, largest remainders first."""
    exact = [n * count / sum(counts) for count in counts]
    found = [int(value) for value in exact]
    for index in sorted(range(len(counts)), key=lambda i: found[i] - exact[i])[: n - sum(found)]:
        found[index] += 1
    return found


if __name__ == "__main__":
    main()
