"""Where a model comes from: the bundled one, a directory, a GGUF file, or a name on the hub.

The files of a hub model are first downloaded into the local cache, so that directories and hub
models are checked alike. Weights are read as safetensors or GGUF only, and code from a model
directory is never run. This module needs no torch.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from discovery.backends.loading.gguf.files import (
    find_gguf_parts,
    is_gguf_name,
    list_gguf_models,
)
from discovery.errors import ModelError

BUNDLED = "bundled"  # the name of the model, and of the SAE, that the package brings along
HUGGING_FACE_CONFIG = "config.json"
NATIVE_CONFIG = "tl_config.json"
MODEL_FORMATS: Mapping[str, str] = {HUGGING_FACE_CONFIG: "huggingface", NATIVE_CONFIG: "native"}
WEIGHT_FILES = "*.safetensors"
PICKLE_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DOWNLOAD_PATTERNS = ("*.json", WEIGHT_FILES, "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class ModelLocation:
    """The files that hold a model.

    Attributes:
        name: the name that the user gave.
        directory: where the files are. Of a GGUF model that was converted, it is the directory of
            the dequantised copy.
        revision: the commit, if the model comes from the hub.
        gguf: the GGUF files of the model, in order, if it has this format.
    """

    name: str
    directory: Path
    revision: str | None = None
    gguf: tuple[Path, ...] = ()

    @property
    def source(self) -> str:
        """Where the model comes from, as a record names it: a name if others have it too."""
        if self.name == BUNDLED or self.revision:
            return self.name
        return str(self.gguf[0] if self.gguf else self.directory)

    @property
    def is_native(self) -> bool:
        """Whether the directory is in TransformerLens's native format."""
        return not self.gguf and (self.directory / NATIVE_CONFIG).is_file()

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the weight file: the one that the user gave, not one made from it.

        With several files it is the sha256 of their joined digests, in the order of their names.
        """
        files = self.gguf or sorted(self.directory.glob(WEIGHT_FILES))
        digests = [_sha256(path) for path in files]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def locate_model(name: str, *, weights: bool = True) -> ModelLocation:
    """Return where a model is, and download its files if the name is one of the hub.

    Args:
        name: "bundled", the path of a directory or GGUF file, or a hub name.
        weights: whether to download the weights too.

    Raises:
        ModelError: if the name is neither a model directory nor a model of the hub.
    """
    if name == BUNDLED:
        return _locate_bundled()
    try:
        directory = Path(name).expanduser()
    except RuntimeError:
        raise ModelError(
            f"{name!r} names a user that does not exist.", "Write the path out."
        ) from None
    if directory.is_dir():
        return _locate_in_directory(name, directory)
    if directory.is_file():
        return _locate_file(name, directory)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"The directory {name!r} does not exist.", "Check the path.")
    return fetch_hub_model(name, weights=weights)


def _locate_in_directory(name: str, directory: Path) -> ModelLocation:
    """Return the model that a directory holds.

    Raises:
        ModelError: if the directory holds no model, or several GGUF models.
    """
    if any((directory / file).is_file() for file in MODEL_FORMATS):
        return ModelLocation(name, directory)
    models = list_gguf_models(directory)
    if len(models) == 1:
        return ModelLocation(name, directory, gguf=find_gguf_parts(models[0]))
    if models:
        raise ModelError(
            f"{name!r} is a directory with {len(models)} GGUF models: "
            f"{', '.join(path.name for path in models)}.",
            "Give the path of one of these files.",
        )
    raise ModelError(
        f"{name!r} is a directory without {', '.join(MODEL_FORMATS)} or a .gguf file.",
        "Give the directory that save_pretrained wrote, one in TransformerLens's native format, "
        "or a GGUF file.",
    )


def _locate_file(name: str, path: Path) -> ModelLocation:
    """Return the model that a GGUF file holds.

    Raises:
        ModelError: if the file is not named as GGUF, or is one of several and others are missing.
    """
    if is_gguf_name(path):
        return ModelLocation(name, path.parent, gguf=find_gguf_parts(path))
    is_pickle = any(path.match(pattern) for pattern in PICKLE_FILES)
    warning = ", and may be a pickle, which can run code when it is opened" if is_pickle else ""
    raise ModelError(
        f"{name!r} is a file that is not GGUF{warning}.",
        "Give a .gguf file, or the directory that holds config.json and safetensors weights.",
    )


def bundled_directory() -> Path:
    """Return the directory of the bundled model, whether it is installed or not."""
    return Path(str(importlib.resources.files("discovery.backends") / BUNDLED))


def _locate_bundled() -> ModelLocation:
    directory = bundled_directory()
    if not (directory / HUGGING_FACE_CONFIG).is_file():
        raise ModelError(
            "This installation lacks the bundled model.",
            "Install the package again, or give a model directory.",
        )
    return ModelLocation(BUNDLED, directory)


def fetch_hub_model(name: str, *, weights: bool = True) -> ModelLocation:
    """Download a hub model into the local cache, unless it is there already.

    Args:
        name: the hub name.
        weights: whether to download the weights too.

    Raises:
        ModelError: if the hub has no such model, has no safetensors of it, or cannot be reached.
    """
    directory = _download(name, weights=weights)
    if weights and not any(directory.glob(WEIGHT_FILES)):
        raise _no_safetensors_error(name)
    return ModelLocation(name, directory, revision=directory.name)


def _download(name: str, *, weights: bool) -> Path:
    """Download the files of a hub model and return their directory, which is named by the commit.

    Raises:
        ModelError: if the name is invalid or unknown, or if the hub cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = [pattern for pattern in DOWNLOAD_PATTERNS if weights or pattern != WEIGHT_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError:
        raise ModelError(
            f"{name!r} is neither a directory nor a hub name.",
            "Give 'bundled', a model directory, or owner/name.",
        ) from None
    except GatedRepoError:
        raise ModelError(
            f"The hub model {name!r} is gated.",
            "Accept its licence on the hub and log in with `hf auth login`.",
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The hub has no model {name!r}.", "Check the name, or give a model directory."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as fault:
        if constants.is_offline_mode():
            raise ModelError(
                f"{name!r} is not a directory here, nor a hub model in the cache, "
                "and downloads are switched off.",
                "Give a directory, or unset HF_HUB_OFFLINE (a server that is --read-only sets it).",
            ) from None
        raise ModelError(
            f"{name!r} is not a directory here, and the hub could not be reached "
            f"({type(fault).__name__}).",
            "Check the connection and HF_HUB_OFFLINE, or give the path of a downloaded model.",
        ) from None


def _no_safetensors_error(name: str) -> ModelError:
    """Build the error for a hub model of which the cache holds no safetensors."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return ModelError(
            f"The cache has no *.safetensors file of the hub model {name!r}, "
            "and downloads are switched off.",
            "Unset HF_HUB_OFFLINE (a server that is --read-only sets it), or give a directory.",
        )
    return ModelError(
        f"The hub model {name!r} has no *.safetensors file. Pickled weights can run code when "
        "they are opened, so they are not downloaded.",
        "If you trust the model, convert it and load the folder: "
        'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"[c.from_pretrained('{name}').save_pretrained('folder') for c in (M, T)]\"",
    )


def require_supported_config(directory: Path, *, weights: bool = True) -> None:
    """Check that a directory's config.json describes a causal language model that can be loaded.

    Args:
        directory: the model directory.
        weights: whether to check also that the weights are safetensors.

    Raises:
        ModelError: if the JSON is damaged, if the model is not a causal language model that
            transformers has, if it asks to run code of its own, or if its weights are pickles.
    """
    config = _read_config(directory)
    for name in (HUGGING_FACE_CONFIG, "tokenizer_config.json"):
        path = directory / name
        if path.is_file() and '"auto_map"' in path.read_text(encoding="utf-8", errors="replace"):
            raise ModelError(
                f"{directory.name}/{name} asks to run code from the model directory (auto_map).",
                "Code from a model is never run here: use an architecture that transformers "
                "itself has.",
            )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{directory.name} is an encoder-decoder ({config['model_type']}).",
            "Use a decoder-only (causal) language model.",
        )
    _require_causal_architecture(directory.name, str(config["model_type"]))
    if weights:
        _require_safetensors(directory)


def _read_config(directory: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        ModelError: if it is not a JSON object, or if it names no model_type.
    """
    try:
        config = json.loads((directory / HUGGING_FACE_CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise ModelError(
            f"{directory.name}/config.json is not JSON ({type(fault).__name__}).",
            "Download or save the model again.",
        ) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(
            f"{directory.name}/config.json names no model_type.",
            "Save the model with save_pretrained.",
        )
    return config


def _require_causal_architecture(name: str, model_type: str) -> None:
    """Check that transformers has a causal language model of this type.

    Raises:
        ModelError: if it has none; the message gives similar types.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    similar = get_close_matches(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=3)
    hint = f"; similar types: {', '.join(similar)}" if similar else ""
    raise ModelError(
        f"{name}/config.json: transformers has no causal language model of type "
        f"{model_type!r}{hint}.",
        "Correct model_type, or use a newer transformers.",
    )


def _require_safetensors(directory: Path) -> None:
    """Check that the weights are safetensors.

    Raises:
        ModelError: if they are not; for a pickle, the message gives the command that converts it.
    """
    if any(directory.glob(WEIGHT_FILES)):
        return
    pickles = sorted(path.name for pattern in PICKLE_FILES for path in directory.glob(pattern))
    if pickles:
        raise ModelError(
            f"{directory.name} holds its weights as a pickle ({pickles[0]}), "
            "which can run code when it is opened.",
            "If you trust the model, convert it: "
            'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{directory}', use_safetensors=False)"
            f".save_pretrained('{directory}')\"",
        )
    models = list_gguf_models(directory)
    raise ModelError(
        f"{directory.name} has no *.safetensors file.",
        f"Give the path of the GGUF file: {models[0]}."
        if models
        else "Download or save the model's weights there.",
    )


def damaged_weights_error(label: str, fault: Exception) -> ModelError:
    """Build the error for a weight file that safetensors cannot read; `label` names the file."""
    return ModelError(
        f"The weights of {label} are damaged.", "Save or download them again.", detail=str(fault)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
