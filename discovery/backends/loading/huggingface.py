"""A Hugging Face directory becomes a torch module: every weight that the architecture needs is there, and none of another shape.

A model directory's tokenizer, as tasks need it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from discovery.backends.hardware.placement import Placement, remove_folder_with
from discovery.backends.loading.source import require_supported_config
from discovery.errors import ModelError, first_line

_LAYER = re.compile(r"\.\d+\.")


def build_module(
    directory: Path, dtype: torch.dtype, device: str, spread: Placement | None = None
) -> nn.Module:
    """The Hugging Face module in evaluation mode, weights frozen; on the device, or spread over several places.

    Raises:
        ModelError: an architecture transformers lacks, or weights that do not fit it.
    """
    require_supported_config(directory)
    if spread is None:
        return _load_pretrained(directory, dtype, {}).to(device)
    folder = tempfile.TemporaryDirectory(prefix="circuit-scout-offload-")
    try:
        module = _load_pretrained(directory, dtype, spread.from_pretrained_arguments(folder.name))
    except BaseException:  # Ctrl-C too
        folder.cleanup()
        raise
    remove_folder_with(module, folder)
    return module


def _load_pretrained(
    directory: Path, dtype: torch.dtype, placement: Mapping[str, Any]
) -> nn.Module:
    """As `build_module`; `places` are arguments of transformers."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with progress_bars_on_terminal():
            module, report = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told by us, with name and shapes
                **placement,
            )
    except SafetensorError as fault:
        raise ModelError(
            f"{directory.name}: its weights are damaged.",
            "Save or download them again.",
            detail=str(fault),
        ) from None
    except torch.OutOfMemoryError:
        raise
    except ImportError as fault:
        cause = f"{directory.name} cannot be loaded: its weights or its architecture need a package that is not here."
        raise ModelError(
            cause, "Use a model without it, as one that is not quantised.", detail=first_line(fault)
        ) from fault
    except OSError as fault:
        cause = f"{directory.name} cannot be loaded: a file is missing or cannot be read ({type(fault).__name__})."
        cure = "Download what is missing; the weights are model.safetensors, or what model.safetensors.index.json names."
        raise ModelError(cause, cure, detail=first_line(fault)) from fault
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        StrictDataclassError,
    ) as fault:
        what = "its config.json, or not this device_map" if placement else "its config.json"
        cause = f"{directory.name} cannot be loaded: transformers does not take {what} ({type(fault).__name__})."
        cure = "Check that it is a whole causal language model" + (
            ", or give device_map 'auto'." if placement else "."
        )
        raise ModelError(cause, cure, detail=first_line(fault)) from fault
    _require_matching_weights(directory.name, module, report)
    _fuse_activations(module)
    return module.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _fuse_activations(module: nn.Module) -> None:
    """The tanh form of GELU as one kernel: transformers writes GPT-2's as eight elementwise steps, a tenth of a sweep's time on a CPU."""
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(parent, name, nn.GELU(approximate="tanh"))


def _require_matching_weights(name: str, module: nn.Module, report: Any) -> None:
    """The files hold the architecture's weights: none missing, none of another shape, and no layer that the configuration leaves out.

    Other weights that are not used (a vision tower, another head) are let pass: the model is whole without them.
    """
    if mismatched := sorted(map(str, report["mismatched_keys"])):
        cause = f"{name}: {len(mismatched)} weights have other shapes than config.json says, first {mismatched[0]}."
        raise ModelError(cause, "Restore the config.json that was saved with the weights.")
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{name} lacks {len(missing)} weights, first {missing[0]}.",
            "Save the whole model again.",
        )
    used = {_LAYER.sub(".#.", key) for key in module.state_dict()}
    if left := sorted(
        key
        for key in report["unexpected_keys"]
        if _LAYER.search(key) and _LAYER.sub(".#.", key) in used
    ):
        cause = f"{name} holds {len(left)} weights of layers that config.json leaves out, first {left[0]}: a smaller model would run."
        raise ModelError(cause, "Restore the config.json that was saved with the weights.")


@contextmanager
def progress_bars_on_terminal() -> Iterator[None]:
    """transformers draws progress bars on a terminal only, not into a log."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown and not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class TextTokenizer:
    """A Hugging Face tokenizer behind the protocol that tasks need: its own default special tokens, nothing added."""

    def __init__(self, tokenizer: Any) -> None:
        self.wrapped = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.wrapped(text)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return str(self.wrapped.decode(ids))

    def has_unknown(self, text: str) -> bool:
        unknown, written = self.wrapped.unk_token_id, self.wrapped.unk_token
        return unknown is not None and written not in text and unknown in self.encode(text)


def build_tokenizer(directory: Path) -> TextTokenizer | None:
    """The directory's tokenizer, or None where it has none (prompts are then token ids).

    Raises:
        ModelError: where tokenizer files are there but cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError) as fault:
        raise ModelError(
            f"{directory.name}'s tokenizer cannot be read ({type(fault).__name__}).",
            "Repair it, or remove its files and give prompts as token ids.",
            detail=first_line(fault),
        ) from fault
    return TextTokenizer(tokenizer)
