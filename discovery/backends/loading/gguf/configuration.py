"""What transformers makes of a GGUF header: the configuration, the tokenizer, the known names.

transformers reads metadata and weights from one file. It is given a small stand-in file with the
metadata of the model and the names of its tensors, each with a single number. So the weights
cannot be read by accident, a model in several parts looks like one, and no other file of the
model's directory (which might ask to run code) is looked at.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from discovery.backends.loading.gguf.header import GgufHeader
from discovery.errors import ModelError, first_line

READABLE_ARCHITECTURES = (
    "bloom",
    "falcon",
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "nemotron",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "stablelm",
    "starcoder2",
)
"""The architectures that are read, as llama.cpp names them; Mistral and Llama are both llama.

transformers reads a few more. They have layers without attention (Mamba, LFM2, Qwen 3.5), are no
causal language models (T5), have layers of different sizes (Gemma 4), or lack weights when
transformers has read them (gpt-oss, MiniMax).
"""

_EMBEDDING = "token_embd.weight"
_TOKENS = "tokenizer.ggml.tokens"
_STAND_IN = "header.gguf"
_READING_ERRORS = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    OSError,
    struct.error,
)
"""What transformers raises if it cannot make sense of the metadata."""


def require_readable(header: GgufHeader) -> None:
    """Check that a GGUF model has an architecture that can be read.

    Raises:
        ModelError: if it has not; the message lists those that can be.
    """
    if header.architecture in READABLE_ARCHITECTURES:
        return
    raise ModelError(
        f"{header.path.name} has the architecture {header.architecture!r}, which cannot be read "
        f"from GGUF. These can be read: {', '.join(READABLE_ARCHITECTURES)}.",
        "Use the model's Hugging Face directory or hub name with safetensors weights.",
    )


def read_config(header: GgufHeader) -> Any:
    """Return the configuration of transformers for a GGUF model.

    The number of tokens is that of the embedding's rows. So the vocabulary need not be read, which
    takes transformers many seconds.

    Raises:
        ModelError: if the architecture cannot be read, or the header lacks something.
    """
    from transformers import AutoConfig

    require_readable(header)
    rows = [tensor.shape[0] for tensor in header.tensors if tensor.name == _EMBEDDING]
    if not rows:
        raise ModelError(
            f"{header.path.name} has no tensor {_EMBEDDING}.",
            "Give a file that holds a whole language model.",
        )
    metadata = {
        key: pair for key, pair in header.encoded.items() if not _is_vocabulary(header, key)
    }
    metadata |= {_TOKENS: _encode_texts(_TOKENS, 2)}  # transformers warns if there are none
    with _stand_in(header, metadata) as folder, _as_model_error(header, "configuration"):
        config = AutoConfig.from_pretrained(folder, gguf_file=_STAND_IN, local_files_only=True)
    config.vocab_size = rows[0]
    config.name_or_path = ""  # else it is the path of the stand-in file
    return config


def describes_tokenizer(header: GgufHeader) -> bool:
    """Return whether a GGUF model has a tokenizer."""
    return {"tokenizer.ggml.model", _TOKENS} <= set(header.metadata)


def save_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write the tokenizer of a GGUF model as transformers saves one; nothing if it has none.

    Raises:
        ModelError: if transformers cannot read the tokenizer.
    """
    # AutoTokenizer would find this class too, but it reads the configuration for that.
    from transformers import PreTrainedTokenizerFast

    if not describes_tokenizer(header):
        return
    with _stand_in(header, header.encoded) as source, _as_model_error(header, "tokenizer"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            source, gguf_file=_STAND_IN, local_files_only=True
        )
        tokenizer.save_pretrained(folder)


def _is_vocabulary(header: GgufHeader, key: str) -> bool:
    return key in header.arrays and key.startswith("tokenizer.")


def _encode_texts(key: str, count: int) -> bytes:
    """Return a key-value pair of GGUF whose value is an array of empty texts."""
    name = key.encode()
    return struct.pack(f"<Q{len(name)}sIIQ", len(name), name, 9, 8, count) + bytes(8 * count)


@contextmanager
def _stand_in(header: GgufHeader, metadata: Mapping[str, bytes]) -> Iterator[Path]:
    """Write a file with these metadata and the header's tensor names, and yield its folder."""
    names = [tensor.name.encode() for tensor in header.tensors]
    alignment = int(header.metadata.get("general.alignment", 32))
    content = [
        struct.pack("<4sIQQ", b"GGUF", 3, len(names), len(metadata)),
        *metadata.values(),
        # Of each tensor: its name, one axis of length 1, float32 (0), and its place in the data.
        *(struct.pack(f"<Q{len(name)}sIQIQ", len(name), name, 1, 1, 0, 0) for name in names),
    ]
    size = sum(map(len, content))
    content.append(bytes(-size % alignment + max(alignment, 4)))
    with tempfile.TemporaryDirectory(prefix="circuit-scout-gguf-") as folder:
        (Path(folder) / _STAND_IN).write_bytes(b"".join(content))
        yield Path(folder)


@contextmanager
def _as_model_error(header: GgufHeader, part: str) -> Iterator[None]:
    """Turn what transformers raises on metadata that it cannot read into a ModelError.

    Raises:
        ModelError: in place of the library's exception, whose first line is the detail.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (*_READING_ERRORS, StrictDataclassError) as fault:
        raise ModelError(
            f"{header.path.name}: transformers cannot read its {part} ({type(fault).__name__}).",
            "Download the file again, or use the model's Hugging Face directory or hub name.",
            detail=first_line(fault),
        ) from fault
