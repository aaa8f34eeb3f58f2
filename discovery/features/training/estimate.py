"""What a training will take, before it is begun: memory from the sizes, time from a few timed steps."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from discovery.backends.base import Backend
from discovery.backends.hardware.memory import free_memory
from discovery.errors import MemoryLimitError
from discovery.features.training.activations import TOKENS_PER_PASS, passes
from discovery.features.training.recipe import Recipe
from discovery.features.training.scores import LOGITS_BYTES, SAMPLE
from discovery.features.training.text import Cursor, Rows
from discovery.features.training.trainer import make_trainer, step
from discovery.graph import Record

PARAMETERS = 10  # weights, their gradients, Adam's two moments; a checkpoint of all but the gradients, copied and as it is written
BATCHES = 6  # tensors as large as a batch's features that a step holds at once
WARM, TIMED = 2, 3  # steps
REPORTS = 20  # scores on the way, on few held-out tokens


class Estimate(Record):
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

    def told(self) -> str:
        """In a few words."""
        return (
            f"{self.tokens:,} tokens in {self.steps:,} steps, {self.epochs:.1f} passes over {self.documents:,} documents: "
            f"about {_duration(self.seconds)} and {self.memory_bytes / 1e9:.2f} GB beside the model"
        )


def memory_of(model: Backend, recipe: Recipe) -> int:
    """Bytes at the peak of a training, beside the model's weights; measured peaks are below it (by a fifth to a third of large ones)."""
    info, numbers = model.info, 4
    parameters = PARAMETERS * recipe.d_sae * (2 * recipe.d_in + 1)
    batches = BATCHES * recipe.batch * (recipe.d_sae + recipe.d_in)
    block = 3 * recipe.block * recipe.batch * recipe.d_in  # the parts, the whole, and the whole in its new order
    tokens = TOKENS_PER_PASS.get(model.device.type, 4096)
    forward = tokens * (8 * info.d_model + 3 * info.macs_mlp // max(info.d_model, 1) + info.n_heads * recipe.context)
    scores = LOGITS_BYTES // 2 + tokens * (2 * recipe.d_sae + 4 * recipe.d_in)
    return numbers * (parameters + batches + block + max(forward, scores))


def require_memory(model: Backend, recipe: Recipe, limit: int | None) -> None:
    """Check that a training fits.

    Raises:
        MemoryLimitError: with what it takes.
    """
    need, free = memory_of(model, recipe), free_memory(model.device)
    most = free if limit is None else min(limit, free)
    if need > most:
        what = "free here" if limit is None or free < limit else "allowed"
        raise MemoryLimitError(
            f"Training {recipe.d_sae:,} features with batches of {recipe.batch:,} takes about {need / 1e9:.2f} GB, "
            f"and {most / 1e9:.2f} GB are {what}.",
            "Take fewer features or a smaller batch, or free memory.",
        )


def estimate(model: Backend, recipe: Recipe, rows: Rows, tick: Callable[[], None] | None = None) -> Estimate:
    """Time a few passes and steps of a trainer that is thrown away."""
    device = model.device
    wanted = min(2 * TOKENS_PER_PASS.get(device.type, 4096), recipe.tokens)
    read, after = rows.take(Cursor(), wanted, 0)
    used = after.document + after.epoch * rows.documents
    began, parts = time.monotonic(), []
    for _, where, activation in passes(model, recipe.place, read, 0):
        parts.append(activation[where])
        if tick is not None:
            tick()
    _wait(device)
    speed = sum(map(len, parts)) / max(time.monotonic() - began, 1e-9)
    whole = torch.cat(parts)
    batch = whole.repeat(-(-recipe.batch // len(whole)), 1)[: recipe.batch]
    trainer = make_trainer(recipe, iter(()), model.info.device, whole.mean(0), float(whole.norm(dim=-1).mean()))
    for _ in range(WARM):
        step(trainer, batch)
    _wait(device)
    began = time.monotonic()
    for _ in range(TIMED):
        step(trainer, batch)
    _wait(device)
    each = (time.monotonic() - began) / TIMED
    held = sum(map(len, rows.heldout))
    full = 6 * model.info.n_layers / (recipe.place.layer + 1)  # passes for the scores, of the whole model
    scored = (held + REPORTS * min(held, SAMPLE)) * full / speed
    return Estimate(
        seconds=recipe.tokens / speed + recipe.steps * each + scored,
        memory_bytes=memory_of(model, recipe),
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
