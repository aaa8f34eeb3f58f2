"""Probes without scikit-learn and without Circuit Scout's engine, one computation at a time.

Logistic regression is fitted by Newton's method in the full space of the activations. A direction
is removed by a hook on a plain Hugging Face module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

LAYERS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
NEWTON_STEPS = 100


def fit_by_newton(x: np.ndarray, y: np.ndarray, c: float) -> tuple[np.ndarray, float]:
    """Minimise c · Σ log(1 + exp(−s (w·x + b))) + |w|² / 2, where s is 1 for y = 1, else −1.

    Args:
        x: activations [example d].
        y: 0 or 1 for each example.
        c: the weight of the losses.

    Returns:
        The weights [d] and the intercept, which has no penalty.
    """
    design = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.eye(design.shape[1])
    penalty[-1, -1] = 1e-12
    theta = np.zeros(design.shape[1])

    def loss(values: np.ndarray) -> float:
        signed = np.where(y == 1, 1.0, -1.0) * (design @ values)
        return float(c * np.logaddexp(0.0, -signed).sum() + 0.5 * values @ penalty @ values)

    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-design @ theta))
        gradient = c * design.T @ (p - y) + penalty @ theta
        hessian = c * (design.T * (p * (1 - p))) @ design + penalty
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(theta - size * step) > loss(theta) and size > 1e-6:
            size /= 2
        theta = theta - size * step
        if float(np.abs(gradient).max()) < 1e-10:
            break
    return theta[:-1], float(theta[-1])


def metric_without_direction(
    module: Any,
    tokens: tuple[int, ...],
    layer: int,
    position: int,
    vectors: tuple[torch.Tensor, torch.Tensor],
    mean: torch.Tensor,
    answer: int,
    wrong: int,
) -> float:
    """Return the logit difference with x − v rᵀ(x − μ) at one position of a layer's input.

    `vectors` are v and r.
    """
    unit, read = vectors
    name = LAYERS.get(module.config.model_type, "model.layers")

    def hook(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        stream = args[0].clone()
        x = stream[0, position]
        stream[0, position] = x - unit * (read @ (x - mean))
        return (stream, *args[1:])

    handle = module.get_submodule(name)[layer].register_forward_pre_hook(hook)
    with torch.no_grad():
        logits = module(torch.tensor([tokens])).logits[0, -1]
    handle.remove()
    return float(logits[answer] - logits[wrong])
