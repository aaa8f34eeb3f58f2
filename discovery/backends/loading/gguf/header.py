"""The header of a GGUF model: its metadata, and where each tensor lies. No weight is read.

A GGUF file holds a magic number, the version, two counts, the metadata as typed key-value pairs,
the list of tensors, and after a padding the tensors' data. Numbers are little-endian. Source: the
specification of GGUF in the repository ggml-org/ggml, versions 2 and 3.

The sizes in the header are compared with those of the files, so that a download that broke off is
noticed before anything is converted.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from discovery.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBER_FORMATS: Mapping[int, str] = {  # by the number of the value type
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_TEXT_LENGTH = struct.Struct("<Q")
_STRING = 8
_ARRAY = 9
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 8
_MAX_TEXT = 1 << 28  # bytes of one string: chat templates are long, but not that long

MetadataValue = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        name: its GGUF name, as blk.0.attn_q.weight.
        shape: its shape as torch writes it: the axis that varies fastest comes last.
        type_number: the number of its quantisation in ggml.
        type_name: the name of its quantisation, as Q4_1.
        path: the file.
        offset: where its data begin in the file, in bytes.
        n_bytes: how many bytes of data it has.
    """

    name: str
    shape: tuple[int, ...]
    type_number: int
    type_name: str
    path: Path
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """The number of its weights."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a GGUF model says of itself.

    Attributes:
        parts: its files, in order; nearly always one.
        metadata: the values of the metadata. Of an array, only its length is kept.
        arrays: the keys of the metadata that are arrays.
        encoded: each key-value pair of the metadata as the first file writes it.
        tensors: the tensors of all files.
    """

    parts: tuple[Path, ...]
    metadata: Mapping[str, MetadataValue]
    arrays: frozenset[str]
    encoded: Mapping[str, bytes]
    tensors: tuple[GgufTensor, ...]

    @property
    def path(self) -> Path:
        """The first file, by which the model is named."""
        return self.parts[0]

    @property
    def architecture(self) -> str:
        """The architecture as llama.cpp names it, or "" if the file does not say it."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def quantisation(self) -> str:
        """The name of the quantisation, as Q4_1 or Q4_K_M.

        It is what the file says, or else the type that most of its weights have.
        """
        import gguf

        number = self.metadata.get("general.file_type")
        known = {int(kind): kind.name for kind in gguf.LlamaFileType}
        if isinstance(number, int) and number in known and "GUESSED" not in known[number]:
            return known[number].removeprefix("MOSTLY_").removeprefix("ALL_")
        weights: dict[str, int] = {}
        for tensor in self.tensors:
            weights[tensor.type_name] = weights.get(tensor.type_name, 0) + tensor.n_elements
        return max(weights, key=lambda name: weights[name])


def read_header(parts: tuple[Path, ...]) -> GgufHeader:
    """Read the header of a GGUF model.

    Args:
        parts: all files of the model, in order, as `find_gguf_parts` gives them.

    Raises:
        ModelError: if a file is not GGUF, is cut off or damaged, or is a part of another model.
    """
    headers = [_read_file(path) for path in parts]
    for number, header in enumerate(headers):
        _require_part(header, number, len(headers))
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    first = headers[0]
    names = {tensor.name for tensor in tensors}
    if not tensors or len(names) < len(tensors):
        problem = "lists a tensor twice" if tensors else "holds no tensors"
        raise _damaged_error(first.path, f"it {problem}")
    return GgufHeader(
        parts=parts,
        metadata=first.metadata,
        arrays=first.arrays,
        encoded=first.encoded,
        tensors=tensors,
    )


def _require_part(header: GgufHeader, number: int, n_parts: int) -> None:
    """Check that a file is the part of the model that its name says.

    Raises:
        ModelError: if its metadata say another part or another number of parts.
    """
    count = int(header.metadata.get("split.count", 0)) or 1
    stated_number = int(header.metadata.get("split.no", 0))
    if count == n_parts and stated_number == number:
        return
    raise ModelError(
        f"{header.path.name} says that it is part {stated_number + 1} of {count}, and its name "
        f"says part {number + 1} of {n_parts}.",
        "Give the parts the names that gguf-split gave them (model-00001-of-00003.gguf), or merge "
        "them: gguf-split --merge first-part.gguf merged.gguf.",
    )


def _read_file(path: Path) -> GgufHeader:
    """Read the header of one file.

    Raises:
        ModelError: if the file cannot be read, is not GGUF, is cut off, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _HeaderReader(path, file).read()
    except OSError as fault:
        raise ModelError(
            f"{path.name} cannot be read ({fault.strerror or type(fault).__name__}).",
            "Check the permissions and the disk.",
        ) from fault


