"""The full grids of a run, as safetensors: one file per result, named by the result's id.

Floating-point arrays are stored as float32 unless asked otherwise; whole numbers and truth values as they
are. NaN is kept: here it means "no such cell". Numpy only, for the light half of `discovery` has no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from discovery.errors import StoreError
from discovery.store.files import explain_disk_errors, write_bytes

Array = NDArray[Any]


def write_arrays(
    path: Path, arrays: Mapping[str, Array], dtype: DTypeLike, metadata: Mapping[str, str]
) -> None:
    """Write `arrays` to `path` in one step.

    Args:
        path: ends in .safetensors.
        arrays: by name.
        dtype: that floating-point arrays are stored in.
        metadata: what they mean: axes, labels.

    Raises:
        StoreError: where the disk refuses.
        TypeError: for what is not a numpy array of numbers.
    """
    packed = {name: _to_stored_array(name, array, dtype) for name, array in arrays.items()}
    write_bytes(path, save(packed, metadata=dict(metadata)))


def read_arrays(path: Path) -> dict[str, Array]:
    """Every array in `path`, by name.

    Raises:
        StoreError: where it is missing or damaged.
    """
    with explain_disk_errors(path):
        try:
            arrays: dict[str, Array] = load_file(path)
        except SafetensorError as fault:
            raise _damage_error(path, fault) from fault
        return arrays


def read_metadata(path: Path) -> dict[str, str]:
    """What `write_arrays` was told of the arrays in `path`.

    Raises:
        StoreError: where it is missing or damaged.
    """
    with explain_disk_errors(path):
        try:
            with safe_open(path, framework="np") as file:
                return dict(file.metadata() or {})
        except SafetensorError as fault:
            raise _damage_error(path, fault) from fault


def _to_stored_array(name: str, array: object, dtype: DTypeLike) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name!r} must be a numpy array of numbers, not {type(array).__name__} of {getattr(array, 'dtype', None)}"
        )
    kind = np.dtype(dtype) if array.dtype.kind == "f" else array.dtype
    return np.array(array, dtype=kind.newbyteorder("="), order="C")


def _damage_error(path: Path, fault: SafetensorError) -> StoreError:
    return StoreError(
        f"{path} is damaged.", "Restore the file, or delete it and run again.", detail=str(fault)
    )
