"""How good a dictionary is, on held-out text.

L0                    features that are not 0 at a position, mean
variance explained    1 − Σ |x − x̂|² / Σ |x − mean x|²
loss recovered        (CE_zero − CE_x̂) / (CE_zero − CE_clean): CE is the model's next-token cross-entropy in nats, with the
                      activation as it is, with x̂ in its place at every position that counts, and with zeros there; beside it the
                      same with the mean activation in place of zeros, which is the stricter of the two
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

MAX_LOGITS_BYTES = 1 << 26  # held at once
PROGRESS_SAMPLE_TOKENS = 2048  # held-out tokens that are looked at on the way
MIN_RELATIVE_VARIANCE = 1e-9

Encoder = Callable[[Float[Tensor, "row pos d_in"]], Codes]


class Scores(JsonModel):
    """The scores of a dictionary.

    Attributes:
        tokens: held-out positions that were looked at.
        dead: share of the features that did not fire in the last steps of the training (Recipe.window).
        loss_clean, loss_spliced, loss_zero, loss_mean: nats a token; None where the model cannot predict its own tokens.
        loss_recovered, loss_recovered_mean: None where zeros, or the mean, do no harm.
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
        """In a few words."""
        parts = [
            ("variance explained", self.variance_explained, ".3f"),
            ("L0", self.l0, ".1f"),
            ("dead", self.dead, ".1%"),
        ]
        parts.append(("loss recovered", self.loss_recovered, ".3f"))
        return ", ".join(
            f"{name} {value:{form}}" for name, value, form in parts if value is not None
        )


@dataclass
class _Sums:
    """Over the positions that count, in double precision."""

    count: int = 0
    active: float = 0.0
    residual: float = 0.0
    square: float = 0.0
    total: Tensor | float = 0.0

    def add(self, x: Float[Tensor, "n d_in"], codes: Codes, where: Bool[Tensor, "row pos"]) -> None:
        wide = x.double()
        self.count += len(x)
        self.active += float((codes.features[where] != 0).sum())
        self.residual += float((wide - codes.reconstruction[where].double()).square().sum())
        self.square += float(wide.square().sum())
        self.total = self.total + wide.sum(0)

    @property
    def mean(self) -> Tensor:
        assert isinstance(self.total, Tensor)
        return self.total / max(self.count, 1)

    @property
    def variance_explained(self) -> float | None:
        variance = self.square - self.count * float(self.mean.square().sum())
        return (
            1 - self.residual / variance
            if variance > MIN_RELATIVE_VARIANCE * max(self.square, MIN_RELATIVE_VARIANCE)
            else None
        )


def score_sae(
    model: Backend,
    site: Site,
    rows: Sequence[Row],
    skip: int,
    encode: Encoder,
    dead: float | None = None,
) -> Scores:
    """Score a dictionary on rows.

    Args:
        skip: positions at the start of each row that are neither counted nor replaced.
        encode: the dictionary.
    """
    sums = _Sums()
    for _, where, activation in read_activations(model, site, rows, skip):
        sums.add(activation[where], encode(activation), where)
    found = Scores(
        tokens=sums.count,
        l0=sums.active / max(sums.count, 1),
        variance_explained=sums.variance_explained,
        dead=dead,
    )
    if model.n_logits != model.d_vocab:
        return found  # it predicts other tokens than it reads: there is no loss
    values: dict[str, Callable[[Tensor], Tensor] | None] = {
        "clean": None,
        "spliced": lambda x: encode(x).reconstruction,
        "zero": torch.zeros_like,
        "mean": lambda x: sums.mean.to(x).expand_as(x),
    }
    loss = {name: _loss(model, site, rows, skip, value) for name, value in values.items()}

    def recovered(floor: float) -> float | None:
        return (
            (floor - loss["spliced"]) / (floor - loss["clean"])
            if floor - loss["clean"] > 1e-6
            else None
        )

    named = {f"loss_{name}": value for name, value in loss.items()}
    return found.model_copy(
        update={
            **named,
            "loss_recovered": recovered(loss["zero"]),
            "loss_recovered_mean": recovered(loss["mean"]),
        }
    )


def _loss(
    model: Backend,
    site: Site,
    rows: Sequence[Row],
    skip: int,
    value: Callable[[Tensor], Tensor] | None,
) -> float:
    """Mean next-token cross-entropy, with the site replaced at the positions that count."""
    total, count = 0.0, 0
    last = Site("resid_post", model.info.n_layers - 1)
    for tokens, where, activation in read_activations(model, site, rows, skip):
        with torch.no_grad():
            edits = (
                []
                if value is None
                else [
                    _edit(
                        model, site, torch.where(where.unsqueeze(-1), value(activation), activation)
                    )
                ]
            )
            final = model.run(Batch(tokens, stop=model.info.n_layers), [last], edits).activations[
                last
            ]
        predicts = where[:, :-1] & where[:, 1:]  # the next token is there, too
        total += _cross_entropy(model, final[:, :-1][predicts], tokens[:, 1:][predicts])
        count += int(predicts.sum())
    return total / max(count, 1)


def _edit(model: Backend, site: Site, value: Tensor) -> Edit:
    """The whole site replaced, heads apart again where it has them."""
    if site.kind in HEAD_SITES:
        value = value.reshape(*value.shape[:2], -1, model.info.d_head)
    return Edit(site, value)


def _cross_entropy(
    model: Backend, residual: Float[Tensor, "n d_model"], targets: Int[Tensor, "n"]
) -> float:
    """Summed, unembedding some positions at a time: each is a row of one token behind the last layer."""
    most = max(1, MAX_LOGITS_BYTES // (4 * model.n_logits))
    total = 0.0
    for part, wanted in zip(torch.split(residual, most), torch.split(targets, most), strict=True):
        nothing = torch.zeros(len(part), dtype=torch.long, device=part.device)
        batch = Batch(
            nothing.unsqueeze(1),
            answer_position=nothing,
            start=model.info.n_layers,
            residual=part.unsqueeze(1),
        )
        with torch.no_grad():
            logits = model.run(batch).logits
        assert logits is not None  # asked for by an answer position
        total += float(torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"))
    return total
