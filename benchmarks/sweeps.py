"""Patch sweeps against `transformer_lens.patching`, in turn in one process: `python -m benchmarks.sweeps [--quick]`

Both sides compute the same grid on the same module: ours through the engine, theirs one full forward pass of the bridge for each cell. The
baseline is timed on a sample of its cells where a whole grid takes minutes (it runs every cell alike), and says so. Prints Markdown:
median ratio and spread over repetitions, largest difference on the cells that both computed, forward-pass equivalents, achieved
GFLOP/s over the machine's measured matmul rate, and peak memory.
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

import torch

from discovery import load_model, load_task, patch_sweep
from discovery.backends.base import Backend, Batch
from discovery.engine import full_work
from discovery.interventions import Edit
from discovery.sites import Direction, Site, SiteName
from discovery.tasks import Task

FIRST_DIFFERENCE = 5  # pairs differ from the sixth token on
SAMPLE = 6  # baseline cells per layer that are timed


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    model: str
    site: SiteName
    pairs: int
    tokens: int
    direction: Direction = "denoising"


def small_gpt2(folder: Path) -> Path:
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
                corrupted[position] = (corrupted[position] + 1 + rng.randrange(model.d_vocab - 2)) % model.d_vocab
        answer, wrong = rng.sample(range(model.d_vocab), 2)
        made.append({"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong})
    return load_task(made, model)


def baseline(model: Backend, task: Task, case: Case) -> tuple[Callable[[], dict[tuple[int, ...], torch.Tensor]], int, int]:
    """One full forward pass of the bridge per cell, all pairs in a batch, as `transformer_lens.patching` does it.

    Returns:
        a function that computes the sampled cells, their number, and the number of all cells.
    """
    clean = torch.tensor([pair.clean for pair in task.pairs])
    corrupted = torch.tensor([pair.corrupted for pair in task.pairs])
    answer, wrong = torch.tensor([p.answer for p in task.pairs]), torch.tensor([p.wrong for p in task.pairs])
    kind = "z" if case.site == "head_out" else case.site
    width = model.info.n_heads if case.site == "head_out" else case.tokens
    rng = random.Random(1)
    cells = [(layer, c) for layer in range(model.info.n_layers) for c in sorted(rng.sample(range(width), min(SAMPLE, width)))]
    last = torch.full((len(task.pairs),), case.tokens - 1)
    sites = [Site(kind, layer) for layer in range(model.info.n_layers)]  # type: ignore[arg-type]  # a kind
    source = model.run(Batch(clean, last), sites).activations
    bridge = model.bridge  # type: ignore[attr-defined]  # the TransformerLens backend

    def run() -> dict[tuple[int, ...], torch.Tensor]:
        found: dict[tuple[int, ...], torch.Tensor] = {}
        for layer, column in cells:
            site = Site(kind, layer)  # type: ignore[arg-type]  # a kind
            axis = torch.arange(width) == column
            edit = Edit(site, source[site], axis[None, None] if kind == "z" else axis[None])
            name = f"blocks.{layer}.{'attn.hook_z' if kind == 'z' else 'hook_' + kind}"
            with torch.no_grad():
                hooks = [(name, lambda value, hook, edit=edit: edit.apply(value))]
                logits = bridge.run_with_hooks(corrupted, fwd_hooks=hooks)[:, -1]
            found[layer, column] = logits.gather(1, answer)[:, 0] - logits.gather(1, wrong)[:, 0]
        return found

    return run, len(cells), model.info.n_layers * width


def matmul_rate() -> float:
    """GFLOP/s of a large matmul on this machine."""
    a = torch.randn(2048, 2048)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began) / 1e9)
    return best


def measure(case: Case, model: Backend, repetitions: int) -> str:
    """One line."""
    task = random_pairs(model, case.pairs, case.tokens)
    theirs, sampled, cells = baseline(model, task, case)
    grid, values = patch_sweep(model, task, case.site, direction=case.direction), theirs()  # warm
    ours: list[float] = []
    ratios: list[float] = []
    for _ in range(repetitions):
        began = time.perf_counter()
        grid = patch_sweep(model, task, case.site, direction=case.direction)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        values = theirs()
        ratios.append((time.perf_counter() - began) * cells / sampled / ours[-1])
    worst = max(float((grid.per_pair[:, layer, column] - value).abs().max()) for (layer, column), value in values.items())
    flops = 2 * grid.cost.forward_equivalents * full_work(model.info, case.tokens)
    rate = flops / statistics.median(ours) / 1e9
    share = rate / matmul_rate()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    plain = cells * case.pairs + 2 * case.pairs
    return (
        f"| {case.model} | {case.site} | {case.pairs} | {case.tokens} | {statistics.median(ours):.2f} s | "
        f"**{statistics.median(ratios):.1f}×** ({min(ratios):.1f}–{max(ratios):.1f}) | {sampled}/{cells} | {worst:.0e} | "
        f"{grid.cost.forward_equivalents:,.0f} of {plain:,} | "
        f"{rate:.0f} ({share:.0%}) | {memory:.1f} GiB |"
    )


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the bundled model only, one repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    chosen = parser.parse_args()
    out = sys.stdout
    sites: tuple[SiteName, ...] = ("resid_pre", "attn_out", "mlp_out", "head_out")
    shapes = ((1, 15), (32, 15), (8, 128))
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        models = {"bundled": load_model("bundled")}
        if not chosen.quick:
            models = {"gpt2-small": load_model(small_gpt2(Path(folder)))} | models
        out.write("| model | site | pairs | tokens | ours | ratio (range) | baseline cells timed | largest difference | ")
        out.write(
            "forward-pass equivalents, ours of plain | GFLOP/s (of matmul) | peak memory |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
        )
        for name, model in models.items():
            for pairs, tokens in shapes:
                for site in sites if (pairs, tokens) != (8, 128) else sites[:1]:
                    if tokens <= model.n_ctx:
                        out.write(measure(Case(name, site, pairs, tokens), model, 1 if chosen.quick else chosen.repetitions) + "\n")
                        out.flush()


if __name__ == "__main__":
    main()
