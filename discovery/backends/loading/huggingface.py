"""Hugging Face directories: the torch module with all its weights, and the tokenizer.

Loading checks that the files hold every weight that the architecture needs, in the right shape,
and that no layer is left out. transformers alone would fill gaps with random numbers.
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
from discovery.backends.loading.source import damaged_weights_error, require_supported_config
from discovery.errors import ModelError, first_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
CONFIG_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""What transformers raises if it cannot make a model of a config.json."""

_LAYER_NUMBER = re.compile(r"\.\d+\.")


def build_meta_module(config: Any, name: str, part: str = "config.json") -> Any:
    """Build the module of a configuration on the meta device, where tensors have no numbers.

    Args:
        config: the configuration of transformers.
        name: the model, for the message.
        part: what holds its configuration, for the message.

    Raises:
        ModelError: if transformers does not take the configuration.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    try:
        # transformers sets torch's default dtype while it builds a module, and the default belongs
        # to the whole process: a server that measures meanwhile must not see another than float32.
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", dtype=torch.float32
            )
    except (*CONFIG_ERRORS, OSError, StrictDataclassError) as fault:
        raise config_error(name, fault, part) from fault


def config_error(name: str, fault: Exception, part: str = "config.json") -> ModelError:
    """Build the error for a configuration that transformers does not take."""
    return ModelError(
        f"{name}: transformers does not take its {part} ({type(fault).__name__}).",
        "Check that it is that of a causal language model.",
        detail=first_line(fault),
    )


def build_module(
    directory: Path, dtype: torch.dtype, device: str, placement: Placement | None = None
) -> nn.Module:
    """Load the module of a Hugging Face directory, in evaluation mode and with frozen weights.

    Args:
        directory: the model directory.
        dtype: the dtype of the weights in memory.
        device: the device that gets all weights, if there is no placement.
        placement: how to spread the weights over devices, or None for one device.

    Raises:
        ModelError: if transformers lacks the architecture, or if the weights do not fit it.
    """
    require_supported_config(directory)
    if placement is None:
        return _load_pretrained(directory, dtype, {}).to(device)
    folder = tempfile.TemporaryDirectory(prefix="circuit-scout-offload-")
    try:
        module = _load_pretrained(
            directory, dtype, placement.from_pretrained_arguments(folder.name)
        )
    except BaseException:  # an interrupt too must not leave the folder behind
        folder.cleanup()
        raise
    remove_folder_with(module, folder)
    return module


def _load_pretrained(
    directory: Path, dtype: torch.dtype, placement_arguments: Mapping[str, Any]
) -> nn.Module:
    """Load the module as `build_module` does; the last argument holds arguments of transformers."""
    from transformers import AutoModelForCausalLM

    with _as_model_error(directory, is_spread=bool(placement_arguments)), quiet_progress_bars():
        module, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _require_matching_weights names them, with shapes
            **placement_arguments,
        )
    _require_matching_weights(directory.name, module, report)
    _fuse_activations(module)
    return module.eval().requires_grad_(False)  # type: ignore[no-any-return]


@contextmanager
def _as_model_error(directory: Path, *, is_spread: bool) -> Iterator[None]:
    """Turn what transformers raises on a model that it cannot load into a ModelError.

    Raises:
        ModelError: in place of the library's exception, whose first line is the detail.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as fault:
        raise damaged_weights_error(directory.name, fault) from None
    except torch.OutOfMemoryError:
        raise
    except ImportError as fault:
        raise ModelError(
            f"{directory.name} cannot be loaded: its weights or its architecture need a package "
            "that is not installed.",
            "Use a model that does not need it, for example one that is not quantised.",
            detail=first_line(fault),
        ) from fault
    except OSError as fault:
        raise ModelError(
            f"{directory.name} cannot be loaded: a file is missing or cannot be read "
            f"({type(fault).__name__}).",
            "Download what is missing; the weights are model.safetensors, or the files that "
            "model.safetensors.index.json names.",
            detail=first_line(fault),
        ) from fault
    except (*CONFIG_ERRORS, StrictDataclassError) as fault:
        rejected = "its config.json, or not this device_map" if is_spread else "its config.json"
        alternative = ", or give device_map 'auto'" if is_spread else ""
        raise ModelError(
            f"{directory.name} cannot be loaded: transformers does not take {rejected} "
            f"({type(fault).__name__}).",
            f"Check that it is a whole causal language model{alternative}.",
            detail=first_line(fault),
        ) from fault


def _fuse_activations(module: nn.Module) -> None:
    """Compute the tanh form of GELU in one kernel.

    transformers writes that of GPT-2 as eight elementwise steps, which take a tenth of a sweep's
    time on a CPU.
    """
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(parent, name, nn.GELU(approximate="tanh"))


def _require_matching_weights(name: str, module: nn.Module, report: Any) -> None:
    """Check that the files hold the weights that config.json describes.

    Weights that the architecture does not use (a vision tower, another head) may be there: the
    model is complete without them. Weights of further layers may not, since the model would run
    as a smaller one.

    Raises:
        ModelError: if a weight is missing or has another shape, or if config.json leaves out a
            layer.
    """
    cure = "Restore the config.json that was saved with the weights."
    if mismatched := sorted(map(str, report["mismatched_keys"])):
        raise ModelError(
            f"{name}: {len(mismatched)} weights have other shapes than config.json says, "
            f"first {mismatched[0]}.",
            cure,
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{name} lacks {len(missing)} weights, first {missing[0]}.",
            "Save the whole model again.",
        )
    used = {_LAYER_NUMBER.sub(".#.", key) for key in module.state_dict()}
    omitted = sorted(
        key
        for key in report["unexpected_keys"]
        if _LAYER_NUMBER.search(key) and _LAYER_NUMBER.sub(".#.", key) in used
    )
    if omitted:
        raise ModelError(
            f"{name} holds {len(omitted)} weights of layers that config.json leaves out, "
            f"first {omitted[0]}: a smaller model would run.",
            cure,
        )


@contextmanager
def quiet_progress_bars() -> Iterator[None]:
    """Keep the progress bars of transformers out of logs: they are drawn on terminals only."""
    from transformers.utils import logging

    were_enabled = logging.is_progress_bar_enabled()
    if were_enabled and not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            logging.enable_progress_bar()


class TextTokenizer:
    """A Hugging Face tokenizer with the methods that tasks need.

    Prompts get the tokenizer's own default special tokens, and no others.

    Attributes:
        wrapped: the tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.wrapped = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.wrapped(text)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return str(self.wrapped.decode(ids))

    def has_unknown(self, text: str) -> bool:
        """Return whether the tokenizer replaces a part of the text by its unknown token."""
        token_id = self.wrapped.unk_token_id
        is_written = self.wrapped.unk_token is not None and self.wrapped.unk_token in text
        return token_id is not None and not is_written and token_id in self.encode(text)


def has_tokenizer(directory: Path) -> bool:
    """Return whether a model directory has tokenizer files."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def build_tokenizer(directory: Path) -> TextTokenizer | None:
    """Load a directory's tokenizer, or return None if it has none.

    Without a tokenizer, prompts must be token ids.

    Raises:
        ModelError: if there are tokenizer files that cannot be read.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(directory):
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
