"""A change of features: which, how, by how much. Ablating is setting to 0, clamping setting to a value, steering adding one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.errors import FeatureError

Operation = Literal["set", "scale", "add"]
ErrorTerm = Literal["keep", "drop"]


@dataclass(frozen=True)
class FeatureChange:
    """Some features, each with an amount.

    Attributes:
        features: their numbers, in order.
        amounts: one of each, in units of the feature's activation (scale: a factor).
        operation: set to the amount, scale by it, or add it.
    """

    features: tuple[int, ...]
    amounts: tuple[float, ...]
    operation: Operation = "set"

    @classmethod
    def of(cls, amounts: Mapping[int, float], operation: Operation, d_sae: int) -> FeatureChange:
        """Check and order a mapping from feature to amount.

        Raises:
            FeatureError: no feature, one that does not exist, an amount that is no finite number, or an unknown operation.
        """
        if operation not in get_args(Operation):
            raise FeatureError(
                f"operation {operation!r} is not known.",
                f"Allowed: {', '.join(get_args(Operation))}.",
            )
        if not isinstance(amounts, Mapping):
            raise FeatureError(
                f"The change is {amounts!r}.",
                "Give an amount for each feature: {12: 0.0} ablates it.",
            )
        if not amounts:
            raise FeatureError(
                "No feature is changed.", "Name at least one, with its amount: {12: 0.0}."
            )
        for feature, amount in amounts.items():
            if type(feature) is not int or not 0 <= feature < d_sae:
                raise FeatureError(
                    f"Feature {feature!r} does not exist.",
                    f"This SAE's features are 0 to {d_sae - 1}.",
                )
            if not _finite(amount):
                raise FeatureError(
                    f"The amount of feature {feature} is {amount!r}.", "Give a finite number."
                )
        features = tuple(sorted(amounts))
        return cls(features, tuple(float(amounts[feature]) for feature in features), operation)

    def difference(
        self, activations: Float[Tensor, "row pos changed"]
    ) -> Float[Tensor, "row pos changed"]:
        """What is added to the activations of these features; exactly 0 where nothing changes."""
        amounts = torch.tensor(self.amounts, dtype=activations.dtype, device=activations.device)
        if self.operation == "add":
            return amounts.expand_as(activations)
        return (amounts if self.operation == "set" else activations * amounts) - activations

    def too_large_error(self) -> FeatureError:
        """What to say where nothing can be computed with these amounts."""
        feature, amount = max(
            zip(self.features, self.amounts, strict=True), key=lambda pair: abs(pair[1])
        )
        return FeatureError(
            f"With the amount {amount:g} of feature {feature} the model's logits are no numbers.",
            "Give smaller amounts; what a feature's activation is, sae_top_features says.",
        )


def _finite(amount: object) -> bool:
    return (
        isinstance(amount, int | float) and not isinstance(amount, bool) and math.isfinite(amount)
    )
