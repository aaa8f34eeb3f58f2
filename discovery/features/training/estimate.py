"""What a training will take, before it is begun: memory from the sizes, time from a few timed steps."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from discovery.backends.base import Backend
from discovery.backends.hardware.memory import read_free_memory
from discovery.errors import MemoryLimitError
from discovery.features.training.activations import TOKENS_PER_PASS, read_activations
from discovery.features.training.recipe import SAERecipe
from discovery.features.training.scores import MAX_LOGITS_BYTES, PROGRESS_SAMPLE_TOKENS
from discovery.features.training.text import Cursor, TrainingRows
from discovery.features.training.trainer import make_trainer, step
from discovery.graph import JsonModel

COPIES_PER_PARAMETER = 10  # weights, their gradients, Adam's two moments; a checkpoint of all but the gradients, copied and as it is written
BATCH_SIZED_TENSORS = 6  # tensors as large as a batch's features that a step holds at once
WARM_UP_STEPS, TIMED_STEPS = 2, 3  # steps
REPORTS_PER_TRAINING = 20  # scores on the way, on few held-out tokens


class TrainingEstimate(JsonModel):
    """What a training takes.

    Attributes:
        seconds: in all. memory_bytes: at most, beside the model. checkpoint_bytes: on disk while it runs.
        tokens_per_second: that the model reads. seconds_per_step: of the trainer.
        epochs: passes over the text.
    """

    seconds: float
    memory_bytes: int
    checkpoint_bytes: int
    tokens_per_second: float
    seconds_per_step: float
    steps: int
    tokens: int
    epochs: float
    documents: int

    def describe(self) -> str:
        """In a few words."""
        return (
            f"{self.tokens:,} tokens in {self.steps:,} steps, {self.epochs:.1f} passes over {self.documents:,} documents: "
            f"about {_duration(self.seconds)} and {self.memory_bytes / 1e9:.2f} GB beside the model"
        )


def peak_memory_needed(model: Backend, recipe: SAERecipe) -> int:
    """Bytes at the peak of a training, beside the model's weights; measured peaks are below it (by a fifth to a third of large ones)."""
    info, numbers = model.info, 4
    parameters = COPIES_PER_PARAMETER * recipe.d_sae * (2 * recipe.d_in + 1)
    batches = BATCH_SIZED_TENSORS * recipe.batch * (recipe.d_sae + recipe.d_in)
    block = (
        3 * recipe.batches_per_block * recipe.batch * recipe.d_in
    )  # the parts, the whole, and the whole in its new order
    tokens = TOKENS_PER_PASS.get(model.device.type, 4096)
    forward = tokens * (
        8 * info.d_model + 3 * info.macs_mlp // max(info.d_model, 1) + info.n_heads * recipe.context
    )
    scores = MAX_LOGITS_BYTES // 2 + tokens * (2 * recipe.d_sae + 4 * recipe.d_in)
    return numbers * (parameters + batches + block + max(forward, scores))


def require_memory(model: Backend, recipe: SAERecipe, limit: int | None) -> None:
    """Check that a training fits.

    Raises:
        MemoryLimitError: with what it takes.
    """
    need, free = peak_memory_needed(model, recipe), read_free_memory(model.device)
    most = free if limit is None else min(limit, free)
    if need > most:
        what = "free here" if limit is None or free < limit else "allowed"
        raise MemoryLimitError(
            f"Training {recipe.d_sae:,} features with batches of {recipe.batch:,} takes about {need / 1e9:.2f} GB, "
            f"and {most / 1e9:.2f} GB are {what}.",
            "Take fewer features or a smaller batch, or free memory.",
        )


def time_training(
    model: Backend, recipe: SAERecipe, rows: TrainingRows, tick: Callable[[], None] | None = None
) -> TrainingEstimate:
    """Time a few passes and steps of a trainer that is thrown away."""
    device = model.device
    wanted = min(2 * TOKENS_PER_PASS.get(device.type, 4096), recipe.tokens)
    read, after = rows.take(Cursor(), wanted, 0)
    used = after.document + after.epoch * rows.documents
    began, parts = time.monotonic(), []
    for _, where, activation in read_activations(model, recipe.parsed_site, read, 0):
        parts.append(activation[where])
        if tick is not None:
            tick()
    _wait(device)
    speed = sum(map(len, parts)) / max(time.monotonic() - began, 1e-9)
    whole = torch.cat(parts)
    batch = whole.repeat(-(-recipe.batch // len(whole)), 1)[: recipe.batch]
    trainer = make_trainer(
        recipe, iter(()), model.info.device, whole.mean(0), float(whole.norm(dim=-1).mean())
    )
    for _ in range(WARM_UP_STEPS):
        step(trainer, batch)
    _wait(device)
    began = time.monotonic()
    for _ in range(TIMED_STEPS):
        step(trainer, batch)
    _wait(device)
    each = (time.monotonic() - began) / TIMED_STEPS
    held = sum(map(len, rows.heldout))
    full = (
        6 * model.info.n_layers / (recipe.parsed_site.layer + 1)
    )  # passes for the scores, of the whole model
    scored = (held + REPORTS_PER_TRAINING * min(held, PROGRESS_SAMPLE_TOKENS)) * full / speed
    return TrainingEstimate(
        seconds=recipe.tokens / speed + recipe.steps * each + scored,
        memory_bytes=peak_memory_needed(model, recipe),
        checkpoint_bytes=12 * recipe.d_sae * (2 * recipe.d_in + 1),
        tokens_per_second=speed,
        seconds_per_step=each,
        steps=recipe.steps,
        tokens=recipe.tokens,
        epochs=recipe.tokens * used / max(1, sum(map(len, read))) / rows.documents,
        documents=rows.documents,
    )


def _wait(device: torch.device) -> None:
    """For what a GPU has yet to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
