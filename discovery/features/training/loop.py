"""The loop of one training: its steps, its reports, and checkpoints that a kill cannot damage.

A checkpoint holds everything on which the next step depends: weights, Adam's moments, schedules,
tallies, and the place in the stream of batches. The order of the batches follows from the seed and
that place alone, so no random generator's state is needed. A training that is killed and resumed
ends with the same SAE as one that is not, bit for bit on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.errors import FeatureError, Interrupted
from discovery.features.sae import OUTLIER_NORM_RATIO
from discovery.features.training.activations import (
    ActivationBatches,
    BatchPosition,
    read_activations,
)
from discovery.features.training.estimate import REPORTS_PER_TRAINING
from discovery.features.training.recipe import SAERecipe
from discovery.features.training.scores import PROGRESS_SAMPLE_TOKENS, score_sae
from discovery.features.training.text import Cursor, Row, TrainingRows
from discovery.features.training.trainer import (
    Trainer,
    dead_share,
    encode,
    make_trainer,
    pack_checkpoint,
    read_checkpoint_state,
    step,
    unpack_checkpoint,
)
from discovery.progress import Progress, ProgressCallback, report_progress
from discovery.store import OnEvent, Run

PROGRESS_LABEL = "training"
CHECKPOINT_FILE = "checkpoint.safetensors"
FIRST_LOOK_TOKENS = 8192  # activations of these tokens give the trainer's mean and norm
MAX_CHECKPOINT_SHARE = 1 / 20  # writing checkpoints takes at most this share of the time


@dataclass(kw_only=True)
class TrainingLoop:
    """A training in progress.

    Attributes:
        run: the run whose folder gets the events and checkpoints.
        model: the model whose activations are read.
        recipe: how to train.
        rows: the text.
        progress: called before each step and after each forward pass.
        on_event: called with each event that is written.
        checkpoint_seconds: seconds between two checkpoints, at least.
        started_at: when this session started, by `time.monotonic`.
        earlier_seconds: seconds that earlier sessions took.
        skipped_positions: positions at the start of each row that are left out.
        tokens_done: positions trained on so far.
    """

    run: Run
    model: Backend
    recipe: SAERecipe
    rows: TrainingRows
    progress: ProgressCallback | None = None
    on_event: OnEvent | None = None
    checkpoint_seconds: float = 30.0
    started_at: float = field(default_factory=time.monotonic)
    earlier_seconds: float = 0.0
    skipped_positions: int = 0
    tokens_done: float = 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock time so far, over all sessions."""
        return self.earlier_seconds + time.monotonic() - self.started_at

    def record_event(
        self, stage: str, measured: Mapping[str, Any], concluded: str, why: str
    ) -> None:
        """Write an event into the journal."""
        event = {
            "stage": stage,
            "kind": "stage",
            "measured": measured,
            "concluded": concluded,
            "why": why,
        }
        self.run.append_event(event)
        if self.on_event is not None:
            self.on_event(event)

    def train(self) -> Trainer:
        """Take all remaining steps, and return the trainer.

        Raises:
            FeatureError: if the loss is infinite or NaN.
            Interrupted: from the progress callback, after a checkpoint.
        """
        trainer, batches = self._start_or_resume()
        written_at = time.monotonic()
        checkpoint_cost = 0.0
        report_every = max(1, self.recipe.steps // REPORTS_PER_TRAINING)
        try:
            while trainer.n_training_steps < self.recipe.steps:
                self.tokens_done = float(trainer.n_training_samples)
                self.report_progress()
                output = step(trainer, next(batches))
                if not torch.isfinite(output.loss):
                    raise FeatureError(
                        f"The loss is not finite at step {trainer.n_training_steps} of "
                        f"{self.recipe.steps}.",
                        f"Lower the learning rate, which is {self.recipe.learning_rate:g}.",
                    )
                if trainer.n_training_steps % report_every == 0:
                    self._report(trainer, output)
                pause = max(self.checkpoint_seconds, checkpoint_cost / MAX_CHECKPOINT_SHARE)
                if time.monotonic() - written_at > pause:
                    started = time.monotonic()
                    self._save_checkpoint(trainer, batches)
                    written_at = time.monotonic()
                    checkpoint_cost = written_at - started
        except Interrupted:  # raised between two steps, so nothing is lost
            self._save_checkpoint(trainer, batches)
            raise
        return trainer

    def heldout_sample(self) -> list[Row]:
        """Return a few held-out rows."""
        sample: list[Row] = []
        for row in self.rows.heldout:
            if sample and sum(map(len, sample)) + len(row) > PROGRESS_SAMPLE_TOKENS:
                break
            sample.append(row)
        return sample

    def report_progress(self) -> None:
        """Report how far the training is.

        Raises:
            Interrupted: if the training is to stop.
        """
        progress = Progress(
            step=PROGRESS_LABEL, done=self.tokens_done, total=self.recipe.tokens, unit="tokens"
        )
        report_progress(self.progress, progress)

    def _start_or_resume(self) -> tuple[Trainer, ActivationBatches]:
        """Return a trainer and its batches, at the checkpoint or at the beginning."""
        checkpoint = self.run.load_file(CHECKPOINT_FILE)
        position = None
        if checkpoint is not None:
            place = read_checkpoint_state(checkpoint)["more"]
            position = BatchPosition(Cursor(*place["cursor"]), place["block"], place["used"])
            self.skipped_positions = place["skip"]
            self.earlier_seconds = place["seconds"]
        mean, norm, first_ratio = self._first_activations()
        if checkpoint is None:
            self._decide_skip(norm, first_ratio)
        batches = ActivationBatches(
            self.model,
            self.rows,
            self.recipe,
            self.skipped_positions,
            position=position,
            on_pass=self.report_progress,
        )
        trainer = make_trainer(self.recipe, batches, self.model.info.device, mean, norm)
        if checkpoint is not None:
            unpack_checkpoint(trainer, checkpoint)
            self.run.append_event(
                {
                    "stage": "resume",
                    "kind": "decision",
                    "concluded": f"from step {trainer.n_training_steps}",
                }
            )
        return trainer, batches

    def _decide_skip(self, norm: float, first_ratio: float) -> None:
        """Leave the first position out if its activations are outliers, and record it."""
        self.skipped_positions = int(first_ratio > OUTLIER_NORM_RATIO)
        why = "the first position is used like the others"
        if self.skipped_positions:
            why = (
                f"the first position is left out: its activation is {first_ratio:.0f} times as "
                "long as the others'"
            )
        self.record_event(
            "text",
            {
                "first_position_length": first_ratio,
                "skip": self.skipped_positions,
                "mean_length": norm,
            },
            f"{self.rows.documents:,} documents to train on, {len(self.rows.heldout):,} rows "
            "held out",
            why,
        )

    def _first_activations(self) -> tuple[Float[Tensor, "d_in"], float, float]:
        """Look at the first activations of the text.

        Returns:
            Their mean, their mean norm, and how many times as long the first position's activations
            are as the others'. If they are outliers, they count in neither mean.
        """
        firsts, others = [], []
        rows, _ = self.rows.take(Cursor(), FIRST_LOOK_TOKENS, 0)
        for _, mask, activation in read_activations(self.model, self.recipe.parsed_site, rows, 0):
            self.report_progress()
            firsts.append(activation[:, 0])
            mask[:, 0] = False
            others.append(activation[mask])
        first = torch.cat(firsts)
        other = torch.cat(others)
        other_norm = other.norm(dim=-1).mean().clamp(min=1e-12)
        first_ratio = float(first.norm(dim=-1).mean() / other_norm)
        used = other if first_ratio > OUTLIER_NORM_RATIO else torch.cat([first, other])
        norm = float(used.norm(dim=-1).mean())
        if not norm > 0:
            raise FeatureError(
                f"{self.recipe.site} is 0 on this text: there is nothing to learn.",
                "Choose another site.",
            )
        return used.mean(0), norm, first_ratio

    def _save_checkpoint(self, trainer: Trainer, batches: ActivationBatches) -> None:
        position = batches.position
        place = {
            "cursor": [position.cursor.epoch, position.cursor.document],
            "block": position.block,
            "used": position.batches_used,
            "skip": self.skipped_positions,
            "seconds": self.seconds,
        }
        self.run.save_file(CHECKPOINT_FILE, pack_checkpoint(trainer, place))

    def _report(self, trainer: Trainer, output: Any) -> None:
        """Record scores of the batch that was just trained on, and of a few held-out rows."""
        with torch.no_grad():
            spread = (output.sae_in - output.sae_in.mean(0)).square().sum()
            residual = (output.sae_in - output.sae_out).square().sum()
            explained = 1 - float(residual / spread.clamp(min=1e-12))
            active = float((output.feature_acts != 0).float().sum(-1).mean())
        scores = score_sae(
            self.model,
            self.recipe.parsed_site,
            self.heldout_sample(),
            self.skipped_positions,
            lambda activation: encode(trainer, activation),
            dead_share(trainer),
        )
        loss = output.loss.item()
        measured = {
            "step": trainer.n_training_steps,
            "tokens": trainer.n_training_samples,
            "loss": loss,
            "learning_rate": float(trainer.optimizer.param_groups[0]["lr"]),
            "batch": {"variance_explained": explained, "l0": active},
            "heldout": scores,
            "seconds": round(self.seconds, 1),
        }
        self.record_event(
            "train",
            measured,
            f"step {trainer.n_training_steps} of {self.recipe.steps}: {scores.describe()}",
            f"loss {loss:.4g} on the batch, of whose variance {explained:.3f} is explained",
        )
