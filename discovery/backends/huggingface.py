"""A Hugging Face directory or hub name becomes a torch module, a tokenizer and a fingerprint.

A hub name is first brought into the local cache, so that both are checked by the same rules: weights as safetensors only,
no code from the directory is ever run, and every weight the architecture needs is there.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from discovery.backends.spread import Spread, keep
from discovery.errors import ModelError

WEIGHTS = "*.safetensors"
PATTERNS = ["*.json", WEIGHTS, "*.model", "*.txt", "*.jinja"]
_LAYER = re.compile(r"\.\d+\.")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a directory, and for a hub name its revision."""

    name: str
    directory: Path
    revision: str | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights' file; of several files, of their digests in the order of their names."""
        digests = [_sha256(path) for path in sorted(self.directory.glob("*.safetensors"))]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


class TextTokenizer:
    """A Hugging Face tokenizer behind the protocol that tasks need: its own default special tokens, nothing added."""

    def __init__(self, tokenizer: Any) -> None:
        self.wrapped = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.wrapped(text)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return str(self.wrapped.decode(ids))

    def holds_unknown(self, text: str) -> bool:
        unknown, written = self.wrapped.unk_token_id, self.wrapped.unk_token
        return unknown is not None and written not in text and unknown in self.encode(text)


def fetch(name: str, *, weights: bool = True) -> Source:
    """Bring a hub model into the local cache, or all but its weights.

    Raises:
        ModelError: where the name does not exist or the hub cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        wanted = [pattern for pattern in PATTERNS if weights or pattern != WEIGHTS]
        directory = Path(snapshot_download(name, allow_patterns=wanted))
    except HFValidationError:
        raise ModelError(f"{name!r} is neither a directory nor a hub name.", "Give 'bundled', a model directory, or owner/name.") from None
    except GatedRepoError:
        raise ModelError(f"The hub model {name!r} is gated.", "Accept its licence on the hub and log in with `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise ModelError(f"The hub has no model {name!r}.", "Check the name, or give a model directory.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as fault:
        if constants.is_offline_mode():
            cause = f"{name!r} is not a directory here, nor a hub model in the cache, and downloads are switched off."
            raise ModelError(cause, "Give a directory, or unset HF_HUB_OFFLINE (a server that is --read-only sets it).") from None
        raise ModelError(
            f"{name!r} is not a directory here, and the hub could not be reached ({type(fault).__name__}).",
            "Check the connection and HF_HUB_OFFLINE, or give the path of a downloaded model.",
        ) from None
    if weights and not any(directory.glob(WEIGHTS)):
        if constants.is_offline_mode():
            cause = f"The cache has no *.safetensors file of the hub model {name!r}, and downloads are switched off."
            raise ModelError(cause, "Unset HF_HUB_OFFLINE (a server that is --read-only sets it), or give a directory.")
        raise ModelError(
            f"The hub model {name!r} has no *.safetensors file; pickled weights can run code when opened, and are not fetched.",
            f'If you trust it, convert it and load the folder: python -c "from transformers import AutoModelForCausalLM as M, '
            f"AutoTokenizer as T; [c.from_pretrained('{name}').save_pretrained('folder') for c in (M, T)]\"",
        )
    return Source(name, directory, revision=directory.name)


def read_config(directory: Path, *, weights: bool = True) -> dict[str, Any]:
    """The directory's config.json, refused where it cannot be a causal language model we load; its weights may be left for later.

    Raises:
        ModelError: damaged JSON, custom code, an encoder-decoder, or pickled weights.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        cause = f"{directory.name}/config.json is not JSON ({type(fault).__name__})."
        raise ModelError(cause, "Download or save the model again.") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{directory.name}/config.json names no model_type.", "Save the model with save_pretrained.")
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        if path.is_file() and '"auto_map"' in path.read_text(encoding="utf-8", errors="replace"):
            raise ModelError(
                f"{directory.name}/{name} asks to run code from the model directory (auto_map).",
                "Code from a model is never run here: use an architecture that transformers itself has.",
            )
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{directory.name} is an encoder-decoder ({config['model_type']}).", "Use a decoder-only (causal) language model.")
    _require_known(directory.name, str(config["model_type"]))
    if weights:
        require_safetensors(directory)
    return config


