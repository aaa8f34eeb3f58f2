"""SAELens's own trainer for one SAE: made from a recipe, kept in a checkpoint, and saved.

The loop around it is ours (`loop`), because SAELens provides `SAETrainer.step` for that. The
trainer scales activations to a mean norm of √d_in, and the factor is folded into the weights at the
end, so that the finished SAE reads activations as they are.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from discovery.features.directory import CONFIG_FILE, WEIGHTS_FILE
from discovery.features.hooks import format_hook
from discovery.features.load import capture_saelens_output
from discovery.features.sae import Codes
from discovery.features.training.recipe import SAERecipe
from discovery.graph.strict_json import dumps
from discovery.store.files import write_bytes

Trainer = Any  # sae_lens.training.sae_trainer.SAETrainer

# Attributes of a trainer that a checkpoint holds: numbers, and tensors.
_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples")
_TALLIES = ("act_freq_scores", "n_forward_passes_since_fired")


def make_trainer(
    recipe: SAERecipe,
    batches: Iterator[Tensor],
    device: str,
    mean: Float[Tensor, "d_in"],
    norm: float,
) -> Trainer:
    """Make a trainer at its first step.

    Args:
        batches: batches of activations.
        mean: mean activation, at which the decoder's bias starts.
        norm: mean norm of the activations, by which they are scaled.
    """
    with capture_saelens_output():
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            sae = _make_training_sae(recipe, device)
        config = SAETrainerConfig(
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
        trainer = SAETrainer(config, sae, batches)
    trainer.activation_scaler.scaling_factor = recipe.d_in**0.5 / norm
    with torch.no_grad():
        sae.b_dec.copy_(mean.to(sae.b_dec) * trainer.activation_scaler.scaling_factor)
    return trainer


def _make_training_sae(recipe: SAERecipe, device: str) -> Any:
    """Return SAELens's module to train, with random weights."""
    from sae_lens import (
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )

    shared = {
        "d_in": recipe.d_in,
        "d_sae": recipe.d_sae,
        "device": device,
        "normalize_activations": "expected_average_only_in",
    }
    if recipe.architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(k=recipe.k or 1, **shared))
    return StandardTrainingSAE(
        StandardTrainingSAEConfig(
            l1_coefficient=recipe.l1 or 0.0, l1_warm_up_steps=recipe.warm_up_steps, **shared
        )
    )


def step(trainer: Trainer, batch: Float[Tensor, "batch d_in"]) -> Any:
    """Take one step, and return SAELens's TrainStepOutput."""
    output = trainer.step(batch)
    trainer.n_training_steps += 1
    return output


@torch.no_grad()
def encode(trainer: Trainer, activation: Float[Tensor, "row pos d_in"]) -> Codes:
    """Encode and decode an activation with the unfinished SAE."""
    scaled = trainer.activation_scaler.scale(activation)
    features = trainer.sae.encode(scaled)
    reconstruction = trainer.activation_scaler.unscale(trainer.sae.decode(features))
    return Codes(features, reconstruction, torch.ones_like(reconstruction[..., :1]))


def dead_share(trainer: Trainer) -> float:
    """Return the share of the features that are dead (see `SAERecipe.dead_after_steps`)."""
    return float(trainer.dead_neurons.float().mean())


def pack_checkpoint(trainer: Trainer, extra: Mapping[str, Any]) -> bytes:
    """Return everything on which the next step depends, as safetensors.

    Args:
        extra: further state, which is kept as "more" with the numbers, as strict JSON in the
            metadata.
    """
    tensors = {f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}
    optimizer = trainer.optimizer.state_dict()
    for number, state in optimizer["state"].items():
        for name, value in state.items():
            tensors[f"adam.{number}.{name}"] = torch.as_tensor(value)
    tensors |= {name: getattr(trainer, name) for name in _TALLIES}
    schedulers = trainer.coefficient_schedulers
    state = {
        "more": extra,
        "counts": {name: int(getattr(trainer, name)) for name in _COUNTS},
        "scaling_factor": trainer.activation_scaler.scaling_factor,
        "groups": optimizer["param_groups"],
        "rates": trainer.lr_scheduler.state_dict(),
        "coefficients": {name: schedule.state_dict() for name, schedule in schedulers.items()},
    }
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    packed: bytes = save(copies, metadata={"state": dumps(state)})
    return packed


def read_checkpoint_state(content: bytes) -> dict[str, Any]:
    """Return the numbers of a checkpoint, without its tensors."""
    size = int.from_bytes(content[:8], "little")  # of the safetensors header
    header = json.loads(content[8 : 8 + size])
    state: dict[str, Any] = json.loads(header["__metadata__"]["state"])
    return state


def unpack_checkpoint(trainer: Trainer, content: bytes) -> None:
    """Put a trainer into the state of a checkpoint."""
    state = read_checkpoint_state(content)
    tensors = load(content)
    weights = {name[4:]: value for name, value in tensors.items() if name.startswith("sae.")}
    trainer.sae.load_state_dict(weights)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, number, kind = name.split(".")
            moments.setdefault(int(number), {})[kind] = value
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": state["groups"]})
    trainer.lr_scheduler.load_state_dict(state["rates"])
    for name, schedule in state["coefficients"].items():
        trainer.coefficient_schedulers[name].load_state_dict(schedule)
    for name in _TALLIES:
        setattr(trainer, name, tensors[name].to(trainer.cfg.device))
    for name, value in state["counts"].items():
        setattr(trainer, name, value)
    trainer.activation_scaler.scaling_factor = state["scaling_factor"]


def fold_normalisation(trainer: Trainer, recipe: SAERecipe) -> None:
    """Fold the scale of the activations into the weights.

    In a standard SAE the norms of the decoder's rows are folded into the activations, too.
    """
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.activation_scaler.scaling_factor = None
    if recipe.architecture == "standard":
        trainer.sae.fold_W_dec_norm()
    trainer.sae.cfg.device = "cpu"  # whoever loads the SAE chooses the device


def write_sae(
    trainer: Trainer, recipe: SAERecipe, directory: Path, metadata: Mapping[str, Any]
) -> None:
    """Save a finished SAE as SAELens does, each file in one step, and its configuration last.

    Args:
        metadata: SAELens's metadata: what the SAE was trained on.
    """
    site = recipe.parsed_site
    if site.kind == "z":
        trainer.sae.cfg.reshape_activations = "hook_z"  # SAELens's name for heads side by side
    own_metadata = {
        "hook_name": format_hook(site),
        "hook_layer": site.layer,
        "context_size": recipe.context,
    }
    for name, value in {**own_metadata, **metadata}.items():
        setattr(trainer.sae.cfg.metadata, name, value)
    with tempfile.TemporaryDirectory() as folder, capture_saelens_output():
        trainer.sae.save_inference_model(folder)
        weights = Path(folder, WEIGHTS_FILE).read_bytes()
        config = json.loads(Path(folder, CONFIG_FILE).read_bytes())
    write_bytes(directory / WEIGHTS_FILE, weights)
    write_bytes(directory / CONFIG_FILE, (dumps(config, indent=1) + "\n").encode("ascii"))
