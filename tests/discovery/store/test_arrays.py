"""Arrays are stored and read back as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from numpy.typing import DTypeLike

from discovery.errors import StoreError
from discovery.store.arrays import Array, pack_arrays, read_arrays, read_metadata


def write_arrays(
    path: Path, arrays: dict[str, Array], dtype: DTypeLike, metadata: dict[str, str]
) -> None:
    path.write_bytes(pack_arrays(arrays, dtype, metadata))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays") / "x.safetensors"


@settings(max_examples=60)
@given(
    array=hnp.arrays(
        hnp.floating_dtypes(sizes=(32, 64)) | hnp.integer_dtypes() | hnp.boolean_dtypes(),
        hnp.array_shapes(min_dims=0),
    )
)
def test_every_array_comes_back(path: Path, array: np.ndarray[Any, Any]) -> None:
    write_arrays(path, {"values": array, "turned": array.T}, np.float64, {})
    back = read_arrays(path)
    assert np.array_equal(back["values"], array, equal_nan=array.dtype.kind == "f")
    assert np.array_equal(back["turned"], array.T, equal_nan=array.dtype.kind == "f")
    assert back["values"].shape == array.shape


def test_floats_are_float32_and_the_rest_stays(path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "values": np.array([[1.1, np.nan]]),
        "half": np.array([0.5], dtype=np.float16),
        "count": np.arange(3),
        "seen": np.array([True]),
    }
    write_arrays(path, arrays, np.float32, {"axes": "layer position"})
    kinds = {name: array.dtype.name for name, array in read_arrays(path).items()}
    assert kinds == {"values": "float32", "half": "float32", "count": "int64", "seen": "bool"}
    assert np.isnan(read_arrays(path)["values"][0, 1])
    assert read_metadata(path) == {"axes": "layer position"}


def test_slices_are_stored_as_they_look(path: Path) -> None:
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_arrays(path, {"slice": grid[::2, ::-3]}, np.float32, {})
    assert np.array_equal(read_arrays(path)["slice"], grid[::2, ::-3])


@pytest.mark.parametrize(
    "array", [[1.0], "x", np.array(["x"]), np.array([{}], dtype=object), np.array([1j])]
)
def test_anything_but_an_array_of_numbers_is_a_bug(path: Path, array: Any) -> None:
    with pytest.raises(TypeError):
        write_arrays(path, {"values": array}, np.float32, {})


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"\x80\x04pickle"])
def test_damage_is_reported(tmp_path: Path, content: bytes) -> None:
    damaged = tmp_path / "x.safetensors"
    damaged.write_bytes(content)
    for read in (read_arrays, read_metadata):
        with pytest.raises(StoreError, match=r"x\.safetensors is damaged"):
            read(damaged)
    with pytest.raises(StoreError, match="does not exist"):
        read_arrays(tmp_path / "y.safetensors")
