"""Weights laid over several devices, this machine's memory and its disk, by accelerate (`device_map` of transformers).

A part that lies on the disk is read whenever it is used and dropped again, so that a model larger than the memory runs, slowly. It is read
from the model's own files, but for experts, which are put together from several weights and written to a temporary folder. A gradient
holds every weight that it went through: where these are not the files' own, which a CPU maps, there are no gradients. Shown on a CPU with
part of a model on the disk; several GPUs were never tried.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import nn

from discovery.backends.hardware.memory import read_free_memory
from discovery.errors import ModelError

DeviceMap = Mapping[str, str | int]
NO_GRADIENTS_CAUSE = (
    "A gradient would hold all weights of this model at once, and part of them lies on the disk."
)
NO_GRADIENTS_CURE = "Measure every cell (no screening, no attribution of features), or load it on a CPU in the dtype of its files."
MEMORY_SHARE = 0.6  # of what is free: the rest is for the cached runs and batches of a measurement


@dataclass(frozen=True)
class Placement:
    """How weights are to lie.

    Attributes:
        places: "auto", or a device for each part, as transformers takes it.
        limits: bytes that they may take of each device, by its name or number, and of "cpu"; of what is free a share where None.
    """

    device_map: Literal["auto"] | DeviceMap = "auto"
    max_memory: Mapping[str | int, Any] | None = None

    @classmethod
    def from_arguments(
        cls,
        device_map: Any,
        max_memory: Mapping[str | int, Any] | None,
        device: str,
        *,
        remote: bool = False,
    ) -> Placement | None:
        """What the arguments of `load_model` say; None where nothing is spread.

        Raises:
            ModelError: where they contradict each other.
        """
        if device_map is None:
            if max_memory is not None:
                raise ModelError(
                    "max_memory says how weights are spread, and device_map is not given.",
                    "Give device_map='auto' too.",
                )
            return None
        if remote:
            raise ModelError(
                "A model that runs elsewhere is not spread over this machine.",
                "Give one of remote and device_map.",
            )
        if device_map != "auto" and not (isinstance(device_map, Mapping) and device_map):
            raise ModelError(
                f"device_map {device_map!r} is not known.",
                "Give 'auto', or a mapping from parts to devices.",
            )
        if device != "auto":
            cause = (
                f"device {device!r} is one place, and device_map spreads the model over several."
            )
            raise ModelError(cause, "Give one of the two.")
        for place in device_map.values() if device_map != "auto" else ():
            _require_device(place, "disk")
        if max_memory is not None:
            _require_limits(device_map, max_memory)
        return cls(device_map, max_memory)

    @property
    def allowed_bytes(self) -> dict[str | int, int]:
        """Bytes that the weights may take of each device, and of "cpu"; where a mapping says where all lies, this is no limit."""
        if self.max_memory is not None:
            return dict(self.max_memory)
        free: dict[str | int, int] = {
            number: read_free_memory(f"cuda:{number}")
            for number in range(torch.cuda.device_count())
        }
        return {
            place: int(MEMORY_SHARE * size)
            for place, size in (free | {"cpu": read_free_memory("cpu")}).items()
        }

    def from_pretrained_arguments(self, folder: str) -> dict[str, Any]:
        """For `from_pretrained`; the folder takes what is made for the disk, and is to be kept as long as the module."""
        limits = {"max_memory": self.allowed_bytes} if self.device_map == "auto" else {}
        return {"device_map": self.device_map, **limits, "offload_folder": folder}

    def require_modules(self, module: nn.Module) -> None:
        """Check that a mapping names parts of a module, none inside another, and that every weight is in one.

        Raises:
            ModelError: where it does not.
        """
        if self.device_map == "auto":
            return
        parts, every = list(self.device_map), [name for name, _ in module.named_modules()]
        for part in parts:
            if part not in every:
                near = get_close_matches(str(part), every, n=3) or [
                    name for name, _ in module.named_children()
                ]
                cause = f"device_map names {part!r}, which is no part of a {type(module).__name__}."
                raise ModelError(cause, f"Its parts are named as in {', '.join(map(repr, near))}.")
            if outer := [other for other in parts if other != part and _is_within(part, other)]:
                raise ModelError(
                    f"device_map names {part!r} and {outer[0]!r}, which holds it.",
                    "Name each part once, without overlap.",
                )
        if left := [
            name
            for name in module.state_dict()
            if not any(_is_within(name, part) for part in parts)
        ]:
            raise ModelError(
                f"device_map does not say where {left[0]!r} lies.",
                "Name the part that it is in, or give 'auto'.",
            )

    def require_disk_space(self, name: str, stacked_bytes: int) -> None:
        """Check that what has to be written fits on the disk.

        Args:
            made: bytes of the weights that are put together anew.

        Raises:
            ModelError: gives the numbers.
        """
        place = tempfile.gettempdir()
        free = shutil.disk_usage(place).free
        written = (
            stacked_bytes - sum(self.allowed_bytes.values()) if self.device_map == "auto" else 0
        )  # a mapping may keep them in memory
        if written > free:
            raise ModelError(
                f"{name} has experts that are put together when it is loaded: {written / 1e9:,.1f} GB of them would be written to {place}, "
                f"where {free / 1e9:,.1f} GB are free.",
                "Name a folder with more room in TMPDIR, or choose a smaller dtype.",
            )


def _is_within(name: str, part: str) -> bool:
    return part in ("", name) or name.startswith(f"{part}.")


def _require_limits(device_map: Any, max_memory: Any) -> None:
    """Check what the weights may take.

    Raises:
        ModelError: where it is no size for each device, or the mapping says already where all lies.
    """
    if not isinstance(max_memory, Mapping) or not max_memory:
        raise ModelError(
            f"max_memory is {max_memory!r}.",
            "Name what the weights may take, as in {'cpu': 8_000_000_000}, or leave it out.",
        )
    if device_map != "auto":
        raise ModelError(
            "max_memory is given, and device_map says itself where each part lies.",
            "Give device_map='auto', or one of the two.",
        )
    for place, size in max_memory.items():
        _require_device(place)
        if type(size) is not int or size < 1:  # True is an int
            raise ModelError(
                f"max_memory of {place!r} is {size!r}.",
                "Give a whole number of bytes above 0 for each device.",
            )


def _require_device(place: object, *more: str) -> None:
    """Check that weights can lie there.

    Raises:
        ModelError: names what there is.
    """
    devices = [
        *range(torch.cuda.device_count()),
        *(f"cuda:{n}" for n in range(torch.cuda.device_count())),
    ]
    allowed = ["cpu", *more, *devices, *(["mps"] if torch.backends.mps.is_available() else [])]
    if not isinstance(place, str | int) or isinstance(place, bool) or place not in allowed:
        raise ModelError(
            f"Weights cannot lie on {place!r}.", f"Allowed here: {', '.join(map(repr, allowed))}."
        )


def remove_folder_with(module: nn.Module, folder: tempfile.TemporaryDirectory[str]) -> None:
    """Remove the folder when the module is gone."""
    weakref.finalize(module, folder.cleanup)


def is_offloaded(module: nn.Module) -> bool:
    """Whether a weight is brought to where it computes only when it is used."""
    return any(parameter.is_meta for parameter in module.parameters())


def resident_weight_bytes(module: nn.Module, device: torch.device) -> int:
    """Bytes of the weights that lie on devices of this kind."""
    here = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for p in module.parameters()
        if p.device.type == device.type
    }
    return sum(here.values())


def input_device(module: nn.Module) -> str:
    """The device that a spread module takes its tokens on."""
    places = list(getattr(module, "hf_device_map", {}).values())
    first = next((place for place in places if place != "disk"), "cpu")
    return f"cuda:{first}" if isinstance(first, int) else str(first)


def describe_placement(module: nn.Module) -> tuple[str, ...]:
    """A warning of how many parts lie where; none where all of them lie in one place, and not on the disk."""
    places = [str(place) for place in getattr(module, "hf_device_map", {}).values()]
    kinds = dict.fromkeys(places)
    if len(kinds) < 2 and "disk" not in kinds:
        return ()
    parts = ", ".join(
        f"{places.count(place)} {'part' if places.count(place) == 1 else 'parts'} on {place}"
        for place in kinds
    )
    return (f"The weights are spread: {parts}.",)


def load_offloaded_weights(module: nn.Module) -> AbstractContextManager[None]:
    """A module's own weights, brought from wherever they lie."""
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    return align_module_device(module)  # type: ignore[no-any-return]  # accelerate is not typed
