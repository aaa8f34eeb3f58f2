"""The header of a GGUF file, compared with what the package gguf reads, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest

from discovery.backends.loading.gguf.header import read_header
from discovery.errors import ModelError


def refuse(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_header((path,))
    assert path.name in caught.value.cause
    return caught.value


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def encode(form: str, *values: object) -> bytes:
    return struct.pack(form, *values)


def begin(*, version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    """Return the first bytes of a file."""
    return b"GGUF" + encode("<IQQ", version, tensors, pairs)


KEY = encode("<Q1s", 1, b"k")


@pytest.mark.parametrize("quantisation", ["F32", "F16", "Q8_0", "Q4_0"])
def test_the_header_is_what_the_package_gguf_reads(gguf_models, quantisation):
    path = gguf_models("llama", quantisation)
    header = read_header((path,))
    reader = gguf.GGUFReader(path)
    assert [
        (tensor.name, tensor.shape, tensor.type_name, tensor.offset, tensor.n_bytes)
        for tensor in header.tensors
    ] == [
        (
            tensor.name,
            tuple(int(size) for size in reversed(tensor.shape)),
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        for tensor in reader.tensors
    ]
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert set(header.metadata) == set(fields)
    for key, field in fields.items():
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        assert (key in header.arrays) == is_array
        expected = len(field.data) if is_array else field.contents()
        assert header.metadata[key] == expected
    assert header.architecture == "llama"
    assert header.quantisation == quantisation


def test_without_a_file_type_the_quantisation_is_that_of_most_weights(gguf_models, tmp_path):
    content = gguf_models("llama", "Q4_0").read_bytes()
    renamed = content.replace(b"general.file_type", b"general.file_typo")
    assert read_header((write(tmp_path / "m.gguf", renamed),)).quantisation == "Q4_0"


def test_a_file_that_is_cut_off_in_its_data(gguf_models, tmp_path):
    content = gguf_models().read_bytes()
    fault = refuse(write(tmp_path / "m.gguf", content[:-1000]))
    assert f"is cut off: it has {len(content) - 1000:,} bytes" in fault.cause
    assert "Download it again" in fault.cure


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_a_file_that_is_cut_off_in_its_header(gguf_models, tmp_path, share):
    path = gguf_models()
    end = min(tensor.offset for tensor in read_header((path,)).tensors)
    fault = refuse(write(tmp_path / "m.gguf", path.read_bytes()[: int(end * share)]))
    assert "is damaged: its header does not end" in fault.cause


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a GGUF file"),
        (begin(version=1), "is GGUF version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "is big-endian GGUF"),
        (begin(), "holds no tensors"),
        (begin(pairs=1) + encode("<Q", 2**62), "does not end"),
        (begin(pairs=1) + KEY + encode("<I", 99), "unknown type 99"),
        (begin(pairs=1) + KEY + encode("<IIQ", 9, 8, 2**60), "does not end"),
        (begin(pairs=1) + KEY + encode("<IIQ", 9, 9, 1), "array of type 9"),
        (begin(pairs=1) + encode("<Q1s", 1, b"\xff"), "not UTF-8"),
        (begin(tensors=1) + KEY + encode("<I", 77), "has 77 axes"),
        (begin(tensors=1) + KEY + encode("<IQIQ", 1, 7, 2, 0), "of shape .7,. cannot be stored as"),
        (begin(tensors=1) + KEY + encode("<IQIQ", 1, 7, 999, 0), "unknown quantisation 999"),
    ],
)
def test_a_file_that_is_damaged_or_of_another_kind(tmp_path, content, words):
    fault = refuse(write(tmp_path / "m.gguf", content))
    assert fault.cure
    with pytest.raises(ModelError, match=words):
        raise fault


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_give_an_error_or_a_header_but_no_other_exception(
    gguf_models, tmp_path, seed
):
    import random

    path = gguf_models()
    content = bytearray(path.read_bytes())
    rng = random.Random(seed)
    for _ in range(5):
        content[rng.randrange(0, 6000)] = rng.randrange(256)
    damaged = write(tmp_path / "m.gguf", bytes(content))
    try:
        outcome = str(read_header((damaged,)).parts[0])
    except ModelError as fault:
        outcome = fault.cause
    assert damaged.name in outcome


def test_a_part_of_a_split_model_without_the_name_of_one(gguf_models, tmp_path):
    """Renamed parts are noticed: their metadata still say that there are others."""
    from benchmarks.random_models.gguf_files import write_gguf

    source = gguf_models("llama", "F32").parent.parent / "llama-source"
    path = write_gguf(
        source,
        tmp_path / "renamed.gguf",
        "llama",
        metadata={"split.no": 1, "split.count": 3},
    )
    fault = refuse(path)
    assert "says that it is part 2 of 3" in fault.cause
    assert "gguf-split --merge" in fault.cure