class _HeaderReader:
    """Reads one file from its beginning to the end of its header."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size

    def read(self) -> GgufHeader:
        """Read the whole header.

        Raises:
            ModelError: if the file is not GGUF, is cut off, or is damaged.
        """
        n_tensors, n_metadata = self._read_counts()
        metadata: dict[str, MetadataValue] = {}
        arrays = set()
        encoded = {}
        for _ in range(n_metadata):
            start = self.file.tell()
            key = self._text()
            kind = int(self._number("<I"))
            metadata[key] = self._value(kind)
            if kind == _ARRAY:
                arrays.add(key)
            encoded[key] = self._read_again(start)
        return GgufHeader(
            parts=(self.path,),
            metadata=metadata,
            arrays=frozenset(arrays),
            encoded=encoded,
            tensors=self._read_tensors(n_tensors, metadata),
        )

    def _read_counts(self) -> tuple[int, int]:
        """Read the magic number, the version and the numbers of tensors and of metadata."""
        if self.file.read(4) != _MAGIC:
            raise ModelError(
                f"{self.path.name} is not a GGUF file: it does not begin with 'GGUF'.",
                "Download it again; a file of a few hundred bytes is often a Git LFS pointer.",
            )
        version = int(self._number("<I"))
        if version not in _VERSIONS:
            is_swapped = version & 0xFFFF == 0
            kind = "big-endian GGUF" if is_swapped else f"GGUF version {version}"
            raise ModelError(
                f"{self.path.name} is {kind}; versions {' and '.join(map(str, _VERSIONS))} in "
                "little-endian order are read.",
                "Convert the model again with a current llama.cpp.",
            )
        return int(self._number("<Q")), int(self._number("<Q"))

    def _read_tensors(
        self, n_tensors: int, metadata: Mapping[str, MetadataValue]
    ) -> tuple[GgufTensor, ...]:
        """Read the list of tensors, and check that all their data are in the file."""
        entries = []
        for _ in range(n_tensors):
            name = self._text()
            n_dimensions = int(self._number("<I"))
            if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
                raise _damaged_error(self.path, f"the tensor {name!r} has {n_dimensions} axes")
            dimensions = [int(self._number("<Q")) for _ in range(n_dimensions)]
            entries.append(
                (name, dimensions[::-1], int(self._number("<I")), int(self._number("<Q")))
            )
        alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        if alignment < 1:
            raise _damaged_error(self.path, f"general.alignment is {alignment}")
        start = math.ceil(self.file.tell() / alignment) * alignment
        tensors = tuple(
            self._make_tensor(name, tuple(shape), number, start + offset)
            for name, shape, number, offset in entries
        )
        end = max((tensor.offset + tensor.n_bytes for tensor in tensors), default=0)
        if end > self.size:
            raise _cut_off_error(self.path, self.size, end)
        return tensors

    def _make_tensor(
        self, name: str, shape: tuple[int, ...], number: int, offset: int
    ) -> GgufTensor:
        import gguf

        sizes = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
        if number not in sizes:
            raise ModelError(
                f"{self.path.name}: the tensor {name!r} has the unknown quantisation {number}.",
                "Use a file in another quantisation (Q4_K_M, Q8_0, F16), or a newer gguf package.",
            )
        type_name, block_elements, block_bytes = sizes[number]
        if not all(shape) or shape[-1] % block_elements:
            raise _damaged_error(
                self.path, f"the tensor {name!r} of shape {shape} cannot be stored as {type_name}"
            )
        return GgufTensor(
            name=name,
            shape=shape,
            type_number=number,
            type_name=type_name,
            path=self.path,
            offset=offset,
            n_bytes=math.prod(shape) // block_elements * block_bytes,
        )

    def _value(self, kind: int) -> MetadataValue:
        """Read a value of the metadata; of an array, the result is its length."""
        if kind in _NUMBER_FORMATS:
            return self._number(_NUMBER_FORMATS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise _damaged_error(self.path, f"its metadata hold a value of the unknown type {kind}")
        element = int(self._number("<I"))
        length = int(self._number("<Q"))
        if element == _STRING:
            self._skip_texts(length)
        elif element in _NUMBER_FORMATS:
            self._skip(length * struct.calcsize(_NUMBER_FORMATS[element]))
        else:
            raise _damaged_error(self.path, f"its metadata hold an array of type {element}")
        return length

    def _skip_texts(self, count: int) -> None:
        """Skip the texts of an array: a vocabulary has hundreds of thousands, so this is quick."""
        position = self.file.tell()
        for _ in range(count):
            length = self.file.read(_TEXT_LENGTH.size)
            if len(length) < _TEXT_LENGTH.size:
                break
            position += _TEXT_LENGTH.size + _TEXT_LENGTH.unpack(length)[0]
            if position > self.size:
                break
            self.file.seek(position)
        else:
            return
        raise self._end_error()

    def _text(self) -> str:
        length = int(self._number("<Q"))
        if length > _MAX_TEXT and length <= self.size:
            raise _damaged_error(self.path, f"its header holds a text of {length} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _damaged_error(self.path, "a name in its header is not UTF-8") from None

    def _number(self, number_format: str) -> int | float | bool:
        value: int | float | bool
        (value,) = struct.unpack(number_format, self._take(struct.calcsize(number_format)))
        return value

    def _read_again(self, start: int) -> bytes:
        """Return the bytes from `start` to where the file is read now."""
        n_bytes = self.file.tell() - start
        self.file.seek(start)
        return self.file.read(n_bytes)

    def _take(self, n_bytes: int) -> bytes:
        self._require(n_bytes)
        return self.file.read(n_bytes)

    def _skip(self, n_bytes: int) -> None:
        self._require(n_bytes)
        self.file.seek(n_bytes, 1)

    def _require(self, n_bytes: int) -> None:
        """Check that the file goes on for so many bytes."""
        if self.file.tell() + n_bytes > self.size:
            raise self._end_error()

    def _end_error(self) -> ModelError:
        return _damaged_error(self.path, f"its header does not end within its {self.size:,} bytes")


def _cut_off_error(path: Path, size: int, needed: int) -> ModelError:
    return ModelError(
        f"{path.name} is cut off: it has {size:,} bytes, and its header lists tensors up to byte "
        f"{needed:,}.",
        "Download it again.",
    )


def _damaged_error(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path.name} is damaged: {reason}.", "Download it again.")
