"""Sparse autoencoders: a layer's activation as a sum of features that each stand for something.

from discovery import load_model
from discovery.features import load_sae
model = load_model("gpt2")
sae = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre", model)      # or a SAELens directory, "bundled", or one of `training`
sae.encode(activation)                                                  # [row pos feature]
"""

from discovery.features.change import ErrorTerm, FeatureChange, Operation
from discovery.features.directory import BUNDLED, short_name
from discovery.features.load import load_sae, open_sae
from discovery.features.sae import SAE, Codes

__all__ = [
    "BUNDLED",
    "SAE",
    "Codes",
    "ErrorTerm",
    "FeatureChange",
    "Operation",
    "load_sae",
    "open_sae",
    "short_name",
]
