"""Patch sweeps against `transformer_lens.patching` and nnsight, in turn in one process.

    python -m benchmarks.performance.sweeps [--only ROWS]

All three compute the same grid on the same weights: ours through the engine; transformer_lens with
one full forward pass of the bridge for each cell; nnsight with one trace for each layer, which
batches one invoke for each cell. If a whole grid would take minutes, the other two are timed on a
sample of their cells, which all cost the same, and the table says so. Prints a Markdown table: the
median ratio and its range over repetitions, the largest difference on the cells that were computed
twice, forward-pass equivalents, achieved GFLOP/s as a share of the machine's measured matmul rate,
and peak memory.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.output import format_header, format_row, open_output
from benchmarks.random_models.timing_models import random_task, save_small_gpt2
from discovery import load_model, patch_sweep
from discovery.backends.base import Backend, Batch
from discovery.backends.loading.outline import BackendKind
from discovery.backends.loading.source import locate_model
from discovery.engine import prompt_macs
from discovery.interventions import Edit
from discovery.methods.patching.grid import Sweep
from discovery.sites import Site, SiteName
from discovery.tasks import Task

MAX_WARMUP_SECONDS = 60.0  # a first sweep that takes longer counts as a repetition
SITES: tuple[SiteName, ...] = ("resid_pre", "attn_out", "mlp_out", "head_out")
SHAPES = ((1, 15), (32, 15), (8, 128))  # pairs and tokens
LONG_SHAPE = (8, 128)  # swept at the first site alone
COLUMNS = (
    "model",
    "site",
    "pairs",
    "tokens",
    "ours",
    "over transformer_lens (range)",
    "over nnsight (range)",
    "cells of theirs timed",
    "largest difference",
    "forward-pass equivalents, ours of plain",
    "GFLOP/s (of matmul)",
    "peak memory",
)
Grid = dict[tuple[int, ...], Tensor]  # (layer, column) -> metric of every pair


@dataclass(frozen=True)
class SweepCase:
    """One row of the table."""

    model: str
    site: SiteName
    pairs: int
    tokens: int


def sample_cells(case: SweepCase, model: Backend) -> list[tuple[int, int]]:
    """Draw the cells on which the other libraries are timed.

    They are six of each layer for a single pair, and one of each layer for more pairs.
    """
    width = model.info.n_heads if case.site == "head_out" else case.tokens
    per_layer = min(6 if case.pairs == 1 else 1, width)
    rng = random.Random(1)
    return [
        (layer, column)
        for layer in range(model.info.n_layers)
        for column in sorted(rng.sample(range(width), per_layer))
    ]


class OtherLibraries:
    """The sweeps of the other libraries on one model and task.

    Args:
        model: our own model.
        directory: the model's directory, from which nnsight loads it for itself.
        task: the pairs.
        case: the sweep.
    """

    def __init__(self, model: Backend, directory: Path, task: Task, case: SweepCase) -> None:
        self.model = model
        self.case = case
        self.cells = sample_cells(case, model)
        wrapped = model
        if model.info.backend != "transformerlens":
            wrapped = load_model(directory, backend="transformerlens")
        self.bridge = wrapped.bridge  # type: ignore[attr-defined]  # of the TransformerLens backend
        self.corrupted = torch.tensor([pair.corrupted for pair in task.pairs])
        self.answer = torch.tensor([pair.answer for pair in task.pairs])
        self.wrong = torch.tensor([pair.wrong for pair in task.pairs])
        self.kind = "z" if case.site == "head_out" else case.site
        self.width = model.info.n_heads if case.site == "head_out" else case.tokens
        clean = Batch(
            tokens=torch.tensor([pair.clean for pair in task.pairs]),
            answer_position=torch.full((len(task.pairs),), case.tokens - 1),
        )
        sites = [self.site(layer) for layer in range(model.info.n_layers)]
        self.source = model.run(clean, sites).activations
        self.nnsight = load_in_nnsight(directory)

    def site(self, layer: int) -> Site:
        """Return the site of the sweep in a layer."""
        return Site(self.kind, layer)  # type: ignore[arg-type]  # a kind of site

    def metric(self, logits: Tensor) -> Tensor:
        """Return the logit difference of every pair, [pair]."""
        return logits.gather(1, self.answer)[:, 0] - logits.gather(1, self.wrong)[:, 0]

    def sweep_with_transformer_lens(self) -> Grid:
        """Run a full forward pass of the bridge per cell, with all pairs in one batch.

        `transformer_lens.patching` does the same.
        """
        grid: Grid = {}
        for layer, column in self.cells:
            site = self.site(layer)
            mask = torch.arange(self.width) == column
            mask = mask[None, None] if self.kind == "z" else mask[None]
            edit = Edit(site, self.source[site], mask)
            name = f"blocks.{layer}.{'attn.hook_z' if self.kind == 'z' else 'hook_' + self.kind}"
            hooks = [(name, lambda value, hook, edit=edit: edit.apply(value))]
            with torch.no_grad():
                logits = self.bridge.run_with_hooks(self.corrupted, fwd_hooks=hooks)
                grid[layer, column] = self.metric(logits[:, -1])
        return grid

    def sweep_with_nnsight(self) -> Grid:
        """Run one trace per layer with one invoke per cell. The module names are GPT-2's."""
        from nnsight import save  # the function: our backend takes the method of every object back

        net = self.nnsight
        grid: Grid = {}
        for layer in sorted({layer for layer, _ in self.cells}):
            columns = [column for cell_layer, column in self.cells if cell_layer == layer]
            source = self.source[self.site(layer)].flatten(2)
            with torch.no_grad(), net.trace() as tracer:
                logits: Any = save([])  # nnsight's way to bring values out of a trace
                for column in columns:
                    with tracer.invoke(self.corrupted):
                        block = net.transformer.h[layer]
                        if self.kind == "resid_pre":
                            block.input[:, column] = source[:, column]
                        elif self.kind == "attn_out":
                            block.attn.output[0][:, column] = source[:, column]
                        elif self.kind == "mlp_out":
                            block.mlp.output[:, column] = source[:, column]
                        else:
                            d_head = self.model.info.d_head
                            head = slice(column * d_head, (column + 1) * d_head)
                            block.attn.c_proj.input[:, :, head] = source[:, :, head]
                        logits.append(net.lm_head.output[:, -1])
            for column, values in zip(columns, logits, strict=True):
                grid[layer, column] = self.metric(values)
        return grid


