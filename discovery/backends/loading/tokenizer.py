"""The tokenizer of a model, without its weights."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from discovery.backends.loading.gguf.configuration import save_tokenizer
from discovery.backends.loading.gguf.header import read_header
from discovery.backends.loading.huggingface import TextTokenizer, build_tokenizer
from discovery.backends.loading.source import locate_model


def load_tokenizer(name: str | Path) -> TextTokenizer | None:
    """Load the tokenizer of a model. Weights are neither downloaded nor read.

    Args:
        name: "bundled", a GGUF file, a directory in Hugging Face or TransformerLens-native format,
            or a hub name.

    Returns:
        The tokenizer, or None if the model has none.

    Raises:
        ModelError: if there is no such model, or if its tokenizer cannot be read.
    """
    location = locate_model(str(name), weights=False)
    if location.is_native:
        return None
    if not location.gguf:
        return build_tokenizer(location.directory)
    with TemporaryDirectory() as folder:
        save_tokenizer(read_header(location.gguf), Path(folder))
        return build_tokenizer(Path(folder))
