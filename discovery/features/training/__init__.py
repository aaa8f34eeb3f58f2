"""Training a dictionary of one's own: `train_sae`, on any model, site and text."""

from discovery.features.training.estimate import Estimate
from discovery.features.training.recipe import Architecture, Recipe, make_recipe
from discovery.features.training.run import Trained, estimate_training, go_on_training, resume_training, train_sae
from discovery.features.training.scores import Scores

__all__ = [
    "Architecture",
    "Estimate",
    "Recipe",
    "Scores",
    "Trained",
    "estimate_training",
    "go_on_training",
    "make_recipe",
    "resume_training",
    "train_sae",
]
