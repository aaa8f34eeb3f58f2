"""Dequantised copies of GGUF models, kept as Hugging Face directories in the user's cache.

A GGUF model is converted once for each dtype: every tensor is dequantised to float32 by the package
`gguf`, brought into the layout that transformers expects (llama.cpp permutes the rows of Llama's
queries and keys, for example), rounded to the dtype and written into a safetensors file. One tensor
is in memory at a time. The result is what transformers' own reader of GGUF computes.

The copy is named by the sha256 of the GGUF file, the dtype, and the version of this converter and
of transformers. It appears in one step, and only one process writes it. It may be deleted at any
time; the next load makes it again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock

from discovery.backends.hardware.memory import read_free_memory
from discovery.backends.loading.gguf.configuration import read_config, save_tokenizer
from discovery.backends.loading.gguf.header import GgufHeader, GgufTensor
from discovery.backends.loading.huggingface import build_meta_module
from discovery.errors import ModelError, first_line
from discovery.store.directory import default_cache_dir
from discovery.store.files import sync_folder

CONVERTER_VERSION = 1  # another number makes the copies of earlier versions unknown
WEIGHTS = "model.safetensors"
_RECORD = "gguf.json"
_SAFETENSORS_NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_PEAK_BYTES_PER_WEIGHT = 20  # of the largest tensor; measured: 9 for Q4_1, 16 for IQ1_M
_SPARE_BYTES = 64 * 2**20  # for the tokenizer and what else is written beside the weights


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """One weight of the model, and the tensors of the GGUF file from which it is made.

    Attributes:
        name: the name of the weight in transformers.
        shape: its shape.
        tensors: the tensors; several if experts are merged.
    """

    name: str
    shape: tuple[int, ...]
    tensors: tuple[GgufTensor, ...]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is done to convert a GGUF model.

    Attributes:
        header: the model.
        config: its configuration.
        architecture: the name of its class in transformers.
        processor: brings a dequantised tensor into the layout of transformers.
        names: the weights' names in transformers by the tensors' names in GGUF.
        weights: the weights, in the order of the file.
        unread: the tensors that transformers does not use.
    """

    header: GgufHeader
    config: Any
    architecture: str
    processor: Any
    names: Mapping[str, str]
    weights: tuple[WeightSource, ...]
    unread: tuple[str, ...]


def saved_dtype(dtype: str) -> str:
    """Return the dtype in which a copy is kept that is to be loaded in this dtype.

    Dequantised weights are float32 numbers, so nothing is gained by keeping them as float64.
    """
    return "float32" if dtype == "float64" else dtype


def convert_gguf(header: GgufHeader, fingerprint: str, dtype: str) -> Path:
    """Return the directory with the dequantised copy of a model; it is written if there is none.

    Args:
        header: the model.
        fingerprint: the sha256 of its files.
        dtype: the dtype in which it is to be loaded.

    Raises:
        ModelError: if the model cannot be read, or if memory or disk space are short.
    """
    dtype = saved_dtype(dtype)
    folder = default_cache_dir() / "gguf"
    name = f"{fingerprint}-{dtype}-{CONVERTER_VERSION}-{version('transformers')}"
    directory = folder / name
    if _is_complete(directory):
        return directory
    with _explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            if not _is_complete(directory):
                _write_copy(header, directory, dtype)
    return directory


def describe_unread(header: GgufHeader, directory: Path) -> tuple[str, ...]:
    """Return warnings that name what the copy in `directory` leaves out of the GGUF file."""
    unread = json.loads((directory / _RECORD).read_text(encoding="utf-8"))["unread"]
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if scaling != "none":
        unread = [*unread, f"{header.architecture}.rope.scaling"]
    if not unread:
        return ()
    return (
        f"transformers does not use {', '.join(unread)} of {header.path.name}, so the model may "
        "compute other logits than in llama.cpp.",
    )


