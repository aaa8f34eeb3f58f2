"""A sparse autoencoder of any SAELens architecture, as the science uses it.

With x the activation at a site, z = encode(x) its features and d_f the decoder's row of feature f,

    x = x̂ + error,    x̂ = rest(x) + s(x) · Σ_f z_f d_f

s(x) undoes the dictionary's normalisation of its input (1 where it has none), and rest(x) is what no feature carries: the decoder's
bias, a transcoder's skip connection. A change of features is then one sum, s · Σ_f (z'_f − z_f) d_f, added to x where the
error term is kept and to x̂ where it is dropped; it is exactly 0 where nothing changes (Marks et al. 2024, arXiv 2403.19647).
A transcoder reads one site and writes another: x̂ and the error are then those of the site it writes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.errors import FeatureError
from discovery.features.change import ErrorTerm, FeatureChange
from discovery.features.hooks import HEAD_SITES
from discovery.sites import Site

NEURONPEDIA = "https://neuronpedia.org"


@dataclass(frozen=True)
class Codes:
    """What a dictionary sees in an activation.

    Attributes:
        features: z. reconstruction: x̂, heads side by side. scale: s.
    """

    features: Float[Tensor, "row pos feature"]
    reconstruction: Float[Tensor, "row pos d_out"]
    scale: Float[Tensor, "row pos 1"]


class SAE:
    """A loaded dictionary; made by `load_sae`.

    Attributes:
        name: as the user gave it. architecture: SAELens's word for it (standard, topk, jumprelu, gated, transcoder …).
        reads, writes: the sites it encodes and reconstructs; the same but for transcoders.
        d_sae: how many features. fingerprint: sha256 of its weights.
        warnings: what is known to be doubtful about it.
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
            centred: it was trained on a model whose residual stream has mean 0 (TransformerLens's center_writing_weights).
        """
        self.module, self.name, self.fingerprint = module, name, fingerprint
        self.reads, self.writes, self.is_centred, self.warnings = reads, writes, centred, warnings
        self.architecture: str = module.cfg.architecture()
        self.d_sae: int = int(module.cfg.d_sae)
        self.d_in: int = int(module.cfg.d_in)
        self.d_out: int = int(getattr(module.cfg, "d_out", self.d_in))
        self._is_transcoder = hasattr(module.cfg, "d_out")
        self._lock = (
            threading.Lock()
        )  # SAELens keeps the input's norm in the module between encode and decode

    @torch.no_grad()
    def encode(self, activation: Float[Tensor, "row pos ..."]) -> Float[Tensor, "row pos feature"]:
        """z: SAELens's own encode."""
        with self._lock:
            return _dense(self.module.encode(self._normalise_input(activation)[0]))

    @torch.no_grad()
    def decode(
        self, features: Float[Tensor, "row pos feature"], activation: Float[Tensor, "row pos ..."]
    ) -> Float[Tensor, "row pos d_out"]:
        """x̂ of other features of the same activation, whose norm and skip connection it takes; heads side by side."""
        codes = self.codes(activation)
        moved = (features.to(codes.features) - codes.features) @ self.directions() * codes.scale
        return codes.reconstruction + moved

    @torch.no_grad()
    def codes(self, activation: Float[Tensor, "row pos ..."]) -> Codes:
        """Features, reconstruction (SAELens's own forward) and scale of an activation at `reads`."""
        inside, mean = self._normalise_input(activation)
        with self._lock:
            features = _dense(self.module.encode(inside))
            reconstruction = self.module(inside)
        return Codes(features, reconstruction + mean, self._scale(inside))

    @torch.no_grad()
    def directions(self, features: Sequence[int] | None = None) -> Float[Tensor, "feature d_out"]:
        """What one unit of each feature adds to x̂, before s; of all where None."""
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
        """The activation with features changed.

        Args:
            activation: at `reads`.
            error: keep what the dictionary does not explain, or drop it.
            written: the activation at `writes`, of a transcoder.
        """
        here = activation if written is None else written
        codes = self.codes(activation)
        chosen = list(change.features)
        moved = (
            change.difference(codes.features[..., chosen]) @ self.directions(chosen) * codes.scale
        )
        base = here.flatten(2) if error == "keep" else codes.reconstruction.to(here)
        return (base + moved.to(here)).reshape(here.shape)

    def require_feature(self, feature: int) -> int:
        """The feature itself, if there is one of that number.

        Raises:
            FeatureError: names what exists.
        """
        if type(feature) is not int or not 0 <= feature < self.d_sae:
            raise FeatureError(
                f"Feature {feature!r} does not exist.",
                f"This SAE's features are 0 to {self.d_sae - 1}.",
            )
        return feature

    def link(self, feature: int) -> str | None:
        """The feature's page on Neuronpedia, where the dictionary is there."""
        page = self.module.cfg.metadata.get("neuronpedia_id")
        return f"{NEURONPEDIA}/{page}/{feature}" if page else None

    def work(self, positions: int) -> int:
        """Multiply-adds of encoding and decoding so many positions."""
        return positions * self.d_sae * (self.d_in + self.d_out)

    def _normalise_input(self, activation: Tensor) -> tuple[Tensor, Tensor | float]:
        """The activation as the dictionary knows it, and the mean that was taken out."""
        wide = activation.to(dtype=self.module.dtype)
        flat = wide.flatten(2) if self.reads.kind in HEAD_SITES else wide
        if not self.is_centred:
            return flat, 0.0
        mean = flat.mean(-1, keepdim=True)
        return flat - mean, mean

    def _scale(self, inside: Tensor) -> Float[Tensor, "row pos 1"]:
        """s: what SAELens multiplies a reconstruction by."""
        cfg = self.module.cfg
        width, factor = float(cfg.d_in), getattr(cfg, "activation_normalization_factor", 1.0)
        one = torch.ones_like(inside[..., :1])
        if self._is_transcoder:
            return one  # SAELens never scales a transcoder's output
        if cfg.normalize_activations == "layer_norm":
            spread: Tensor = inside.std(dim=-1, keepdim=True)
            return spread  # without SAELens's eps, as its own way back
        if cfg.normalize_activations == "constant_norm_rescale":
            length: Tensor = inside.norm(dim=-1, keepdim=True)
            return length.div(width**0.5)
        if cfg.normalize_activations == "constant_scalar_rescale":
            return torch.full_like(one, 1 / float(factor))
        return one


def _dense(features: Tensor) -> Tensor:
    return features.to_dense() if features.is_sparse else features
