"""Where a model computes."""

from __future__ import annotations

import torch

from discovery.errors import ModelError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(device: str) -> str:
    """The device that a name stands for.

    Raises:
        ModelError: where this machine has none of that kind.
    """
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (":" in device and not (kind == "cuda" and number.isdecimal())):
        raise ModelError(
            f"device {device!r} is not known.", f"Allowed: {', '.join(DEVICES)} (or cuda:1 …)."
        )
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"This machine has no device {device!r} that torch can use.",
            "Use device cpu, or a torch build with CUDA.",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ModelError("This machine has no mps device.", "Use device cpu.")
    return device
