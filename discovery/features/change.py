"""A change of features: which features, by which operation, and by how much.

Ablating a feature sets it to 0, clamping sets it to a value, and steering adds a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.errors import FeatureError, require_choice

Operation = Literal["set", "scale", "add"]
ErrorTerm = Literal["keep", "drop"]


@dataclass(frozen=True)
class FeatureChange:
    """Some features, each with an amount.

    Attributes:
        features: numbers of the features, in ascending order.
        amounts: the amount of each feature, in units of its activation; a factor if the operation
            is "scale".
        operation: set the activation to the amount, scale it by the amount, or add the amount.
    """

    features: tuple[int, ...]
    amounts: tuple[float, ...]
    operation: Operation = "set"

    @classmethod
    def of(cls, amounts: Mapping[int, float], operation: Operation, d_sae: int) -> FeatureChange:
        """Check and order a mapping from features to amounts.

        Raises:
            FeatureError: if no feature is given or one does not exist, if an amount is not finite,
                or if the operation is unknown.
        """
        require_choice("operation", operation, get_args(Operation), FeatureError)
        if not isinstance(amounts, Mapping):
            raise FeatureError(
                f"The change is {amounts!r}.",
                "Give an amount for each feature: {12: 0.0} ablates feature 12.",
            )
        if not amounts:
            raise FeatureError(
                "No feature is changed.", "Name at least one, with its amount: {12: 0.0}."
            )
        for feature, amount in amounts.items():
            require_feature(feature, d_sae)
            if not _is_finite_number(amount):
                raise FeatureError(
                    f"The amount of feature {feature} is {amount!r}.", "Give a finite number."
                )
        features = tuple(sorted(amounts))
        return cls(features, tuple(float(amounts[feature]) for feature in features), operation)

    def difference(
        self, activations: Float[Tensor, "row pos changed"]
    ) -> Float[Tensor, "row pos changed"]:
        """Return what is added to the activations of these features; exactly 0 for no change."""
        amounts = torch.tensor(self.amounts, dtype=activations.dtype, device=activations.device)
        if self.operation == "add":
            return amounts.expand_as(activations)
        return (amounts if self.operation == "set" else activations * amounts) - activations

    def too_large_error(self) -> FeatureError:
        """Return the error to raise if these amounts make the logits infinite or NaN."""
        feature, amount = max(
            zip(self.features, self.amounts, strict=True), key=lambda pair: abs(pair[1])
        )
        return FeatureError(
            f"With the amount {amount:g} of feature {feature} the model's logits are not finite.",
            "Give smaller amounts; sae_top_features gives the usual activation of a feature.",
        )


def require_feature(feature: object, d_sae: int) -> None:
    """Check that an SAE with `d_sae` features has this one.

    Raises:
        FeatureError: if there is no such feature; it names those that exist.
    """
    if type(feature) is not int or not 0 <= feature < d_sae:
        raise FeatureError(
            f"Feature {feature!r} does not exist.", f"This SAE's features are 0 to {d_sae - 1}."
        )


def _is_finite_number(amount: object) -> bool:
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        return False
    return math.isfinite(amount)
