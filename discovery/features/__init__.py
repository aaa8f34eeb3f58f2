"""Sparse autoencoders (SAEs): an activation as a sum of features that each stand for something.

    from discovery import load_model
    from discovery.features import load_sae
    model = load_model("gpt2")
    sae = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre", model)
    sae.encode(activation)                                                  # [row pos feature]

`load_sae` also opens a SAELens directory, "bundled" for the bundled model's SAE, and the id of a
finished training (see the package `training`).
"""

from discovery.features.change import ErrorTerm, FeatureChange, Operation
from discovery.features.directory import short_name
from discovery.features.load import load_sae, open_sae
from discovery.features.sae import SAE, Codes

__all__ = [
    "SAE",
    "Codes",
    "ErrorTerm",
    "FeatureChange",
    "Operation",
    "load_sae",
    "open_sae",
    "short_name",
]
