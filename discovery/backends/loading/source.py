"""Where a model comes from: a directory, or a hub name that is first brought into the local cache, so that both are checked alike.

Weights as safetensors only, and no code from the directory is ever run.

Where a model is: the bundled one, a directory, or a hub name whose files are fetched.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from discovery.backends.loading.native import NATIVE_CONFIG
from discovery.errors import ModelError

WEIGHT_FILES = "*.safetensors"
DOWNLOAD_PATTERNS = ["*.json", WEIGHT_FILES, "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class ModelLocation:
    """Where a model comes from: a directory, and for a hub name its revision."""

    name: str
    directory: Path
    revision: str | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights' file; of several files, of their digests in the order of their names."""
        digests = [_sha256(path) for path in sorted(self.directory.glob(WEIGHT_FILES))]
        return (
            digests[0]
            if len(digests) == 1
            else hashlib.sha256("".join(digests).encode()).hexdigest()
        )


def fetch_hub_model(name: str, *, weights: bool = True) -> ModelLocation:
    """Bring a hub model into the local cache, or all but its weights.

    Raises:
        ModelError: where the name does not exist or the hub cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        wanted = [pattern for pattern in DOWNLOAD_PATTERNS if weights or pattern != WEIGHT_FILES]
        directory = Path(snapshot_download(name, allow_patterns=wanted))
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
            cause = f"{name!r} is not a directory here, nor a hub model in the cache, and downloads are switched off."
            raise ModelError(
                cause,
                "Give a directory, or unset HF_HUB_OFFLINE (a server that is --read-only sets it).",
            ) from None
        raise ModelError(
            f"{name!r} is not a directory here, and the hub could not be reached ({type(fault).__name__}).",
            "Check the connection and HF_HUB_OFFLINE, or give the path of a downloaded model.",
        ) from None
    if weights and not any(directory.glob(WEIGHT_FILES)):
        if constants.is_offline_mode():
            cause = f"The cache has no *.safetensors file of the hub model {name!r}, and downloads are switched off."
            raise ModelError(
                cause,
                "Unset HF_HUB_OFFLINE (a server that is --read-only sets it), or give a directory.",
            )
        raise ModelError(
            f"The hub model {name!r} has no *.safetensors file; pickled weights can run code when opened, and are not fetched.",
            f'If you trust it, convert it and load the folder: python -c "from transformers import AutoModelForCausalLM as M, '
            f"AutoTokenizer as T; [c.from_pretrained('{name}').save_pretrained('folder') for c in (M, T)]\"",
        )
    return ModelLocation(name, directory, revision=directory.name)


def require_supported_config(directory: Path, *, weights: bool = True) -> dict[str, Any]:
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
        raise ModelError(
            f"{directory.name}/config.json names no model_type.",
            "Save the model with save_pretrained.",
        )
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        if path.is_file() and '"auto_map"' in path.read_text(encoding="utf-8", errors="replace"):
            raise ModelError(
                f"{directory.name}/{name} asks to run code from the model directory (auto_map).",
                "Code from a model is never run here: use an architecture that transformers itself has.",
            )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{directory.name} is an encoder-decoder ({config['model_type']}).",
            "Use a decoder-only (causal) language model.",
        )
    _require_causal_architecture(directory.name, str(config["model_type"]))
    if weights:
        _require_safetensors(directory)
    return config


def _require_causal_architecture(name: str, kind: str) -> None:
    """transformers has a causal language model of this kind."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if kind in KNOWN:
        return
    near = get_close_matches(kind, KNOWN, n=3)
    cause = f"{name}/config.json: transformers has no causal language model of type {kind!r}"
    raise ModelError(
        f"{cause}{'; near it: ' + ', '.join(near) if near else ''}.",
        "Correct model_type, or use a newer transformers.",
    )


def _require_safetensors(directory: Path) -> None:
    """Check that the weights are safetensors.

    Raises:
        ModelError: gives the command that converts a pickle.
    """
    if any(directory.glob(WEIGHT_FILES)):
        return
    pickles = sorted(
        path.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
        for path in directory.glob(pattern)
    )
    if pickles:
        raise ModelError(
            f"{directory.name} holds its weights as a pickle ({pickles[0]}), which can run code when opened.",
            f'If you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{directory}', use_safetensors=False).save_pretrained('{directory}')\"",
        )
    raise ModelError(
        f"{directory.name} has no *.safetensors file.",
        "Download or save the model's weights there.",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate_model(name: str, *, weights: bool = True) -> ModelLocation:
    """Where a model is; of a hub name its files are fetched, without the weights where they are not wanted.

    Raises:
        ModelError: where the name is no model directory, and not on the hub either.
    """
    if name == "bundled":
        bundled = Path(str(importlib.resources.files("discovery.backends") / "bundled"))
        if not (bundled / "config.json").is_file():
            raise ModelError(
                "This installation lacks the bundled model.",
                "Install the package again, or give a model directory.",
            )
        return ModelLocation(name, bundled)
    try:
        directory = Path(name).expanduser()
    except RuntimeError:
        raise ModelError(
            f"{name!r} names a user that does not exist.", "Write the path out."
        ) from None
    if directory.is_dir():
        if not any((directory / file).is_file() for file in ("config.json", NATIVE_CONFIG)):
            raise ModelError(
                f"{name!r} is a directory without config.json or tl_config.json.",
                "Give the directory that save_pretrained wrote, or one in TransformerLens's native format.",
            )
        return ModelLocation(name, directory)
    if directory.is_file():
        raise ModelError(
            f"{name!r} is a file.", "Give the directory that holds config.json and the weights."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"The directory {name!r} does not exist.", "Check the path.")
    return fetch_hub_model(name, weights=weights)
