"""One training at work: the steps, what is told on the way, and checkpoints that a kill cannot damage.

Everything the next step depends on is in the checkpoint: weights, Adam's moments, schedules, tallies, and the place in the supply, whose
order follows from the seed and that place alone (so that no generator's state is needed). A training that is killed and resumed ends
with the same dictionary, bit by bit on the same machine, as one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from discovery.backends.base import Backend
from discovery.errors import FeatureError, Interrupted
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
from discovery.store import Run

OnEvent = Callable[[Mapping[str, Any]], None]

OUTLIER_NORM_RATIO = 10.0  # times the norm of the others: the first token, on which attention rests
PROGRESS_LABEL = "training"
CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass
class TrainingLoop:
    """What a training has at hand.

    Attributes:
        every: seconds between two checkpoints.
        earlier: seconds of earlier sessions.
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
        """Wall-clock time so far."""
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
        """All steps that are left; the trainer after the last."""
        trainer, supply = self._start_or_resume()
        written, cost = time.monotonic(), 0.0
        try:
            while trainer.n_training_steps < self.recipe.steps:
                self.tokens_done = float(trainer.n_training_samples)
                self.report_progress()
                out = step(trainer, next(supply))
                if not torch.isfinite(out.loss):
                    raise FeatureError(
                        f"The loss is no number at step {trainer.n_training_steps} of {self.recipe.steps}.",
                        f"Lower the learning rate, which is {self.recipe.learning_rate:g}.",
                    )
                if (
                    trainer.n_training_steps % max(1, self.recipe.steps // REPORTS_PER_TRAINING)
                    == 0
                ):
                    self._report(trainer, out)
                if time.monotonic() - written > max(self.checkpoint_seconds, 20 * cost):
                    began = time.monotonic()
                    self._checkpoint(trainer, supply)
                    written = time.monotonic()
                    cost = written - began
        except Interrupted:  # raised between two steps: nothing is lost
            self._checkpoint(trainer, supply)
            raise
        return trainer

    def heldout_sample(self) -> list[Row]:
        """A few held-out rows."""
        found: list[Row] = []
        for row in self.rows.heldout:
            if found and sum(map(len, found)) + len(row) > PROGRESS_SAMPLE_TOKENS:
                break
            found.append(row)
        return found

    def _start_or_resume(self) -> tuple[Trainer, ActivationBatches]:
        """A trainer where the checkpoint has it, or at its beginning."""
        kept = self.run.load_file(CHECKPOINT_FILE)
        facts = read_checkpoint_state(kept) if kept is not None else None
        place = None
        if facts is not None:
            at = facts["more"]
            place, self.skipped_positions, self.earlier_seconds = (
                BatchPosition(Cursor(*at["cursor"]), at["block"], at["used"]),
                at["skip"],
                at["seconds"],
            )
        mean, norm, lead = self._first_activations()
        if facts is None:
            self.skipped_positions = int(lead > OUTLIER_NORM_RATIO)
            concluded = f"{self.rows.documents:,} documents to train on, {len(self.rows.heldout):,} rows held out"
            why = "the first position is used like the others"
            if self.skipped_positions:
                why = f"the first position is left out: its activation is {lead:.0f} times as long as the others'"
            self.record_event(
                "text",
                {
                    "first_position_length": lead,
                    "skip": self.skipped_positions,
                    "mean_length": norm,
                },
                concluded,
                why,
            )
        supply = ActivationBatches(
            self.model, self.rows, self.recipe, self.skipped_positions, place, self.report_progress
        )
        trainer = make_trainer(self.recipe, supply, self.model.info.device, mean, norm)
        if kept is not None:
            unpack_checkpoint(trainer, kept)
            self.run.append_event(
                {
                    "stage": "resume",
                    "kind": "decision",
                    "concluded": f"from step {trainer.n_training_steps}",
                }
            )
        return trainer, supply

    def _first_activations(self) -> tuple[torch.Tensor, float, float]:
        """Mean and mean norm of the first activations, and how much longer the first position's are than the others'."""
        first, others = [], []
        read, _ = self.rows.take(Cursor(), 8192, 0)
        for _, where, activation in read_activations(self.model, self.recipe.parsed_site, read, 0):
            self.report_progress()
            first.append(activation[:, 0])
            where[:, 0] = False
            others.append(activation[where])
        one, rest_of = torch.cat(first), torch.cat(others)
        lead = float(one.norm(dim=-1).mean() / rest_of.norm(dim=-1).mean().clamp(min=1e-12))
        whole = rest_of if lead > OUTLIER_NORM_RATIO else torch.cat([one, rest_of])
        norm = float(whole.norm(dim=-1).mean())
        if not norm > 0:
            raise FeatureError(
                f"{self.recipe.site} is 0 on this text: there is nothing to learn.",
                "Choose another site.",
            )
        return whole.mean(0), norm, lead

    def report_progress(self) -> None:
        """Say how far it is; raises Interrupted where it is to stop."""
        progress = Progress(
            step=PROGRESS_LABEL, done=self.tokens_done, total=self.recipe.tokens, unit="tokens"
        )
        report_progress(self.progress, progress)

    def _checkpoint(self, trainer: Trainer, supply: ActivationBatches) -> None:
        at = supply.position
        place = {
            "cursor": [at.cursor.epoch, at.cursor.document],
            "block": at.block,
            "used": at.batches_used,
        }
        self.run.save_file(
            CHECKPOINT_FILE,
            pack_checkpoint(
                trainer, {**place, "skip": self.skipped_positions, "seconds": self.seconds}
            ),
        )

    def _report(self, trainer: Trainer, out: Any) -> None:
        """The batch just trained on, and a few held-out rows."""
        with torch.no_grad():
            spread = (out.sae_in - out.sae_in.mean(0)).square().sum()
            explained = 1 - float(
                (out.sae_in - out.sae_out).square().sum() / spread.clamp(min=1e-12)
            )
            active = float((out.feature_acts != 0).float().sum(-1).mean())
        scores = score_sae(
            self.model,
            self.recipe.parsed_site,
            self.heldout_sample(),
            self.skipped_positions,
            lambda x: encode(trainer, x),
            dead_share(trainer),
        )
        measured = {
            "step": trainer.n_training_steps,
            "tokens": trainer.n_training_samples,
            "loss": out.loss.item(),
            "learning_rate": float(trainer.optimizer.param_groups[0]["lr"]),
            "batch": {"variance_explained": explained, "l0": active},
            "heldout": scores,
            "seconds": round(self.seconds, 1),
        }
        concluded = f"step {trainer.n_training_steps} of {self.recipe.steps}: {scores.describe()}"
        self.record_event(
            "train",
            measured,
            concluded,
            f"loss {out.loss.item():.4g} on the batch, of whose variance {explained:.3f} is explained",
        )
