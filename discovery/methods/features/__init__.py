"""Measurements on the features of a sparse autoencoder (SAE).

`sae_top_features` finds the features that matter on a prompt or a task, `edit_features` and
`generate_with_features` change features, `feature_examples` shows where features fire in a text,
and `add_features` puts features beside the heads of a circuit record.
"""

from discovery.methods.features.circuit.candidates import Candidate
from discovery.methods.features.circuit.feature_circuit import FeatureCircuit, add_features
from discovery.methods.features.edit import FeatureEditResult, edit_features
from discovery.methods.features.examples.feature_examples import FeatureExamples, feature_examples
from discovery.methods.features.examples.sampling import Sampling
from discovery.methods.features.generate import (
    Continuation,
    GenerationResult,
    generate_with_features,
)
from discovery.methods.features.reconstruction import Reconstruction
from discovery.methods.features.top_features import Feature, TopFeatures, sae_top_features

__all__ = [
    "Candidate",
    "Continuation",
    "Feature",
    "FeatureCircuit",
    "FeatureEditResult",
    "FeatureExamples",
    "GenerationResult",
    "Reconstruction",
    "Sampling",
    "TopFeatures",
    "add_features",
    "edit_features",
    "feature_examples",
    "generate_with_features",
    "sae_top_features",
]