def load_in_nnsight(directory: Path) -> Any:
    """Load the model in nnsight."""
    from nnsight import TransformersModel

    return TransformersModel(
        directory, task="text-generation", dispatch=True, attn_implementation="eager"
    )


def matmul_rate() -> float:
    """Measure the GFLOP/s of a large matmul on this machine."""
    matrix = torch.randn(2048, 2048)
    seconds = min(measure_seconds(lambda: matrix @ matrix) for _ in range(8))
    return 2 * 2048**3 / seconds / 1e9


def measure_seconds(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(frozen=True)
class SweepTimes:
    """What was measured of one case.

    Attributes:
        grid: our grid.
        seconds: ours, in each repetition.
        ratios: the seconds of each other library for the whole grid, divided by ours, in each
            repetition.
        largest_difference: between our metric and theirs, on their cells.
    """

    grid: Sweep
    seconds: list[float]
    ratios: list[list[float]]
    largest_difference: float


def measure_case(
    case: SweepCase, model: Backend, task: Task, libraries: OtherLibraries, repetitions: int
) -> SweepTimes:
    """Time our sweep and the other libraries' in turn."""

    def sweep() -> Sweep:
        return patch_sweep(model, task, case.site)

    runs = (libraries.sweep_with_transformer_lens, libraries.sweep_with_nnsight)
    their_grids = [run() for run in runs]  # the first runs warm up
    start = time.perf_counter()
    grid = sweep()
    first_seconds = time.perf_counter() - start
    cells_per_sampled = grid.per_pair[0].numel() / len(libraries.cells)
    # A long sweep reads the weights a thousand times, so it needs no warm-up.
    seconds = [first_seconds] if first_seconds > MAX_WARMUP_SECONDS else []
    ratios = [
        [measure_seconds(run) * cells_per_sampled / our_seconds for our_seconds in seconds]
        for run in runs
    ]
    while len(seconds) < repetitions:
        seconds.append(measure_seconds(sweep))
        for run, own_ratios in zip(runs, ratios, strict=True):
            own_ratios.append(measure_seconds(run) * cells_per_sampled / seconds[-1])
    largest_difference = max(
        float((grid.per_pair[:, layer, column] - value).abs().max())
        for their_grid in their_grids
        for (layer, column), value in their_grid.items()
    )
    return SweepTimes(grid, seconds, ratios, largest_difference)


def format_case(case: SweepCase, model: Backend, directory: Path, repetitions: int) -> str:
    """Measure one case and return its row."""
    task = random_task(model, case.pairs, case.tokens)
    libraries = OtherLibraries(model, directory, task, case)
    times = measure_case(case, model, task, libraries, repetitions)
    cost = times.grid.cost.forward_equivalents
    n_cells = times.grid.per_pair[0].numel()
    plain_cost = n_cells * case.pairs + 2 * case.pairs
    seconds = statistics.median(times.seconds)
    rate = 2 * cost * prompt_macs(model.info, case.tokens) / seconds / 1e9
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cells = (
        f"{seconds:.2f} s",
        *(f"**{statistics.median(r):.1f}×** ({min(r):.1f}–{max(r):.1f})" for r in times.ratios),
        f"{len(libraries.cells)}/{n_cells}",
        f"{times.largest_difference:.0e}",
        f"{cost:,.0f} of {plain_cost:,}",
        f"{rate:.0f} ({rate / matmul_rate():.0%})",
        f"{peak_gib:.1f} GiB",
    )
    return format_row(case.model, case.site, case.pairs, case.tokens, *cells)


def iterate_cases(name: str, model: Backend, only: str) -> Iterator[SweepCase]:
    """Yield the cases of a model whose name contains `only`."""
    for pairs, tokens in SHAPES:
        for site in SITES if (pairs, tokens) != LONG_SHAPE else SITES[:1]:
            if tokens <= model.n_ctx and only in f"{name} {site} {pairs}x{tokens}":
                yield SweepCase(name, site, pairs, tokens)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the bundled model only, with one repetition"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--only",
        default="",
        help="rows whose 'MODEL SITE PAIRSxTOKENS' contains this, as in 'head_out 32x15'",
    )
    parser.add_argument(
        "--backend",
        choices=get_args(BackendKind),
        default="transformerlens",
        help="the backend of our own sweeps",
    )
    arguments = parser.parse_args()
    repetitions = 1 if arguments.quick else arguments.repetitions
    with open_output() as output:
        directories = {"bundled": locate_model("bundled").directory}
        if not arguments.quick:
            directories = {"gpt2-small": save_small_gpt2(output.folder)} | directories
        output.write(format_header(*COLUMNS))
        for name, directory in directories.items():
            source = "bundled" if name == "bundled" else directory
            model = load_model(source, backend=arguments.backend)
            for case in iterate_cases(name, model, arguments.only):
                output.write(format_case(case, model, directory, repetitions))


if __name__ == "__main__":
    main()
