"""The devices of this machine on which a model can compute."""

from __future__ import annotations

import torch

from discovery.errors import ModelError
from discovery.sites import DEVICE_KINDS


def choose_device(device: str) -> str:
    """Return the device that a name stands for: "auto" is cuda if torch can use it, else cpu.

    Raises:
        ModelError: if the name is unknown, or if this machine has no such device.
    """
    kind, _, number = device.partition(":")
    if kind not in DEVICE_KINDS or (":" in device and not (kind == "cuda" and number.isdecimal())):
        raise ModelError(
            f"device {device!r} is not known.",
            f"Allowed: {', '.join(DEVICE_KINDS)}, or one GPU by its number, as cuda:1.",
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


def list_weight_devices() -> list[str | int]:
    """Return the devices that can hold weights, as `device_map` names them.

    A GPU has two names, its number and cuda:number.
    """
    gpus = range(torch.cuda.device_count())
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *gpus, *(f"cuda:{number}" for number in gpus), *mps]
