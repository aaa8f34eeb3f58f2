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
from training.train_bundled import ModelRecipe, train

DEVELOPMENT_SEEDS = tuple(range(1, 11))  # the agent was written while these were there
FRESH_SEEDS = tuple(range(11, 21))  # these were trained after


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The options that say where these models are kept, and how many are used."""
    parser.add_argument(
        "--models",
        type=Path,
        help="where the small trained models are kept; trained anew where it is left out",
    )
    parser.add_argument(
        "--trained",
        type=int,
        default=len(DEVELOPMENT_SEEDS),
        help="how many of them, the first seeds (ten)",
    )


def small_recipe(seed: int) -> ModelRecipe:
    """How a small model is trained."""
    return ModelRecipe(seed=seed, steps=4000, layers=2, heads=4, width=64, context=40)


def ensure_trained(seed: int, folder: Path) -> Path:
    """The model of a seed, trained where it is not there yet."""
    place = folder / f"small-{seed}"
    if not (place / "model.safetensors").exists():
        made = small_recipe(seed)
        tokenizer = vocabulary.build_word_tokenizer(0, made.context)
        trained, _ = train(tokenizer, made)
        place.mkdir(parents=True, exist_ok=True)
        vocabulary.save_tokenizer(tokenizer, place)
        trained.save_pretrained(place)
    return place


def iterate_trained_cases(
    folder: Path, seeds: Sequence[int] = DEVELOPMENT_SEEDS, pairs: int | None = None
) -> Iterator[tuple[str, Backend, Task]]:
    """Each model with each task that it does."""
    for seed in seeds:
        model = load_model(ensure_trained(seed, folder))
        for name in BUILTIN:  # not every model does the first two, which nearly take three layers
            task = load_task(name, model, pairs=pairs)
            if (
                check_task(model, task.discovery).is_present
                and check_task(model, task.heldout).is_present
            ):
                yield f"small-{seed} {name}", model, task


if __name__ == "__main__":
    for found in iterate_trained_cases(Path(sys.argv[1])):
        sys.stdout.write(f"{found[0]}\n")
