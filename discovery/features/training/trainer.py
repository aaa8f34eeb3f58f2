"""SAELens's own trainer for one dictionary: made from a recipe, packed into a checkpoint and unpacked again, and saved.

The loop is ours (`steps`): SAELens's `SAETrainer.step` is its seam for that. Its activations are scaled to a mean norm of √d_in, and the
factor is folded into the weights at the end, so that the dictionary reads activations as they are.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from discovery.features.directory import CONFIG_FILE, WEIGHTS_FILE
from discovery.features.hooks import format_hook
from discovery.features.sae import Codes
from discovery.features.training.recipe import SAERecipe
from discovery.graph.strict_json import dumps
from discovery.store.files import write_bytes

Trainer = Any  # sae_lens.training.sae_trainer.SAETrainer
_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples")
_TALLIES = ("act_freq_scores", "n_forward_passes_since_fired")


@contextlib.contextmanager
def silence_saelens() -> Iterator[None]:
    """SAELens and what it imports print and warn."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_trainer(
    recipe: SAERecipe,
    supply: Iterator[Tensor],
    device: str,
    mean: Float[Tensor, "d_in"],
    norm: float,
) -> Trainer:
    """A trainer at its first step.

    Args:
        supply: batches of activations.
        mean, norm: of the activations: where the decoder's bias starts, and what they are scaled by.
    """
    with silence_saelens():
        from sae_lens import (
            StandardTrainingSAE,
            StandardTrainingSAEConfig,
            TopKTrainingSAE,
            TopKTrainingSAEConfig,
        )
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        same = {
            "d_in": recipe.d_in,
            "d_sae": recipe.d_sae,
            "device": device,
            "normalize_activations": "expected_average_only_in",
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            if recipe.architecture == "topk":
                sae: Any = TopKTrainingSAE(TopKTrainingSAEConfig(k=recipe.k or 1, **same))
            else:
                sae = StandardTrainingSAE(
                    StandardTrainingSAEConfig(
                        l1_coefficient=recipe.l1 or 0.0,
                        l1_warm_up_steps=recipe.warm_up_steps,
                        **same,
                    )
                )
        settings = SAETrainerConfig(
            total_training_samples=recipe.tokens,
            train_batch_size_samples=recipe.batch,
            lr=recipe.learning_rate,
            lr_end=recipe.learning_rate,
            lr_warm_up_steps=recipe.warm_up_steps,
            lr_decay_steps=recipe.decay_steps,
            device=device,
            dead_feature_window=recipe.dead_after_steps,
            feature_sampling_window=max(1, recipe.steps),
        )
        trainer = SAETrainer(settings, sae, supply)
    trainer.activation_scaler.scaling_factor = recipe.d_in**0.5 / norm
    with torch.no_grad():
        sae.b_dec.copy_(mean.to(sae.b_dec) * trainer.activation_scaler.scaling_factor)
    return trainer


def step(trainer: Trainer, batch: Float[Tensor, "batch d_in"]) -> Any:
    """One step; SAELens's TrainStepOutput."""
    found = trainer.step(batch)
    trainer.n_training_steps += 1
    return found


@torch.no_grad()
def encode(trainer: Trainer, activation: Float[Tensor, "row pos d_in"]) -> Codes:
    """The unfinished dictionary's view of an activation."""
    scaled = trainer.activation_scaler.scale(activation)
    features = trainer.sae.encode(scaled)
    found = trainer.activation_scaler.unscale(trainer.sae.decode(features))
    return Codes(features, found, torch.ones_like(found[..., :1]))


def dead_share(trainer: Trainer) -> float:
    """Share of the features that fired in none of the last steps of the window."""
    return float(trainer.dead_neurons.float().mean())


def pack_checkpoint(trainer: Trainer, extra: Mapping[str, Any]) -> bytes:
    """Everything that the next step depends on, as safetensors; numbers and `more` as strict JSON in its metadata."""
    tensors = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    kept = trainer.optimizer.state_dict()
    for number, state in kept["state"].items():
        tensors |= {
            f"adam.{number}.{name}": torch.as_tensor(value) for name, value in state.items()
        }
    tensors |= {name: getattr(trainer, name) for name in _TALLIES}
    facts = {
        "more": extra,
        "counts": {name: int(getattr(trainer, name)) for name in _COUNTS},
        "scaling_factor": trainer.activation_scaler.scaling_factor,
        "groups": kept["param_groups"],
        "rates": trainer.lr_scheduler.state_dict(),
        "coefficients": {
            name: schedule.state_dict() for name, schedule in trainer.coefficient_schedulers.items()
        },
    }
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    packed: bytes = save(own, metadata={"state": dumps(facts)})
    return packed


def read_checkpoint_state(content: bytes) -> dict[str, Any]:
    """The numbers of a checkpoint."""
    size = int.from_bytes(content[:8], "little")
    facts: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["state"])
    return facts


def unpack_checkpoint(trainer: Trainer, content: bytes) -> None:
    """Put a trainer where it was packed."""
    facts, tensors = read_checkpoint_state(content), load(content)
    trainer.sae.load_state_dict(
        {name[4:]: value for name, value in tensors.items() if name.startswith("sae.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, number, kind = name.split(".")
            state.setdefault(int(number), {})[kind] = value
    trainer.optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
    trainer.lr_scheduler.load_state_dict(facts["rates"])
    for name, schedule in facts["coefficients"].items():
        trainer.coefficient_schedulers[name].load_state_dict(schedule)
    for name in _TALLIES:
        setattr(trainer, name, tensors[name].to(trainer.cfg.device))
    for name, value in facts["counts"].items():
        setattr(trainer, name, value)
    trainer.activation_scaler.scaling_factor = facts["scaling_factor"]


def fold_normalisation(trainer: Trainer, recipe: SAERecipe) -> None:
    """Fold the scale into the weights, and decoder norms into a standard dictionary's activations."""
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.activation_scaler.scaling_factor = None
    if recipe.architecture == "standard":
        trainer.sae.fold_W_dec_norm()
    trainer.sae.cfg.device = "cpu"  # what reads it says where


def write_sae(
    trainer: Trainer, recipe: SAERecipe, directory: Path, metadata: Mapping[str, Any]
) -> None:
    """Save a finished dictionary as SAELens does, each file in one step, its configuration last.

    Args:
        metadata: of SAELens's kind: what it was trained on.
    """
    place = recipe.parsed_site
    if place.kind == "z":
        trainer.sae.cfg.reshape_activations = "hook_z"  # SAELens's word for heads side by side
    for name, value in {
        "hook_name": format_hook(place),
        "hook_layer": place.layer,
        "context_size": recipe.context,
        **metadata,
    }.items():
        setattr(trainer.sae.cfg.metadata, name, value)
    with tempfile.TemporaryDirectory() as folder, silence_saelens():
        trainer.sae.save_inference_model(folder)
        weights, config = (Path(folder, name).read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE))
    write_bytes(directory / WEIGHTS_FILE, weights)
    write_bytes(
        directory / CONFIG_FILE, (dumps(json.loads(config), indent=1) + "\n").encode("ascii")
    )
