"""How good an SAE is, on held-out text.

    L0                    features that are not 0 at a position, mean over the positions
    variance explained    1 − Σ |x − x̂|² / Σ |x − mean x|²
    loss recovered        (CE_zero − CE_x̂) / (CE_zero − CE_clean)

CE is the model's next-token cross-entropy in nats: with the activation as it is (clean), with x̂ in
its place at every position that counts, and with zeros there. The same with the mean activation
instead of zeros is given beside it, and is the stricter of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.features.hooks import HEAD_SITES
from discovery.features.sae import Codes
from discovery.features.training.activations import read_activations
from discovery.features.training.text import Row
from discovery.graph import JsonModel
from discovery.graph.base import Number
from discovery.interventions import Edit
from discovery.sites import Site

MAX_LOGITS_BYTES = 1 << 26  # of logits that are held at once
PROGRESS_SAMPLE_TOKENS = 2048  # held-out tokens that are scored while the training runs
MIN_RELATIVE_VARIANCE = 1e-9  # below this all positions have the same activation
MIN_LOSS_GAP = 1e-6  # below this, replacing the activation does no harm that could be recovered

Encoder = Callable[[Float[Tensor, "row pos d_in"]], Codes]


class Scores(JsonModel):
    """The scores of an SAE.

    Attributes:
        tokens: held-out positions that were scored.
        l0: features that are not 0 at a position.
        variance_explained: None if all positions have the same activation.
        dead: share of the features that fired in none of the last steps of the training
            (`SAERecipe.dead_after_steps`).
        loss_clean: nats a token with the activation as it is. This and all that follow are None if
            the model does not predict the tokens that it reads.
        loss_spliced: nats a token with the reconstruction in its place.
        loss_zero: nats a token with zeros in its place.
        loss_mean: nats a token with the mean activation in its place.
        loss_recovered: None if zeros do no harm.
        loss_recovered_mean: None if the mean does no harm.
    """

    tokens: int
    l0: Number
    variance_explained: Number
    dead: Number = None
    loss_clean: Number = None
    loss_spliced: Number = None
    loss_zero: Number = None
    loss_mean: Number = None
    loss_recovered: Number = None
    loss_recovered_mean: Number = None

    def describe(self) -> str:
        """Return the scores that are known, in a few words."""
        parts = [
            ("variance explained", self.variance_explained, ".3f"),
            ("L0", self.l0, ".1f"),
            ("dead", self.dead, ".1%"),
            ("loss recovered", self.loss_recovered, ".3f"),
        ]
        return ", ".join(
            f"{name} {value:{form}}" for name, value, form in parts if value is not None
        )


@dataclass(kw_only=True)
class _Sums:
    """Sums over the positions that count, in double precision."""

    count: int = 0
    active: float = 0.0
    residual: float = 0.0
    square: float = 0.0
    total: Tensor | float = 0.0

    def add(self, x: Float[Tensor, "n d_in"], codes: Codes, mask: Bool[Tensor, "row pos"]) -> None:
        wide = x.double()
        self.count += len(x)
        self.active += float((codes.features[mask] != 0).sum())
        self.residual += float((wide - codes.reconstruction[mask].double()).square().sum())
        self.square += float(wide.square().sum())
        self.total = self.total + wide.sum(0)

    @property
    def mean(self) -> Tensor:
        assert isinstance(self.total, Tensor)
        return self.total / max(self.count, 1)

    @property
    def variance_explained(self) -> float | None:
        variance = self.square - self.count * float(self.mean.square().sum())
        if variance > MIN_RELATIVE_VARIANCE * max(self.square, MIN_RELATIVE_VARIANCE):
            return 1 - self.residual / variance
        return None


def score_sae(
    model: Backend,
    site: Site,
    rows: Sequence[Row],
    skip: int,
    encode: Encoder,
    dead: float | None = None,
) -> Scores:
    """Score an SAE on rows of tokens.

    Args:
        skip: positions at the start of each row that are neither counted nor replaced.
        encode: encodes and decodes an activation.
        dead: the share of dead features, which only the training knows.
    """
    sums = _Sums()
    for _, mask, activation in read_activations(model, site, rows, skip):
        sums.add(activation[mask], encode(activation), mask)
    scores = Scores(
        tokens=sums.count,
        l0=sums.active / max(sums.count, 1),
        variance_explained=sums.variance_explained,
        dead=dead,
    )
    if model.n_logits != model.d_vocab:
        return scores  # the model predicts other tokens than it reads, so there is no loss
    replacements: dict[str, Callable[[Tensor], Tensor] | None] = {
        "clean": None,
        "spliced": lambda x: encode(x).reconstruction,
        "zero": torch.zeros_like,
        "mean": lambda x: sums.mean.to(x).expand_as(x),
    }
    loss = {name: _loss(model, site, rows, skip, f) for name, f in replacements.items()}

    def recovered(worst: float) -> float | None:
        gap = worst - loss["clean"]
        return (worst - loss["spliced"]) / gap if gap > MIN_LOSS_GAP else None

    losses = {f"loss_{name}": value for name, value in loss.items()}
    return scores.model_copy(
        update={
            **losses,
            "loss_recovered": recovered(loss["zero"]),
            "loss_recovered_mean": recovered(loss["mean"]),
        }
    )


def _loss(
    model: Backend,
    site: Site,
    rows: Sequence[Row],
    skip: int,
    replacement: Callable[[Tensor], Tensor] | None,
) -> float:
    """Return the mean next-token cross-entropy with the site replaced at positions that count."""
    total = 0.0
    count = 0
    n_layers = model.info.n_layers
    last = Site("resid_post", n_layers - 1)
    for tokens, mask, activation in read_activations(model, site, rows, skip):
        with torch.no_grad():
            edits = []
            if replacement is not None:
                value = torch.where(mask.unsqueeze(-1), replacement(activation), activation)
                edits.append(_edit(model, site, value))
            final = model.run(Batch(tokens, stop=n_layers), [last], edits).activations[last]
        predicts = mask[:, :-1] & mask[:, 1:]  # positions whose next token counts too
        total += _cross_entropy(model, final[:, :-1][predicts], tokens[:, 1:][predicts])
        count += int(predicts.sum())
    return total / max(count, 1)


def _edit(model: Backend, site: Site, value: Tensor) -> Edit:
    """Return an edit that replaces the whole site, with heads apart if it has heads."""
    if site.kind in HEAD_SITES:
        value = value.reshape(*value.shape[:2], -1, model.info.d_head)
    return Edit(site, value)


def _cross_entropy(
    model: Backend, residual: Float[Tensor, "n d_model"], targets: Int[Tensor, "n"]
) -> float:
    """Return the summed cross-entropy of final residual streams.

    Only some positions are unembedded at a time. Each is a row of one token after the last layer.
    """
    size = max(1, MAX_LOGITS_BYTES // (4 * model.n_logits))
    total = 0.0
    batches = zip(torch.split(residual, size), torch.split(targets, size), strict=True)
    for streams, batch_targets in batches:
        zeros = torch.zeros(len(streams), dtype=torch.long, device=streams.device)
        batch = Batch(
            zeros.unsqueeze(1),
            answer_position=zeros,
            start=model.info.n_layers,
            residual=streams.unsqueeze(1),
        )
        with torch.no_grad():
            logits = model.run(batch).logits
        assert logits is not None  # an answer position was given
        loss = torch.nn.functional.cross_entropy(logits.float(), batch_targets, reduction="sum")
        total += float(loss)
    return total
