"""What a training will take: memory from the sizes, and time from a few timed steps."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from discovery.backends.base import Backend
from discovery.backends.hardware.memory import read_free_memory
from discovery.errors import MemoryLimitError
from discovery.features.training.activations import read_activations, tokens_per_pass
from discovery.features.training.recipe import SAERecipe
from discovery.features.training.scores import MAX_LOGITS_BYTES, PROGRESS_SAMPLE_TOKENS
from discovery.features.training.text import Cursor, Row, TrainingRows
from discovery.features.training.trainer import make_trainer, step
from discovery.graph import JsonModel

BYTES_PER_NUMBER = 4

# Numbers held for each parameter: the weight, its gradient and Adam's two moments; and for a
# checkpoint the weight and the moments, once copied and once written (1 + 1 + 2 + 3 + 3).
COPIES_PER_PARAMETER = 10

BATCH_SIZED_TENSORS = 6  # tensors as large as a batch's features that a step holds at once
WARM_UP_STEPS = 2
TIMED_STEPS = 3
REPORTS_PER_TRAINING = 20  # scores on a few held-out tokens while the training runs


class TrainingEstimate(JsonModel):
    """What a training takes.

    Attributes:
        seconds: the whole time.
        memory_bytes: the peak beside the model.
        checkpoint_bytes: on disk while the training runs.
        tokens_per_second: tokens that the model reads in a second.
        seconds_per_step: time of one step of the trainer.
        steps: optimizer steps.
        tokens: positions to train on.
        epochs: passes over the text.
        documents: documents to train on.
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
        """Return the estimate in a few words."""
        return (
            f"{self.tokens:,} tokens in {self.steps:,} steps, {self.epochs:.1f} passes over "
            f"{self.documents:,} documents: about {_duration(self.seconds)} and "
            f"{self.memory_bytes / 1e9:.2f} GB beside the model"
        )


def peak_memory_needed(model: Backend, recipe: SAERecipe) -> int:
    """Estimate the bytes that a training needs at its peak, beside the model's weights.

    Measured peaks of large trainings are a fifth to a third below the estimate.
    """
    info = model.info
    parameters = COPIES_PER_PARAMETER * recipe.d_sae * (2 * recipe.d_in + 1)
    batches = BATCH_SIZED_TENSORS * recipe.batch * (recipe.d_sae + recipe.d_in)
    # Activations of a block are held in parts, joined, and joined in their new order.
    block = 3 * recipe.batches_per_block * recipe.batch * recipe.d_in
    tokens = tokens_per_pass(model.device)
    mlp = 3 * info.macs_mlp // max(info.d_model, 1)
    forward = tokens * (8 * info.d_model + mlp + info.n_heads * recipe.context)
    scores = MAX_LOGITS_BYTES // 2 + tokens * (2 * recipe.d_sae + 4 * recipe.d_in)
    return BYTES_PER_NUMBER * (parameters + batches + block + max(forward, scores))


def require_memory(model: Backend, recipe: SAERecipe, limit: int | None) -> None:
    """Check that a training fits in memory.

    Args:
        limit: bytes that the training may take; None allows all that is free.

    Raises:
        MemoryLimitError: if it does not fit; it says what the training needs.
    """
    need = peak_memory_needed(model, recipe)
    free = read_free_memory(model.device)
    available = free if limit is None else min(limit, free)
    if need > available:
        what = "free here" if limit is None or free < limit else "allowed"
        raise MemoryLimitError(
            f"Training {recipe.d_sae:,} features with batches of {recipe.batch:,} takes about "
            f"{need / 1e9:.2f} GB, and {available / 1e9:.2f} GB are {what}.",
            "Choose fewer features or a smaller batch, or free memory.",
        )


def time_training(
    model: Backend, recipe: SAERecipe, rows: TrainingRows, on_pass: Callable[[], None] | None = None
) -> TrainingEstimate:
    """Time a few forward passes, and a few steps of a trainer that is thrown away.

    Args:
        on_pass: called after each forward pass. It may raise Interrupted.
    """
    n_tokens = min(2 * tokens_per_pass(model.device), recipe.tokens)
    sample, after = rows.take(Cursor(), n_tokens, 0)
    activations, tokens_per_second = _time_reading(model, recipe, sample, on_pass)
    seconds_per_step = _time_steps(model, recipe, activations)
    n_heldout = sum(map(len, rows.heldout))
    scored_tokens = n_heldout + REPORTS_PER_TRAINING * min(n_heldout, PROGRESS_SAMPLE_TOKENS)
    # Scores run the whole model several times, not only the layers up to the site.
    passes = 6 * model.info.n_layers / (recipe.parsed_site.layer + 1)
    seconds_scoring = scored_tokens * passes / tokens_per_second
    documents_read = after.document + after.epoch * rows.documents
    tokens_read = max(1, sum(map(len, sample)))
    return TrainingEstimate(
        seconds=recipe.tokens / tokens_per_second
        + recipe.steps * seconds_per_step
        + seconds_scoring,
        memory_bytes=peak_memory_needed(model, recipe),
        checkpoint_bytes=12 * recipe.d_sae * (2 * recipe.d_in + 1),
        tokens_per_second=tokens_per_second,
        seconds_per_step=seconds_per_step,
        steps=recipe.steps,
        tokens=recipe.tokens,
        epochs=recipe.tokens * documents_read / tokens_read / rows.documents,
        documents=rows.documents,
    )


def _time_reading(
    model: Backend, recipe: SAERecipe, rows: list[Row], on_pass: Callable[[], None] | None
) -> tuple[Tensor, float]:
    """Return the activations [n d_in] of some rows, and the tokens that were read in a second."""
    started = time.monotonic()
    parts = []
    for _, mask, activation in read_activations(model, recipe.parsed_site, rows, 0):
        parts.append(activation[mask])
        if on_pass is not None:
            on_pass()
    _synchronize(model.device)
    seconds = max(time.monotonic() - started, 1e-9)
    return torch.cat(parts), sum(map(len, parts)) / seconds


def _time_steps(model: Backend, recipe: SAERecipe, activations: Tensor) -> float:
    """Return the seconds that one step of a trainer takes."""
    repeats = -(-recipe.batch // len(activations))
    batch = activations.repeat(repeats, 1)[: recipe.batch]
    norm = float(activations.norm(dim=-1).mean())
    trainer = make_trainer(recipe, iter(()), model.info.device, activations.mean(0), norm)
    for _ in range(WARM_UP_STEPS):
        step(trainer, batch)
    _synchronize(model.device)
    started = time.monotonic()
    for _ in range(TIMED_STEPS):
        step(trainer, batch)
    _synchronize(model.device)
    return (time.monotonic() - started) / TIMED_STEPS


def _synchronize(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
