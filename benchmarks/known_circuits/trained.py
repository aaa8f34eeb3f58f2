"""Small trained models for the benchmarks: few enough nodes that every subset can be measured. `python -m benchmarks.known_circuits.trained DIR`

GPT-2s of two layers with four heads and an MLP each (ten nodes), trained on the sentences of `training/corpus.py` from several seeds, five
minutes each; and the tasks that each of them does, on discovery and held-out pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from discovery import check_task, load_model, load_task
from discovery.backends.base import Backend
from discovery.tasks import BUILTIN
from discovery.tasks.task import Task
from training import vocabulary
from training.train_bundled import Recipe, train

SEEDS = tuple(range(1, 11))  # the agent was written while these were there
FRESH = tuple(range(11, 21))  # these were trained after


def add_models(parser: argparse.ArgumentParser) -> None:
    """The options that say where these models are kept, and how many are used."""
    parser.add_argument("--models", type=Path, help="where the small trained models are kept; trained anew where it is left out")
    parser.add_argument("--trained", type=int, default=len(SEEDS), help="how many of them, the first seeds (ten)")


def recipe(seed: int) -> Recipe:
    """How a small model is trained."""
    return Recipe(seed=seed, steps=4000, layers=2, heads=4, width=64, context=40)


def directory(seed: int, folder: Path) -> Path:
    """The model of a seed, trained where it is not there yet."""
    place = folder / f"small-{seed}"
    if not (place / "model.safetensors").exists():
        made = recipe(seed)
        tokenizer = vocabulary.build(0, made.context)
        trained, _ = train(tokenizer, made)
        place.mkdir(parents=True, exist_ok=True)
        vocabulary.save(tokenizer, place)
        trained.save_pretrained(place)
    return place


def cases(folder: Path, seeds: Sequence[int] = SEEDS, pairs: int | None = None) -> Iterator[tuple[str, Backend, Task]]:
    """Each model with each task that it does."""
    for seed in seeds:
        model = load_model(directory(seed, folder))
        for name in BUILTIN:  # not every model does the first two, which nearly take three layers
            task = load_task(name, model, pairs=pairs)
            if check_task(model, task.discovery).present and check_task(model, task.heldout).present:
                yield f"small-{seed} {name}", model, task


if __name__ == "__main__":
    for found in cases(Path(sys.argv[1])):
        sys.stdout.write(f"{found[0]}\n")
