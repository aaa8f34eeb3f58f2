"""A sparse autoencoder of any SAELens architecture, as the measurements use it.

With x the activation at a site, z = encode(x) its features, and d_f the decoder's row of feature f,

    x = x̂ + error,    x̂ = rest(x) + s(x) · Σ_f z_f d_f

Here s(x) undoes the SAE's normalisation of its input (it is 1 without one), and rest(x) is what no
feature carries: the decoder's bias, and a transcoder's skip connection. A change of features is one
sum, s · Σ_f (z'_f − z_f) d_f. It is added to x if the error term is kept, and to x̂ if it is
dropped. The sum is exactly 0 if nothing changes (Marks et al. 2024, arXiv 2403.19647).

A transcoder reads one site and writes another: its x̂ and its error belong to the site that it
writes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.features.change import ErrorTerm, FeatureChange, require_feature
from discovery.features.hooks import HEAD_SITES
from discovery.sites import Site

NEURONPEDIA = "https://neuronpedia.org"

# An activation this many times as long as the others' is an outlier. The first token of a prompt,
# on which attention rests, often has one.
OUTLIER_NORM_RATIO = 10.0


@dataclass(frozen=True)
class Codes:
    """An activation encoded and decoded.

    Attributes:
        features: z of each feature.
        reconstruction: x̂, with heads side by side.
        scale: s.
    """

    features: Float[Tensor, "row pos feature"]
    reconstruction: Float[Tensor, "row pos d_out"]
    scale: Float[Tensor, "row pos 1"]


class SAE:
    """A loaded sparse autoencoder; `load_sae` makes one.

    Attributes:
        module: the SAELens module.
        name: as the user gave it.
        fingerprint: sha256 of the weights.
        reads: the site that it encodes.
        writes: the site that it reconstructs; another one only for a transcoder.
        is_centred: whether it was trained on a model whose residual stream has mean 0
            (TransformerLens's center_writing_weights).
        warnings: what is known to be doubtful about it.
        architecture: SAELens's name of it: standard, topk, jumprelu, gated, transcoder and others.
        d_sae: how many features it has.
        d_in: numbers at a position that it reads.
        d_out: numbers at a position that it writes.
    """

    def __init__(
        self,
        module: Any,
        name: str,
        fingerprint: str,
        reads: Site,
        writes: Site,
        *,
        centred: bool = False,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Take over a SAELens module.

        Args:
            centred: the value of `is_centred`.
        """
        self.module = module
        self.name = name
        self.fingerprint = fingerprint
        self.reads = reads
        self.writes = writes
        self.is_centred = centred
        self.warnings = warnings
        self.architecture: str = module.cfg.architecture()
        self.d_sae: int = int(module.cfg.d_sae)
        self.d_in: int = int(module.cfg.d_in)
        self.d_out: int = int(getattr(module.cfg, "d_out", self.d_in))
        self._is_transcoder = hasattr(module.cfg, "d_out")
        # SAELens keeps the norm of the input in the module, from encoding until decoding.
        self._lock = threading.Lock()

    @torch.no_grad()
    def encode(self, activation: Float[Tensor, "row pos ..."]) -> Float[Tensor, "row pos feature"]:
        """Return z, by SAELens's own encode."""
        with self._lock:
            return _dense(self.module.encode(self._normalise_input(activation)[0]))

    @torch.no_grad()
    def decode(
        self, features: Float[Tensor, "row pos feature"], activation: Float[Tensor, "row pos ..."]
    ) -> Float[Tensor, "row pos d_out"]:
        """Return x̂ with other features, heads side by side.

        Args:
            features: z' of every feature.
            activation: the activation that gives the norm and the skip connection.
        """
        codes = self.codes(activation)
        moved = (features.to(codes.features) - codes.features) @ self.directions() * codes.scale
        return codes.reconstruction + moved

    @torch.no_grad()
    def codes(self, activation: Float[Tensor, "row pos ..."]) -> Codes:
        """Encode and decode an activation at `reads`, by SAELens's own forward pass."""
        normalised, mean = self._normalise_input(activation)
        with self._lock:
            features = _dense(self.module.encode(normalised))
            reconstruction = self.module(normalised)
        return Codes(features, reconstruction + mean, self._scale(normalised))

    @torch.no_grad()
    def directions(self, features: Sequence[int] | None = None) -> Float[Tensor, "feature d_out"]:
        """Return what one unit of each feature adds to x̂, before it is multiplied by s.

        Args:
            features: the default is all features.
        """
        rows = self.module.W_dec if features is None else self.module.W_dec[list(features)]
        if getattr(self.module.cfg, "rescale_acts_by_decoder_norm", False):
            rows = rows / rows.norm(dim=-1, keepdim=True)
        return rows.detach()  # type: ignore[no-any-return]

    @torch.no_grad()
    def edit(
        self,
        activation: Float[Tensor, "row pos ..."],
        change: FeatureChange,
        *,
        error: ErrorTerm = "keep",
        written: Float[Tensor, "row pos ..."] | None = None,
    ) -> Float[Tensor, "row pos ..."]:
        """Return the activation with features changed.

        Args:
            activation: the activation at `reads`.
            error: keep what the SAE does not reconstruct, or drop it.
            written: the activation at `writes`, for a transcoder.
        """
        base = activation if written is None else written
        codes = self.codes(activation)
        numbers = list(change.features)
        difference = change.difference(codes.features[..., numbers])
        moved = difference @ self.directions(numbers) * codes.scale
        flat = base.flatten(2) if error == "keep" else codes.reconstruction.to(base)
        return (flat + moved.to(base)).reshape(base.shape)

    def require_feature(self, feature: int) -> int:
        """Return the feature if there is one of that number.

        Raises:
            FeatureError: if there is none; it names those that exist.
        """
        require_feature(feature, self.d_sae)
        return feature

    def link(self, feature: int) -> str | None:
        """Return the feature's page on Neuronpedia, or None if the SAE is not there."""
        page = self.module.cfg.metadata.get("neuronpedia_id")
        return f"{NEURONPEDIA}/{page}/{feature}" if page else None

    def work(self, positions: int) -> int:
        """Return the multiply-adds of encoding and decoding so many positions."""
        return positions * self.d_sae * (self.d_in + self.d_out)

    def _normalise_input(self, activation: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the activation in the form that the SAE was trained on, and the mean removed."""
        activation = activation.to(dtype=self.module.dtype)
        flat = activation.flatten(2) if self.reads.kind in HEAD_SITES else activation
        if not self.is_centred:
            return flat, 0.0
        mean = flat.mean(-1, keepdim=True)
        return flat - mean, mean

    def _scale(self, normalised: Tensor) -> Float[Tensor, "row pos 1"]:
        """Return s, by which SAELens multiplies a reconstruction."""
        cfg = self.module.cfg
        ones = torch.ones_like(normalised[..., :1])
        if self._is_transcoder:
            return ones  # SAELens never scales a transcoder's output
        if cfg.normalize_activations == "layer_norm":
            # SAELens multiplies by the deviation without the eps by which it divided.
            deviation: Tensor = normalised.std(dim=-1, keepdim=True)
            return deviation
        if cfg.normalize_activations == "constant_norm_rescale":
            length: Tensor = normalised.norm(dim=-1, keepdim=True)
            return length.div(float(cfg.d_in) ** 0.5)
        if cfg.normalize_activations == "constant_scalar_rescale":
            factor = float(getattr(cfg, "activation_normalization_factor", 1.0))
            return torch.full_like(ones, 1 / factor)
        return ones


def _dense(features: Tensor) -> Tensor:
    return features.to_dense() if features.is_sparse else features
