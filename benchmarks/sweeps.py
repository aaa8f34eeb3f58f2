"""Patch sweeps against `transformer_lens.patching` and nnsight, in turn in one process: `python -m benchmarks.sweeps [--only ROWS]`

All compute the same grid on the same weights: ours through the engine, transformer_lens with one full forward pass of the bridge for
each cell, nnsight with one trace for each layer whose invokes, one for each cell, it batches. The others are timed on a sample of
their cells where a whole grid takes minutes (they run every cell alike), and the table says so. Prints Markdown: median ratio and spread
over repetitions, largest difference on the cells that were computed twice, forward-pass equivalents, achieved GFLOP/s over the
machine's measured matmul rate, and peak memory.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from discovery import load_model, load_task, patch_sweep
from discovery.backends.base import Backend, Batch
from discovery.backends.loading.outline import BackendKind
from discovery.backends.loading.source import locate_model
from discovery.engine import prompt_macs
from discovery.interventions import Edit
from discovery.sites import Direction, Site, SiteName
from discovery.tasks import Task

MAX_WARMUP_SECONDS = 60.0  # seconds; a longer first sweep counts, a shorter one warms up
FIRST_DIFFERENCE = 5  # pairs differ from the sixth token on
Grid = dict[tuple[int, ...], torch.Tensor]


@dataclass(frozen=True)
class SweepCase:
    """One line of the table."""

    model: str
    site: SiteName
    pairs: int
    tokens: int
    direction: Direction = "denoising"


def save_small_gpt2(folder: Path) -> Path:
    """GPT-2-small geometry, seeded random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    return folder


def random_pairs(model: Backend, pairs: int, tokens: int, seed: int = 0) -> Task:
    """Random token ids; the sides differ in about half of the tokens from the sixth on, the last apart."""
    rng = random.Random(seed)
    made = []
    for _ in range(pairs):
        clean = [rng.randrange(model.d_vocab) for _ in range(tokens)]
        corrupted = list(clean)
        for position in range(FIRST_DIFFERENCE, tokens - 1):
            if position == FIRST_DIFFERENCE or rng.random() < 0.5:
                corrupted[position] = (
                    corrupted[position] + 1 + rng.randrange(model.d_vocab - 2)
                ) % model.d_vocab
        answer, wrong = rng.sample(range(model.d_vocab), 2)
        made.append({"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong})
    return load_task(made, model)


def sample_cells(case: SweepCase, model: Backend) -> list[tuple[int, int]]:
    """The cells that the others are timed on: six of each layer for one pair, one of each layer for more."""
    width = model.info.n_heads if case.site == "head_out" else case.tokens
    rng = random.Random(1)
    return [
        (layer, c)
        for layer in range(model.info.n_layers)
        for c in sorted(rng.sample(range(width), min(6 if case.pairs == 1 else 1, width)))
    ]


class Baselines:
    """The other libraries on one model and task.

    Args:
        directory: the model's, which nnsight loads for itself.
    """

    def __init__(self, model: Backend, directory: Path, task: Task, case: SweepCase) -> None:
        self.model, self.case, self.cells = model, case, sample_cells(case, model)
        wrapped = (
            model
            if model.info.backend == "transformerlens"
            else load_model(directory, backend="transformerlens")
        )
        self.bridge = wrapped.bridge  # type: ignore[attr-defined]  # the TransformerLens backend
        self.clean = torch.tensor([pair.clean for pair in task.pairs])
        self.corrupted = torch.tensor([pair.corrupted for pair in task.pairs])
        self.answer, self.wrong = (
            torch.tensor([p.answer for p in task.pairs]),
            torch.tensor([p.wrong for p in task.pairs]),
        )
        self.kind = "z" if case.site == "head_out" else case.site
        self.width = model.info.n_heads if case.site == "head_out" else case.tokens
        last = torch.full((len(task.pairs),), case.tokens - 1)
        sites = [Site(self.kind, layer) for layer in range(model.info.n_layers)]  # type: ignore[arg-type]  # a kind
        self.source = model.run(Batch(self.clean, last), sites).activations
        self.nnsight = load_in_nnsight(directory)

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.gather(1, self.answer)[:, 0] - logits.gather(1, self.wrong)[:, 0]

    def sweep_with_transformer_lens(self) -> Grid:
        """One full forward pass of the bridge per cell, all pairs in a batch, as `transformer_lens.patching` does it."""
        found: Grid = {}
        for layer, column in self.cells:
            site = Site(self.kind, layer)  # type: ignore[arg-type]  # a kind
            axis = torch.arange(self.width) == column
            edit = Edit(
                site, self.source[site], axis[None, None] if self.kind == "z" else axis[None]
            )
            name = f"blocks.{layer}.{'attn.hook_z' if self.kind == 'z' else 'hook_' + self.kind}"
            with torch.no_grad():
                hooks = [(name, lambda value, hook, edit=edit: edit.apply(value))]
                found[layer, column] = self.metric(
                    self.bridge.run_with_hooks(self.corrupted, fwd_hooks=hooks)[:, -1]
                )
        return found

    def sweep_with_nnsight(self) -> Grid:
        """One trace per layer, one invoke per cell (GPT-2's module names)."""
        from nnsight import save  # the function: our backend takes the method of every object back

        net, kind, d_head = self.nnsight, self.kind, self.model.info.d_head
        found: Grid = {}
        for layer in sorted({layer for layer, _ in self.cells}):
            columns = [c for at, c in self.cells if at == layer]
            source = self.source[Site(kind, layer)].flatten(2)  # type: ignore[arg-type]  # a kind
            with torch.no_grad(), net.trace() as tracer:
                logits: Any = save([])  # nnsight's way to bring values out
                for c in columns:
                    with tracer.invoke(self.corrupted):
                        if kind == "resid_pre":
                            net.transformer.h[layer].input[:, c] = source[:, c]
                        elif kind == "attn_out":
                            net.transformer.h[layer].attn.output[0][:, c] = source[:, c]
                        elif kind == "mlp_out":
                            net.transformer.h[layer].mlp.output[:, c] = source[:, c]
                        else:
                            heads = slice(c * d_head, (c + 1) * d_head)
                            net.transformer.h[layer].attn.c_proj.input[:, :, heads] = source[
                                :, :, heads
                            ]
                        logits.append(net.lm_head.output[:, -1])
            found |= {
                (layer, c): self.metric(values) for c, values in zip(columns, logits, strict=True)
            }
        return found


def load_in_nnsight(directory: Path) -> Any:
    """The model in nnsight."""
    from nnsight import TransformersModel

    return TransformersModel(
        directory, task="text-generation", dispatch=True, attn_implementation="eager"
    )


def matmul_rate() -> float:
    """GFLOP/s of a large matmul on this machine."""
    a = torch.randn(2048, 2048)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began) / 1e9)
    return best


