"""Small trained models, with few enough nodes that every subset can be measured.

They are GPT-2s of two layers with four heads and one MLP each (ten nodes), trained from several
seeds on the sentences of `training/corpus.py`. Training takes five minutes a model. A model's cases
are the built-in tasks that it does, on discovery and on held-out pairs.

    python -m benchmarks.known_circuits.trained DIR

trains the models that DIR does not hold yet and lists their cases.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from discovery import check_task, load_model, load_task
from discovery.backends.base import Backend
from discovery.tasks import BUNDLED_TASKS
from discovery.tasks.task import Task
from training import vocabulary
from training.train_bundled import ModelRecipe, train

DEVELOPMENT_SEEDS = tuple(range(1, 11))  # these models existed while the agent was written
FRESH_SEEDS = tuple(range(11, 21))  # these were trained afterwards


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the models are kept and how many are used."""
    parser.add_argument(
        "--models",
        type=Path,
        help="the folder of the small trained models; without it they are trained again",
    )
    parser.add_argument(
        "--trained",
        type=int,
        default=len(DEVELOPMENT_SEEDS),
        help="how many of the trained models to use, counted from the first seed (ten)",
    )


def small_recipe(seed: int) -> ModelRecipe:
    """Return how a small model is trained."""
    return ModelRecipe(seed=seed, steps=4000, layers=2, heads=4, width=64, context=40)


def ensure_trained(seed: int, folder: Path) -> Path:
    """Return the directory of a seed's model, and train the model if it is not there yet."""
    directory = folder / f"small-{seed}"
    if not (directory / "model.safetensors").exists():
        recipe = small_recipe(seed)
        tokenizer = vocabulary.build_word_tokenizer(0, recipe.context)
        model, _ = train(tokenizer, recipe)
        directory.mkdir(parents=True, exist_ok=True)
        vocabulary.save_tokenizer(tokenizer, directory)
        model.save_pretrained(directory)
    return directory


def does_task(model: Backend, task: Task) -> bool:
    """Return whether the model does a task on both of its splits."""
    return all(check_task(model, split).is_present for split in (task.discovery, task.heldout))


def iterate_trained_cases(
    folder: Path, seeds: Sequence[int] = DEVELOPMENT_SEEDS, pairs: int | None = None
) -> Iterator[tuple[str, Backend, Task]]:
    """Yield each model with each task that it does, under the name "small-SEED TASK"."""
    for seed in seeds:
        model = load_model(ensure_trained(seed, folder))
        # Not every model does ioi and induction, for which two layers barely suffice.
        for name in BUNDLED_TASKS:
            task = load_task(name, model, pairs=pairs)
            if does_task(model, task):
                yield f"small-{seed} {name}", model, task


if __name__ == "__main__":
    for case_name, _model, _task in iterate_trained_cases(Path(sys.argv[1])):
        sys.stdout.write(f"{case_name}\n")
