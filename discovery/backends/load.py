"""`load_model`: a name or a directory becomes a backend that has proved itself.

from discovery import load_model
model = load_model("bundled")              # or a directory, or a hub name
model.info.n_layers, model.info.fingerprint
"""

from __future__ import annotations

import contextlib
import importlib.resources
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from discovery.backends.base import Backend, Width
from discovery.backends.check import Reference, compare, find_abilities, reference, require_causal
from discovery.backends.describe import block_returns, context, describe_bridge, describe_module, vocabulary
from discovery.backends.huggingface import Source, build_module, build_tokenizer, fetch, first_line, read_config
from discovery.backends.layout import NATIVE, layout_of
from discovery.backends.native import build_native, read_native_config, strange_fields
from discovery.backends.nnsight import NnsightBackend
from discovery.backends.transformerlens import TransformerLensBackend
from discovery.errors import ModelError
from discovery.sites import BackendName
from discovery.tasks.pairs import Tokenizer

Engine = Literal["transformerlens", "nnsight"]
DEVICES = ("auto", "cpu", "cuda", "mps")
ENGINES: dict[Engine, str] = {"transformerlens": "TransformerLens", "nnsight": "nnsight"}


def load_model(name: str | Path = "bundled", *, backend: BackendName = "auto", device: str = "auto", dtype: str = "float32") -> Backend:
    """Open a model.

    Args:
        name: "bundled", a Hugging Face or TransformerLens-native directory, or a hub name.
        backend: which engine runs it; "auto" is TransformerLens.
        device: auto, cpu, cuda (or cuda:1 …), or mps (accepted, recorded, untested).
        dtype: float32, float64, bfloat16 or float16.

    Returns:
        A backend whose logits were held against the unwrapped module's.

    Raises:
        ModelError: the name is no model, or not one that can be run; says why and what to do.
    """
    if dtype not in get_args(Width):
        raise ModelError(f"dtype {dtype!r} is not known.", f"Allowed: {', '.join(get_args(Width))}.")
    if backend not in get_args(BackendName):
        raise ModelError(f"backend {backend!r} is not known.", f"Allowed: {', '.join(get_args(BackendName))}.")
    engine: Engine = "nnsight" if backend == "nnsight" else "transformerlens"
    place = choose_device(device)
    source = find_source(str(name))
    width: torch.dtype = getattr(torch, dtype)
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens and its friends print
        if (source.directory / "tl_config.json").is_file():
            return _load_native(source, width, place, engine)
        return _load_huggingface(source, width, place, engine)


def find_source(name: str, *, weights: bool = True) -> Source:
    """Where a model is; of a hub name its files are fetched, without the weights where they are not wanted.

    Raises:
        ModelError: where the name is no model directory, and not on the hub either.
    """
    if name == "bundled":
        bundled = Path(str(importlib.resources.files("discovery.backends") / "bundled"))
        if not (bundled / "config.json").is_file():
            raise ModelError("This installation lacks the bundled model.", "Install the package again, or give a model directory.")
        return Source(name, bundled)
    try:
        directory = Path(name).expanduser()
    except RuntimeError:
        raise ModelError(f"{name!r} names a user that does not exist.", "Write the path out.") from None
    if directory.is_dir():
        if not any((directory / file).is_file() for file in ("config.json", "tl_config.json")):
            raise ModelError(
                f"{name!r} is a directory without config.json or tl_config.json.",
                "Give the directory that save_pretrained wrote, or one in TransformerLens's native format.",
            )
        return Source(name, directory)
    if directory.is_file():
        raise ModelError(f"{name!r} is a file.", "Give the directory that holds config.json and the weights.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"The directory {name!r} does not exist.", "Check the path.")
    return fetch(name, weights=weights)


def choose_device(device: str) -> str:
    """The device that a name stands for.

    Raises:
        ModelError: where this machine has none of that kind.
    """
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (":" in device and not (kind == "cuda" and number.isdecimal())):
        raise ModelError(f"device {device!r} is not known.", f"Allowed: {', '.join(DEVICES)} (or cuda:1 …).")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ModelError(f"This machine has no device {device!r} that torch can use.", "Use device cpu, or a torch build with CUDA.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ModelError("This machine has no mps device.", "Use device cpu.")
    return device


def _load_huggingface(source: Source, dtype: torch.dtype, device: str, engine: Engine) -> Backend:
    config = read_config(source.directory)
    module: Any = build_module(source.directory, dtype, device)
    tokenizer = build_tokenizer(source.directory)
    n_ctx, kind = context(config), type(module).__name__
    with _refused(f"{source.directory.name} does not run"):
        expected = reference(module, vocabulary(module), n_ctx, device)
        returns = block_returns(module, expected.tokens)
    with _refused(f"{ENGINES[engine]} cannot wrap {kind}"):
        made = (_traced if engine == "nnsight" else _bridged)(source, module, tokenizer, expected, n_ctx, returns)
    with _refused(f"{ENGINES[engine]} cannot run {kind}"):
        compare(made, expected)
        require_causal(made, expected)
    made.abilities = find_abilities(made, expected)
    return made


def _bridged(source: Source, module: Any, tokenizer: Tokenizer | None, expected: Reference, n_ctx: int, returns: int | None) -> Backend:
    """A Hugging Face module in TransformerLens."""
    import copy

    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config

    n_params, weights = sum(p.numel() for p in module.parameters()), next(module.parameters())
    place = {"dtype": weights.dtype, "device": str(expected.tokens.device)}
    architecture = determine_architecture_from_hf_config(module.config)
    bridge = build_bridge_from_module(module, architecture, hf_config=copy.deepcopy(module.config), **place)
    bridge.requires_grad_(False)  # wrapping makes new parameters
    info = describe_bridge(source, bridge, module, expected, n_ctx, n_params)
    return TransformerLensBackend(bridge, info, tokenizer, block_returns=returns, cached=True)


def _traced(source: Source, module: Any, tokenizer: Tokenizer | None, expected: Reference, n_ctx: int, returns: int | None) -> Backend:
    """A Hugging Face module in nnsight."""
    layout = layout_of(module.config)
    info = describe_module(source, module, layout, expected, n_ctx)
    return NnsightBackend(module, module.get_output_embeddings(), layout, info, tokenizer, block_returns=returns)


def _load_native(source: Source, dtype: torch.dtype, device: str, engine: Engine) -> Backend:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = read_native_config(source.directory)
    module: Any
    module, cfg = build_native(source.directory, dtype, device)
    expected = reference(module, config["d_vocab"], config["n_ctx"], device)
    made: Backend
    if engine == "nnsight":
        info = describe_module(source, module, NATIVE, expected, config["n_ctx"])
        made = NnsightBackend(module, module.head, NATIVE, info, None, block_returns=block_returns(module, expected.tokens))
    else:
        n_params = sum(p.numel() for p in module.parameters())
        bridge = build_bridge_from_module(module, "TransformerLensNative", tl_config=cfg, dtype=dtype, device=device)
        bridge.requires_grad_(False)
        info = describe_bridge(source, bridge, module, expected, config["n_ctx"], n_params)
        made = TransformerLensBackend(bridge, info, None, block_returns=1, cached=False)
    made.info = replace(info, warnings=(*info.warnings, *strange_fields(config)))
    compare(made, expected)
    made.abilities = find_abilities(made, expected)
    return made


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Other libraries say in many ways that they cannot take a model."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as fault:
        cure = "Check its config.json, or use another dtype or another model."
        raise ModelError(f"{what} ({type(fault).__name__}).", cure, detail=first_line(fault)) from fault