def format_row(case: SweepCase, model: Backend, directory: Path, repetitions: int) -> str:
    """One line."""
    task = random_pairs(model, case.pairs, case.tokens)
    others = Baselines(model, directory, task, case)
    runs = (others.sweep_with_transformer_lens, others.sweep_with_nnsight)
    values = [run() for run in runs]  # warm
    began = time.perf_counter()
    grid = patch_sweep(model, task, case.site, direction=case.direction)
    share = grid.per_pair[0].numel() / len(others.cells)
    ours = (
        [first] if (first := time.perf_counter() - began) > MAX_WARMUP_SECONDS else []
    )  # the weights of a long sweep are read a thousand times
    ratios = [[measure_seconds(run) * share / seconds for seconds in ours] for run in runs]
    while len(ours) < repetitions:
        ours.append(
            measure_seconds(lambda: patch_sweep(model, task, case.site, direction=case.direction))
        )
        for run, found in zip(runs, ratios, strict=True):
            found.append(measure_seconds(run) * share / ours[-1])
    worst = max(
        float((grid.per_pair[:, layer, c] - value).abs().max())
        for found in values
        for (layer, c), value in found.items()
    )
    flops = 2 * grid.cost.forward_equivalents * prompt_macs(model.info, case.tokens)
    rate = flops / statistics.median(ours) / 1e9
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    plain = grid.per_pair[0].numel() * case.pairs + 2 * case.pairs
    told = " | ".join(
        f"**{statistics.median(r):.1f}×** ({min(r):.1f}–{max(r):.1f})" for r in ratios
    )
    return (
        f"| {case.model} | {case.site} | {case.pairs} | {case.tokens} | {statistics.median(ours):.2f} s | {told} | "
        f"{len(others.cells)}/{grid.per_pair[0].numel()} | {worst:.0e} | {grid.cost.forward_equivalents:,.0f} of {plain:,} | "
        f"{rate:.0f} ({rate / matmul_rate():.0%}) | {memory:.1f} GiB |"
    )


def measure_seconds(run: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the bundled model only, one repetition"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--only",
        default="",
        help="rows whose 'model site pairs x tokens' holds this, as in 'head_out 32x15'",
    )
    parser.add_argument(
        "--backend",
        choices=get_args(BackendKind),
        default="transformerlens",
        help="ours on which engine",
    )
    chosen = parser.parse_args()
    out = sys.stdout
    sites: tuple[SiteName, ...] = ("resid_pre", "attn_out", "mlp_out", "head_out")
    shapes = ((1, 15), (32, 15), (8, 128))
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        places = {"bundled": locate_model("bundled").directory}
        if not chosen.quick:
            places = {"gpt2-small": save_small_gpt2(Path(folder))} | places
        out.write(
            "| model | site | pairs | tokens | ours | over transformer_lens (range) | over nnsight (range) | cells of theirs timed | "
            "largest difference | forward-pass equivalents, ours of plain | GFLOP/s (of matmul) | peak memory |\n"
            "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        )
        for name, place in places.items():
            model = load_model("bundled" if name == "bundled" else place, backend=chosen.backend)
            for pairs, tokens in shapes:
                for site in sites if (pairs, tokens) != (8, 128) else sites[:1]:
                    if tokens <= model.n_ctx and chosen.only in f"{name} {site} {pairs}x{tokens}":
                        out.write(
                            format_row(
                                SweepCase(name, site, pairs, tokens),
                                model,
                                place,
                                1 if chosen.quick else chosen.repetitions,
                            )
                            + "\n"
                        )
                        out.flush()


if __name__ == "__main__":
    main()
