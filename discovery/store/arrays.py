"""The full grids of a run as safetensors: one file for each result, named by the result's id.

Floating-point arrays are stored as float32 unless the caller asks for another dtype; integers and
booleans are stored as they are. NaN is kept and means "there is no such cell". The arrays are
numpy's, so that this package needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from discovery.errors import StoreError
from discovery.store.files import explain_disk_errors

Array = NDArray[Any]


def pack_arrays(
    arrays: Mapping[str, Array], dtype: DTypeLike, metadata: Mapping[str, str]
) -> bytes:
    """Return the content of a file of arrays.

    Args:
        arrays: the arrays by name.
        dtype: the dtype in which floating-point arrays are stored.
        metadata: what the arrays mean, such as axes and labels.

    Raises:
        TypeError: if a value is not a numpy array of numbers.
    """
    stored = {name: _to_stored_array(name, array, dtype) for name, array in arrays.items()}
    return save(stored, metadata=dict(metadata))


def join_names(names: Iterable[object]) -> str:
    """Return nodes, edges or positions as the metadata of an array lists them."""
    return ",".join(map(str, names))


def split_names(text: str) -> list[str]:
    """Return the names that `join_names` joined."""
    return text.split(",")


def read_arrays(path: Path) -> dict[str, Array]:
    """Return every array in a file, by name.

    Raises:
        StoreError: if the file is missing or damaged.
    """
    with explain_disk_errors(path):
        try:
            arrays: dict[str, Array] = load_file(path)
        except SafetensorError as fault:
            raise _damage_error(path, fault) from fault
        return arrays


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that `pack_arrays` was given.

    Raises:
        StoreError: if the file is missing or damaged.
    """
    with explain_disk_errors(path):
        try:
            with safe_open(path, framework="np") as file:
                return dict(file.metadata() or {})
        except SafetensorError as fault:
            raise _damage_error(path, fault) from fault


def _to_stored_array(name: str, array: object, dtype: DTypeLike) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = f"{type(array).__name__} of {getattr(array, 'dtype', None)}"
        raise TypeError(f"{name!r} must be a numpy array of numbers, not {kind}")
    stored = np.dtype(dtype) if array.dtype.kind == "f" else array.dtype
    return np.array(array, dtype=stored.newbyteorder("="), order="C")


def _damage_error(path: Path, fault: SafetensorError) -> StoreError:
    return StoreError(
        f"{path} is damaged.", "Restore the file, or delete it and run again.", detail=str(fault)
    )
