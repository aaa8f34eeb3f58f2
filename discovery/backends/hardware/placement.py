"""Weights spread over several devices, this machine's memory and its disk.

accelerate does the work (`device_map` of transformers). A part of the model on the disk is read
each time it is used and then dropped, so that a model larger than the memory runs, slowly. It is
read from the model's own files. The exception are experts that transformers stacks from several
weights of the files: the stacked weights are written to a temporary folder.

A gradient holds every weight that it went through. On a CPU, weights in the dtype of the files are
mapped from these files and take no memory of their own; in every other case a model with parts on
the disk gives no gradients.

This was tested on a CPU with part of a model on the disk. It was never tried on several GPUs.
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

from discovery.backends.hardware.devices import list_weight_devices
from discovery.backends.hardware.memory import read_free_memory
from discovery.errors import ModelError

DeviceMap = Mapping[str, str | int]
NO_GRADIENTS_CAUSE = (
    "A gradient would hold all weights of this model at once, and part of them is on the disk."
)
NO_GRADIENTS_CURE = (
    "Measure every cell (no screening, no attribution of features), "
    "or load the model on a CPU in the dtype of its files."
)
MEMORY_SHARE = 0.6  # of the free memory; the rest is for cached runs and batches of a measurement


@dataclass(frozen=True)
class Placement:
    """Which device holds which weights.

    Attributes:
        device_map: "auto", or the device of each part, in the form that transformers takes.
        max_memory: how many bytes the weights may take of each device, by its name or number, and
            of "cpu". If it is None, they may take a share of the free memory (`MEMORY_SHARE`).
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
        """Return the placement that the arguments of `load_model` ask for, or None for one device.

        Raises:
            ModelError: if the arguments are invalid or contradict each other.
        """
        if device_map is None:
            if max_memory is not None:
                raise ModelError(
                    "max_memory limits how weights are spread, and device_map is not given.",
                    "Give device_map='auto' too.",
                )
            return None
        if remote:
            raise ModelError(
                "A remote model is not loaded here, so it cannot be spread over this machine.",
                "Give one of remote and device_map.",
            )
        if device_map != "auto" and not (isinstance(device_map, Mapping) and device_map):
            raise ModelError(
                f"device_map {device_map!r} is not known.",
                "Give 'auto', or a mapping from parts of the model to devices.",
            )
        if device != "auto":
            raise ModelError(
                f"device {device!r} is one device, and device_map spreads the model over several.",
                "Give one of the two.",
            )
        for part_device in device_map.values() if device_map != "auto" else ():
            _require_device(part_device, [*list_weight_devices(), "disk"])
        if max_memory is not None:
            _require_limits(device_map, max_memory)
        return cls(device_map, max_memory)

    @property
    def allowed_bytes(self) -> dict[str | int, int]:
        """How many bytes the weights may take of each GPU and of "cpu".

        It limits nothing if `device_map` is a mapping, which says itself where each part goes.
        """
        if self.max_memory is not None:
            return dict(self.max_memory)
        free: dict[str | int, int] = {
            number: read_free_memory(f"cuda:{number}")
            for number in range(torch.cuda.device_count())
        }
        free["cpu"] = read_free_memory("cpu")
        return {device: int(MEMORY_SHARE * size) for device, size in free.items()}

    def from_pretrained_arguments(self, folder: str) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` for this placement.

        Args:
            folder: receives the weights that have to be written to the disk. It must exist as long
                as the module.
        """
        limits = {"max_memory": self.allowed_bytes} if self.device_map == "auto" else {}
        return {"device_map": self.device_map, **limits, "offload_folder": folder}

    def require_modules(self, module: nn.Module) -> None:
        """Check that a mapping names parts of a module, without overlap, and covers every weight.

        Raises:
            ModelError: if it does not.
        """
        if self.device_map == "auto":
            return
        for part in self.device_map:
            self._require_module(module, part)
        for name in module.state_dict():
            if not any(_is_within(name, part) for part in self.device_map):
                raise ModelError(
                    f"device_map does not say where {name!r} goes.",
                    "Name the part that contains it, or give 'auto'.",
                )

    def _require_module(self, module: nn.Module, part: str) -> None:
        """Check that a part of the mapping exists, and that no other part contains it.

        Raises:
            ModelError: if it does not exist, or if another part contains it.
        """
        names = [name for name, _ in module.named_modules()]
        if part not in names:
            children = [name for name, _ in module.named_children()]
            similar = get_close_matches(str(part), names, n=3) or children
            raise ModelError(
                f"device_map names {part!r}, which is not a part of a {type(module).__name__}.",
                f"Its parts have names such as {', '.join(map(repr, similar))}.",
            )
        for other in self.device_map:
            if other != part and _is_within(part, other):
                raise ModelError(
                    f"device_map names {part!r} and {other!r}, which contains it.",
                    "Name each part once, without overlap.",
                )

    def require_disk_space(self, name: str, stacked_bytes: int) -> None:
        """Check that the weights that have to be written fit on the disk.

        Args:
            name: the model's name, for the message.
            stacked_bytes: the bytes of the weights that are stacked from several of the files'.

        Raises:
            ModelError: if they do not fit; the message gives the numbers.
        """
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        written = 0  # unknown with a mapping, which may keep all of them in memory
        if self.device_map == "auto":
            written = stacked_bytes - sum(self.allowed_bytes.values())
        if written > free:
            raise ModelError(
                f"{name} has experts that are stacked when it is loaded: "
                f"{written / 1e9:,.1f} GB of them would be written to {folder}, "
                f"where {free / 1e9:,.1f} GB are free.",
                "Set TMPDIR to a folder on a larger disk, or choose a smaller dtype.",
            )


def _is_within(name: str, part: str) -> bool:
    """Return whether a weight or module belongs to a part; "" is the whole model."""
    return part in ("", name) or name.startswith(f"{part}.")


def _require_limits(device_map: Any, max_memory: Any) -> None:
    """Check the limits on what the weights may take.

    Raises:
        ModelError: if they do not give a size for each device, or if `device_map` is a mapping.
    """
    if not isinstance(max_memory, Mapping) or not max_memory:
        raise ModelError(
            f"max_memory is {max_memory!r}.",
            "Say what the weights may take, as in {'cpu': 8_000_000_000}, or leave it out.",
        )
    if device_map != "auto":
        raise ModelError(
            "max_memory was given together with a device_map that places every part.",
            "Give device_map='auto', or one of the two.",
        )
    for device, size in max_memory.items():
        _require_device(device, list_weight_devices())
        if type(size) is not int or size < 1:  # True is an int
            raise ModelError(
                f"max_memory of {device!r} is {size!r}.",
                "Give a whole number of bytes above 0 for each device.",
            )


def _require_device(device: object, allowed: list[str | int]) -> None:
    """Check that a device can hold weights.

    Raises:
        ModelError: if it is not among the allowed ones, which the message lists.
    """
    is_name = isinstance(device, str | int) and not isinstance(device, bool)
    if not is_name or device not in allowed:
        raise ModelError(
            f"Weights cannot be on {device!r}.",
            f"Allowed here: {', '.join(map(repr, allowed))}.",
        )


def remove_folder_with(module: nn.Module, folder: tempfile.TemporaryDirectory[str]) -> None:
    """Remove a folder when the module is deleted."""
    weakref.finalize(module, folder.cleanup)


def is_offloaded(module: nn.Module) -> bool:
    """Return whether some weights are brought to the device that computes only when used."""
    return any(parameter.is_meta for parameter in module.parameters())


def resident_weight_bytes(module: nn.Module, device: torch.device) -> int:
    """Return the bytes of the weights that are on devices of this kind."""
    storages = [p.untyped_storage() for p in module.parameters() if p.device.type == device.type]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}  # tied weights once
    return sum(sizes.values())


def input_device(module: nn.Module) -> str:
    """Return the device on which a spread module takes its tokens."""
    devices = list(getattr(module, "hf_device_map", {}).values())
    first = next((device for device in devices if device != "disk"), "cpu")
    return f"cuda:{first}" if isinstance(first, int) else str(first)


def describe_placement(module: nn.Module) -> tuple[str, ...]:
    """Return a warning that counts the parts on each device.

    The result is empty if all parts are on one device and none is on the disk.
    """
    devices = [str(device) for device in getattr(module, "hf_device_map", {}).values()]
    distinct = dict.fromkeys(devices)
    if len(distinct) < 2 and "disk" not in distinct:
        return ()
    counts = {device: devices.count(device) for device in distinct}
    parts = ", ".join(
        f"{count} {'part' if count == 1 else 'parts'} on {device}"
        for device, count in counts.items()
    )
    return (f"The weights are spread: {parts}.",)


def load_offloaded_weights(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which a module's own weights are on the device that computes."""
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    return align_module_device(module)  # type: ignore[no-any-return]  # accelerate is not typed
