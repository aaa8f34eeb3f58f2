"""What a model is before its weights are loaded: from its configuration alone, on torch's meta device, which holds shapes and no numbers.

from discovery.backends.outline import outline
outline("bundled").n_params            # 882304; of a hub name all but the weights is fetched
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from discovery.backends.describe import context_of, vocabulary
from discovery.backends.empty import empty_module, give_biases
from discovery.backends.engines import Engine, engines_of
from discovery.backends.find import find_source
from discovery.backends.info import Described, Width, width_of
from discovery.backends.native import NATIVE_CONFIG, native_module, read_native_config
from discovery.backends.shape import Shape, copied, stacked, work
from discovery.backends.source import Source, read_config
from discovery.backends.tokenizer import TOKENIZER_FILES
from discovery.errors import ModelError, first_line
from discovery.sites import BackendName


class UndescribedError(ModelError):
    """A model whose configuration does not say how large its parts are. It may load all the same."""


@dataclass(frozen=True, kw_only=True)
class Outline(Described):
    """A model that is not loaded; `copied` is for TransformerLens.

    Attributes:
        stacked: how many weights are put together from several of the files'.
        saved: dtype of the files; quantised: how they are packed beyond that, as their configuration names it.
        backends: those that know the architecture, by its name alone: whether they reproduce it is found out at load.
        unknown: why another does not.
        tokenizer: the directory has one; else prompts are token ids.
    """

    stacked: int
    saved: str
    quantised: str | None
    backends: tuple[Engine, ...]
    unknown: str
    tokenizer: bool

    @property
    def n_nodes(self) -> int:
        """Heads and MLPs: the universe that a circuit is found in."""
        return self.n_layers * (self.n_heads + (0 if self.attn_only else 1))

    @property
    def copied_bytes(self) -> int:
        """Of what the loaded model takes, what is held twice."""
        return self.width * self.copied

    @property
    def stacked_bytes(self) -> int:
        """What is put together from several of the files' weights."""
        return self.width * self.stacked

    @property
    def loading_bytes(self) -> int:
        """The most in use while it is loaded on a CPU.

        Weights that are saved as they are wanted stay in their files, which are mapped; others are made beside these, and so are
        those that are put together.
        """
        made = self.stacked if self.saved == self.dtype else self.n_params + self.stacked
        return max(width_of(self.saved) * self.n_params + self.width * made, self.weights_bytes)

    def on(self, engine: Engine) -> Outline:
        """As one engine would hold it."""
        return self if engine == "transformerlens" else replace(self, copied=0)

    def engine(self, backend: BackendName) -> Engine:
        """The first that knows it, or the one that is asked for. `backends.choose` weighs them.

        Raises:
            ModelError: where the backend that is asked for does not know it.
        """
        if backend == "auto":
            return self.backends[0]
        if backend not in self.backends:
            raise ModelError(self.unknown, f"Use backend {' or '.join(map(repr, self.backends))}.")
        return backend


def outline(name: str | Path = "bundled", *, dtype: str = "float32") -> Outline:
    """Describe a model without loading its weights.

    Args:
        name: as in `load_model`.
        dtype: in which the weights would be loaded.

    Raises:
        ModelError: the name is no model, or not one that can be run.
    """
    if dtype not in get_args(Width):
        raise ModelError(f"dtype {dtype!r} is not known.", f"Allowed: {', '.join(get_args(Width))}.")
    source = find_source(str(name), weights=False)
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens and its friends print
        return outline_of(source, dtype)


def outline_of(source: Source, dtype: str) -> Outline:
    """Describe the model at a place.

    Raises:
        ModelError: as `outline`.
    """
    if (source.directory / NATIVE_CONFIG).is_file():
        return _of_native(source, dtype)
    return _of_hugging_face(source, dtype)


def _of_hugging_face(source: Source, dtype: str) -> Outline:
    read_config(source.directory, weights=False)
    module, saved = empty_module(source.directory)
    try:
        shape, d_vocab = Shape.of_hugging_face(module.config), vocabulary(module)
        n_logits = int(module.get_output_embeddings().weight.shape[0])
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as fault:
        cause = f"{source.directory.name}/config.json does not say how a {type(module).__name__} has its heads ({type(fault).__name__})."
        raise UndescribedError(cause, "Load it to see what it is.", detail=first_line(fault)) from fault
    twice = copied(str(module.config.model_type), shape)
    return _outline(
        source, module, shape, dtype, (d_vocab, n_logits, context_of(module)), saved or torch.float32, twice, engines_of(module.config)
    )


def _of_native(source: Source, dtype: str) -> Outline:
    config = read_native_config(source.directory)
    module: Any
    with torch.device("meta"):
        module, cfg = native_module(config, source.directory.name, torch.float32)
    give_biases(module, source.directory)
    vocabularies = config["d_vocab"], int(module.head.out_features), config["n_ctx"]
    return _outline(
        source, module, Shape.of_native(cfg), dtype, vocabularies, torch.float32, 0, (get_args(Engine), ""), again=dtype == "float32"
    )


def _outline(
    source: Source,
    module: Any,
    shape: Shape,
    dtype: str,
    vocabularies: tuple[int, int, int],
    saved: torch.dtype,
    twice: int,
    engines: tuple[tuple[Engine, ...], str],
    *,
    again: bool = False,  # every weight is made anew from the files'
) -> Outline:
    d_vocab, n_logits, n_ctx = vocabularies
    n_params = sum(parameter.numel() for parameter in module.parameters())
    blocks = next((part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == shape.n_layers), None)
    if blocks is None:
        raise UndescribedError(f"A {type(module).__name__} has no list of its {shape.n_layers} layers.", "Load it to see what it is.")
    return Outline(
        **vars(shape),
        name=source.name,
        source=source.name if source.name == "bundled" or source.revision else str(source.directory),
        revision=source.revision,
        architecture=type(module).__name__,
        dtype=dtype,
        d_vocab=d_vocab,
        d_vocab_out=None if n_logits == d_vocab else n_logits,
        n_ctx=n_ctx,
        n_params=n_params,
        copied=twice,
        stacked=n_params if again else stacked(module),
        saved=str(saved).removeprefix("torch."),
        quantised=_quantised(getattr(module, "config", None)),
        macs_attention=shape.macs_attention,
        macs_mlp=0 if shape.attn_only else work([blocks[0]], module) - shape.macs_attention,
        backends=engines[0],
        unknown=engines[1],
        tokenizer=any((source.directory / name).is_file() for name in TOKENIZER_FILES),
    )


def _quantised(config: Any) -> str | None:
    said = getattr(config, "quantization_config", None)
    return str(said.get("quant_method", "unknown")) if isinstance(said, dict) and said else None
