"""Training a sparse autoencoder of one's own, for any model, site and text: `train_sae`."""

from discovery.features.training.estimate import TrainingEstimate
from discovery.features.training.recipe import Architecture, SAERecipe, make_recipe
from discovery.features.training.run import (
    TrainedSAE,
    continue_training,
    estimate_training,
    resume_training,
    train_sae,
)
from discovery.features.training.scores import Scores

__all__ = [
    "Architecture",
    "SAERecipe",
    "Scores",
    "TrainedSAE",
    "TrainingEstimate",
    "continue_training",
    "estimate_training",
    "make_recipe",
    "resume_training",
    "train_sae",
]
