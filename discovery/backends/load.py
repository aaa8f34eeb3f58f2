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
from discovery.backends.check import compare, find_abilities, require_causal
from discovery.backends.describe import Plain, context, describe_bridge, describe_module, vocabulary
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


def load_model(
    name: str | Path = "bundled",
    *,
    backend: BackendName = "auto",
    device: str = "auto",
    dtype: str = "float32",
    remote: bool | Literal["local"] = False,
) -> Backend:
    """Open a model.

    Args:
        name: "bundled", a Hugging Face or TransformerLens-native directory, or a hub name.
        backend: which engine runs it; "auto" is TransformerLens.
        device: auto, cpu, cuda (or cuda:1 …), or mps (accepted, recorded, untested).
        dtype: float32, float64, bfloat16 or float16.
        remote: run it on NDIF (True; see `backends.remote`), or "local" on nnsight's simulation of it. Nothing is sent anywhere otherwise.

    Returns:
        A backend whose logits were held against the unwrapped module's.

    Raises:
        ModelError: the name is no model, or not one that can be run; says why and what to do.
    """
    if dtype not in get_args(Width):
        raise ModelError(f"dtype {dtype!r} is not known.", f"Allowed: {', '.join(get_args(Width))}.")
    if backend not in get_args(BackendName):
        raise ModelError(f"backend {backend!r} is not known.", f"Allowed: {', '.join(get_args(BackendName))}.")
    if remote:
        from discovery.backends.remote import load_remote

        return load_remote(str(name), remote, backend=backend, device=device, dtype=dtype)
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


def engines_of(config: Any) -> tuple[Engine, ...]:
    """Which engines know a Hugging Face configuration; whether they reproduce the model is found out at load."""
    try:
        layout_of(config)
    except ModelError:
        return ("transformerlens",)
    return ("transformerlens", "nnsight")


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
    kind = type(module).__name__
    with _refused(f"{source.directory.name} does not run"):
        plain = Plain.of(source, module, vocabulary(module), context(config), dtype, device)
    with _refused(f"{ENGINES[engine]} cannot wrap {kind}"):
        made = _traced(plain, tokenizer) if engine == "nnsight" else _bridged(plain, tokenizer)
    with _refused(f"{ENGINES[engine]} cannot run {kind}"):
        compare(made, plain.expected)
        require_causal(made, plain.expected)
    made.abilities = find_abilities(made, plain.expected)
    return made


def _bridged(plain: Plain, tokenizer: Tokenizer | None) -> Backend:
    """A Hugging Face module in TransformerLens."""
    import copy

    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config

    module, place = plain.module, {"dtype": plain.dtype, "device": plain.device}
    architecture = determine_architecture_from_hf_config(module.config)
    bridge = build_bridge_from_module(module, architecture, hf_config=copy.deepcopy(module.config), **place)
    bridge.requires_grad_(False)  # wrapping makes new parameters
    return TransformerLensBackend(bridge, describe_bridge(plain, bridge), tokenizer, block_returns=plain.returns, cached=True)


def _traced(plain: Plain, tokenizer: Tokenizer | None) -> Backend:
    """A Hugging Face module in nnsight."""
    layout = layout_of(plain.module.config)
    unembed = plain.module.get_output_embeddings()
    return NnsightBackend(plain.module, unembed, layout, describe_module(plain, layout), tokenizer, block_returns=plain.returns)


def _load_native(source: Source, dtype: torch.dtype, device: str, engine: Engine) -> Backend:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = read_native_config(source.directory)
    module: Any
    module, cfg = build_native(source.directory, dtype, device)
    plain = Plain.of(source, module, config["d_vocab"], config["n_ctx"], dtype, device)
    made: Backend
    if engine == "nnsight":
        made = NnsightBackend(module, module.head, NATIVE, describe_module(plain, NATIVE), None, block_returns=plain.returns)
    else:
        bridge = build_bridge_from_module(module, "TransformerLensNative", tl_config=cfg, dtype=dtype, device=device)
        bridge.requires_grad_(False)
        made = TransformerLensBackend(bridge, describe_bridge(plain, bridge), None, block_returns=plain.returns, cached=False)
    made.info = replace(made.info, warnings=(*made.info.warnings, *strange_fields(config)))
    compare(made, plain.expected)
    made.abilities = find_abilities(made, plain.expected)
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
