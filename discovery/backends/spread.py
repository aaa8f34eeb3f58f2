"""Weights laid over several devices, this machine's memory and its disk, by accelerate (`device_map` of transformers).

A part that lies on the disk is read whenever it is used and dropped again, so that a model larger than the memory runs, slowly. Shown on
a CPU with part of a model on the disk; several GPUs were never tried.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from discovery.backends.memory import free_memory
from discovery.errors import ModelError

Places = Mapping[str, str | int]
SHARE = 0.6  # of what is free: the rest is for the cached runs and batches of a measurement


@dataclass(frozen=True)
class Spread:
    """How weights are to lie.

    Attributes:
        places: "auto", or a device for each part, as transformers takes it.
        limits: bytes that they may take of each device, by its name or number, and of "cpu"; of what is free a share where None.
    """

    places: Literal["auto"] | Places = "auto"
    limits: Mapping[str | int, Any] | None = None

    @classmethod
    def asked(cls, device_map: Any, max_memory: Mapping[str | int, Any] | None, device: str, *, remote: bool = False) -> Spread | None:
        """What the arguments of `load_model` say; None where nothing is spread.

        Raises:
            ModelError: where they contradict each other.
        """
        if device_map is None:
            if max_memory is not None:
                raise ModelError("max_memory says how weights are spread, and device_map is not given.", "Give device_map='auto' too.")
            return None
        if remote:
            raise ModelError("A model that runs elsewhere is not spread over this machine.", "Give one of remote and device_map.")
        if device_map != "auto" and not (isinstance(device_map, Mapping) and device_map):
            raise ModelError(f"device_map {device_map!r} is not known.", "Give 'auto', or a mapping from parts to devices.")
        if device != "auto":
            cause = f"device {device!r} is one place, and device_map spreads the model over several."
            raise ModelError(cause, "Give one of the two.")
        for place in device_map.values() if device_map != "auto" else ():
            _require_place(place, "disk")
        if max_memory is not None and not max_memory:
            raise ModelError("max_memory is empty.", "Name what the weights may take, as in {'cpu': 8_000_000_000}, or leave it out.")
        for place, size in (max_memory or {}).items():
            _require_place(place)
            if type(size) is not int or size < 1:  # True is an int
                raise ModelError(f"max_memory of {place!r} is {size!r}.", "Give a whole number of bytes above 0 for each device.")
        return cls(device_map, max_memory)

    def arguments(self) -> tuple[dict[str, Any], tempfile.TemporaryDirectory[str]]:
        """For `from_pretrained`; and the folder for what is made for the disk, to be kept as long as the module."""
        folder = tempfile.TemporaryDirectory(prefix="circuit-scout-offload-")
        limits = self.limits
        if limits is None:
            limits = {number: int(SHARE * free_memory(f"cuda:{number}")) for number in range(torch.cuda.device_count())}
            limits["cpu"] = int(SHARE * free_memory("cpu"))
        return {"device_map": self.places, "max_memory": dict(limits), "offload_folder": folder.name}, folder


def _require_place(place: object, *more: str) -> None:
    """Check that weights can lie there.

    Raises:
        ModelError: names what there is.
    """
    devices = [*range(torch.cuda.device_count()), *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    allowed = ["cpu", *more, *devices, *(["mps"] if torch.backends.mps.is_available() else [])]
    if isinstance(place, bool) or place not in allowed:
        raise ModelError(f"Weights cannot lie on {place!r}.", f"Allowed here: {', '.join(map(repr, allowed))}.")


def keep(module: nn.Module, folder: tempfile.TemporaryDirectory[str]) -> None:
    """Remove the folder when the module is gone."""
    weakref.finalize(module, folder.cleanup)


def home(module: nn.Module) -> str:
    """The device that a spread module takes its tokens on."""
    places = list(getattr(module, "hf_device_map", {}).values())
    first = next((place for place in places if place != "disk"), "cpu")
    return f"cuda:{first}" if isinstance(first, int) else str(first)


def told(module: nn.Module) -> tuple[str, ...]:
    """A warning of how many parts lie where; none where all of them lie in one place, and not on the disk."""
    places = [str(place) for place in getattr(module, "hf_device_map", {}).values()]
    kinds = dict.fromkeys(places)
    if len(kinds) < 2 and "disk" not in kinds:
        return ()
    parts = ", ".join(f"{places.count(place)} {'part' if places.count(place) == 1 else 'parts'} on {place}" for place in kinds)
    return (f"The weights are spread: {parts}.",)


def at_hand(module: nn.Module) -> AbstractContextManager[None]:
    """A module's own weights, brought from wherever they lie."""
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    return align_module_device(module)  # type: ignore[no-any-return]  # accelerate is not typed