def _require_known(name: str, kind: str) -> None:
    """transformers has a causal language model of this kind."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if kind in KNOWN:
        return
    near = get_close_matches(kind, KNOWN, n=3)
    cause = f"{name}/config.json: transformers has no causal language model of type {kind!r}"
    raise ModelError(f"{cause}{'; near it: ' + ', '.join(near) if near else ''}.", "Correct model_type, or use a newer transformers.")


def require_safetensors(directory: Path) -> None:
    """Check that the weights are safetensors.

    Raises:
        ModelError: gives the command that converts a pickle.
    """
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in directory.glob(pattern))
    if pickles:
        raise ModelError(
            f"{directory.name} holds its weights as a pickle ({pickles[0]}), which can run code when opened.",
            f'If you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{directory}', use_safetensors=False).save_pretrained('{directory}')\"",
        )
    raise ModelError(f"{directory.name} has no *.safetensors file.", "Download or save the model's weights there.")


def build_module(directory: Path, dtype: torch.dtype, device: str, spread: Spread | None = None) -> nn.Module:
    """The Hugging Face module in evaluation mode, weights frozen; on the device, or spread over several places.

    Raises:
        ModelError: an architecture transformers lacks, or weights that do not fit it.
    """
    read_config(directory)
    if spread is None:
        return _read(directory, dtype, {}).to(device)
    folder = tempfile.TemporaryDirectory(prefix="circuit-scout-offload-")
    try:
        module = _read(directory, dtype, spread.arguments(folder.name))
    except BaseException:  # Ctrl-C too
        folder.cleanup()
        raise
    keep(module, folder)
    return module


def _read(directory: Path, dtype: torch.dtype, places: Mapping[str, Any]) -> nn.Module:
    """As `build_module`; `places` are arguments of transformers."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with bars_for_people():
            module, report = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told by us, with name and shapes
                **places,
            )
    except SafetensorError as fault:
        raise ModelError(f"{directory.name}: its weights are damaged.", "Save or download them again.", detail=str(fault)) from None
    except torch.OutOfMemoryError:
        raise
    except ImportError as fault:
        cause = f"{directory.name} cannot be loaded: its weights or its architecture need a package that is not here."
        raise ModelError(cause, "Use a model without it, as one that is not quantised.", detail=first_line(fault)) from fault
    except OSError as fault:
        cause = f"{directory.name} cannot be loaded: a file is missing or cannot be read ({type(fault).__name__})."
        cure = "Download what is missing; the weights are model.safetensors, or what model.safetensors.index.json names."
        raise ModelError(cause, cure, detail=first_line(fault)) from fault
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, StrictDataclassError) as fault:
        what = "its config.json, or not this device_map" if places else "its config.json"
        cause = f"{directory.name} cannot be loaded: transformers does not take {what} ({type(fault).__name__})."
        cure = "Check that it is a whole causal language model" + (", or give device_map 'auto'." if places else ".")
        raise ModelError(cause, cure, detail=first_line(fault)) from fault
    _require_the_same_weights(directory.name, module, report)
    _fuse_activations(module)
    return module.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _fuse_activations(module: nn.Module) -> None:
    """The tanh form of GELU as one kernel: transformers writes GPT-2's as eight elementwise steps, a tenth of a sweep's time on a CPU."""
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(parent, name, nn.GELU(approximate="tanh"))


def _require_the_same_weights(name: str, module: nn.Module, report: Any) -> None:
    """The files hold the architecture's weights: none missing, none of another shape, and no layer that the configuration leaves out.

    Other weights that are not used (a vision tower, another head) are let pass: the model is whole without them.
    """
    if mismatched := sorted(map(str, report["mismatched_keys"])):
        cause = f"{name}: {len(mismatched)} weights have other shapes than config.json says, first {mismatched[0]}."
        raise ModelError(cause, "Restore the config.json that was saved with the weights.")
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name} lacks {len(missing)} weights, first {missing[0]}.", "Save the whole model again.")
    used = {_LAYER.sub(".#.", key) for key in module.state_dict()}
    if left := sorted(key for key in report["unexpected_keys"] if _LAYER.search(key) and _LAYER.sub(".#.", key) in used):
        cause = f"{name} holds {len(left)} weights of layers that config.json leaves out, first {left[0]}: a smaller model would run."
        raise ModelError(cause, "Restore the config.json that was saved with the weights.")


@contextmanager
def bars_for_people() -> Iterator[None]:
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


def first_line(fault: Exception) -> str:
    """What an exception of another library says first, or its name."""
    lines = [line.strip() for line in str(fault).strip().splitlines()] or [type(fault).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