def _is_complete(directory: Path) -> bool:
    """Return whether a copy is there with all its weights."""
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
        return bool((directory / WEIGHTS).stat().st_size == record["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_copy(header: GgufHeader, directory: Path, dtype: str) -> None:
    """Convert a model into a temporary directory, and give this its name at the end.

    The caller holds the lock, so that whatever lies there unfinished was left by a killed process.
    """
    conversion = plan_conversion(header)
    temporary = directory.with_name(f".{directory.name}.tmp")
    for leftover in (temporary, directory):
        shutil.rmtree(leftover, ignore_errors=True)
    _require_room(conversion, directory.parent, dtype)
    temporary.mkdir()
    try:
        n_bytes = _write_weights(conversion, temporary / WEIGHTS, getattr(torch, dtype))
        conversion.config.dtype = getattr(torch, dtype)
        conversion.config.architectures = [conversion.architecture]
        conversion.config.save_pretrained(temporary)
        save_tokenizer(header, temporary)
        record = {
            "file": header.path.name,
            "quantisation": header.quantisation,
            "unread": list(conversion.unread),
            "bytes": n_bytes,
            "gguf": version("gguf"),
        }
        (temporary / _RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
        os.replace(temporary, directory)
        sync_folder(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def plan_conversion(header: GgufHeader) -> Conversion:
    """Match the weights that the architecture needs with the tensors of the file.

    Raises:
        ModelError: if a weight has no tensor, or if a quantisation is not known.
    """
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    config = read_config(header)
    module = build_meta_module(config, header.path.name, "header")
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    try:
        names: Mapping[str, str] = get_gguf_hf_weights_map(module, processor)
    except NotImplementedError as fault:
        raise ModelError(
            f"The installed package gguf does not know the tensors of {header.architecture!r}.",
            "Install a newer one: pip install --upgrade gguf.",
            detail=first_line(fault),
        ) from fault
    tensors, unread = _match_tensors(header, names)
    shapes = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    _require_all(header, [name for name, _ in module.named_parameters() if name not in tensors])
    _require_sizes(header, tensors, shapes)
    _require_known_types(header)
    return Conversion(
        header=header,
        config=config,
        architecture=type(module).__name__,
        processor=processor,
        names=names,
        weights=tuple(
            WeightSource(name=name, shape=shapes[name], tensors=tuple(parts))
            for name, parts in tensors.items()
        ),
        unread=tuple(unread),
    )


def _match_tensors(
    header: GgufHeader, names: Mapping[str, str]
) -> tuple[dict[str, list[GgufTensor]], list[str]]:
    """Return the tensors of each weight of transformers, and the names of those of none."""
    tensors: dict[str, list[GgufTensor]] = {}
    unread = []
    for tensor in header.tensors:
        # The weights of stacked experts have no suffix in transformers.
        name = names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"))
        if name is None:
            unread.append(tensor.name)
        else:
            tensors.setdefault(name, []).append(tensor)
    return tensors, unread


def _require_all(header: GgufHeader, missing: list[str]) -> None:
    """Check that no weight is missing.

    Raises:
        ModelError: if some are.
    """
    if missing:
        raise ModelError(
            f"{header.path.name} lacks {len(missing)} weights that a {header.architecture} model "
            f"has in transformers, first {missing[0]}.",
            "Use a file that holds a whole language model of this architecture, or the model's "
            "Hugging Face directory.",
        )


def _require_sizes(
    header: GgufHeader,
    tensors: Mapping[str, list[GgufTensor]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Check that the tensors hold as many numbers as the weights that are made of them.

    Raises:
        ModelError: if they do not: then transformers misreads the sizes of the architecture.
    """
    for name, parts in tensors.items():
        if sum(part.n_elements for part in parts) != math.prod(shapes[name]):
            raise ModelError(
                f"{header.path.name}: {parts[0].name} has the shape {parts[0].shape}, and by the "
                f"metadata that transformers reads, {name} has the shape {shapes[name]}.",
                "Use the model's Hugging Face directory or hub name with safetensors weights.",
            )


def _require_known_types(header: GgufHeader) -> None:
    """Check that every tensor has a quantisation that can be undone.

    Raises:
        ModelError: if one has not; the message lists those that can be.
    """
    import gguf

    known = {kind.name for kind, size in gguf.GGML_QUANT_SIZES.items() if _is_known(kind, size[1])}
    for tensor in header.tensors:
        if tensor.type_name not in known:
            raise ModelError(
                f"{header.path.name}: {tensor.name} is stored as {tensor.type_name}, which cannot "
                f"be dequantised. These can be: {', '.join(sorted(known))}.",
                "Use a file in another quantisation.",
            )


def _is_known(kind: Any, block_bytes: int) -> bool:
    """Return whether the package gguf dequantises this type, by trying it on one block."""
    import gguf

    try:
        gguf.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _require_room(conversion: Conversion, folder: Path, dtype: str) -> None:
    """Check that memory and disk suffice for the conversion.

    Raises:
        ModelError: if they do not; the message gives the numbers.
    """
    name = conversion.header.path.name
    itemsize = getattr(torch, dtype).itemsize
    n_weights = [math.prod(weight.shape) for weight in conversion.weights]
    written = itemsize * sum(n_weights) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if written > free:
        raise ModelError(
            f"{name} does not fit on the disk: its dequantised copy takes {written / 1e9:,.1f} GB "
            f"in {dtype}, and {free / 1e9:,.1f} GB are free in {folder}.",
            "Free some space, choose a smaller dtype, or set CIRCUIT_SCOUT_CACHE_DIR to a "
            "directory on a larger disk.",
        )
    needed = _PEAK_BYTES_PER_WEIGHT * max(n_weights)
    free = read_free_memory("cpu")
    if needed > free:
        raise ModelError(
            f"{name} cannot be converted: its largest tensor takes {needed / 1e9:,.1f} GB of "
            f"memory while it is dequantised, and {free / 1e9:,.1f} GB are free.",
            "Free memory, or convert the model on a larger machine.",
        )


def _write_weights(conversion: Conversion, path: Path, dtype: torch.dtype) -> int:
    """Write the weights as safetensors, one after the other; return the size of the file.

    A safetensors file is the length of its header in 8 bytes, the header as JSON, and the tensors'
    data without gaps. Source: https://github.com/huggingface/safetensors#format
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in conversion.weights:
        begin = end
        end += dtype.itemsize * math.prod(weight.shape)
        entries[weight.name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(weight.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for weight in conversion.weights:
            _write_weight(file, _dequantise(conversion, weight).to(dtype))
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _write_weight(file: BinaryIO, weight: torch.Tensor) -> None:
    file.write(weight.contiguous().view(-1).view(torch.uint8).numpy().data)


def _dequantise(conversion: Conversion, weight: WeightSource) -> torch.Tensor:
    """Return a weight in float32 and in the layout of transformers.

    Raises:
        ModelError: if the tensors do not give a weight of the right shape.
    """
    merged: dict[str, torch.Tensor] = {}
    for tensor in weight.tensors:
        result = conversion.processor.process(
            weights=_read_tensor(tensor),
            name=tensor.name,
            tensor_key_mapping=conversion.names,
            parsed_parameters={"tensors": merged},
        )
        if result.name is not None:
            merged[weight.name] = torch.from_numpy(np.ascontiguousarray(result.weights))
    value = merged.get(weight.name)
    if value is None or tuple(value.shape) != weight.shape:
        shape = "nothing" if value is None else f"a weight of shape {tuple(value.shape)}"
        raise ModelError(
            f"{conversion.header.path.name}: {weight.tensors[0].name} gives {shape}, and the "
            f"architecture has {weight.name} of shape {weight.shape}.",
            "Download the file again, or use the model's Hugging Face directory.",
        )
    return value


def _read_tensor(tensor: GgufTensor) -> np.ndarray:
    """Read a tensor from its file and dequantise it to float32."""
    import gguf

    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        data = np.fromfile(file, dtype=np.uint8, count=tensor.n_bytes)
    if data.size < tensor.n_bytes:
        raise ModelError(f"{tensor.path.name} was cut off while it was read.", "Download it again.")
    rows = data.reshape(*tensor.shape[:-1], -1)
    values: np.ndarray = gguf.dequantize(rows, gguf.GGMLQuantizationType(tensor.type_number))
    return values.reshape(tensor.shape)


@contextmanager
def _explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the cache into a ModelError.

    Raises:
        ModelError: in place of the OSError.
    """
    try:
        yield
    except OSError as fault:
        raise ModelError(
            f"The dequantised copy cannot be written to {folder} "
            f"({fault.strerror or type(fault).__name__}).",
            "Set CIRCUIT_SCOUT_CACHE_DIR to a directory that this user may write to.",
            detail=first_line(fault),
        ) from fault
