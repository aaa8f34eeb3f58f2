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
from typing import Any, get_args

import torch
from torch import nn

from discovery.backends.base import Backend, ModelInfo, Width
from discovery.backends.check import Reference, compare, find_abilities, reference, require_causal
from discovery.backends.huggingface import Source, build_module, build_tokenizer, fetch, first_line, read_config
from discovery.backends.native import build_native, read_native_config, strange_fields
from discovery.backends.transformerlens import TransformerLensBackend
from discovery.errors import ModelError
from discovery.sites import BackendName

DEVICES = ("auto", "cpu", "cuda", "mps")
MLP_PARTS = ("in", "gate", "out")


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
    if backend == "nnsight":
        raise ModelError("The nnsight backend is not in this version.", "Use backend 'transformerlens'.")
    place = choose_device(device)
    source = find_source(str(name))
    width: torch.dtype = getattr(torch, dtype)
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens and its friends print
        if (source.directory / "tl_config.json").is_file():
            return _load_native(source, width, place)
        return _load_huggingface(source, width, place)


def find_source(name: str) -> Source:
    """Where a model is.

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
    return fetch(name)


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


def _load_huggingface(source: Source, dtype: torch.dtype, device: str) -> Backend:
    import copy

    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config

    config = read_config(source.directory)
    module: Any = build_module(source.directory, dtype, device)
    tokenizer = build_tokenizer(source.directory)
    d_vocab, n_ctx = _vocabulary(module), _context(config)
    kind, n_params = type(module).__name__, sum(p.numel() for p in module.parameters())
    with _refused(f"{source.directory.name} does not run"):
        expected = reference(module, d_vocab, n_ctx, device)
        returns = _block_returns(module, expected.tokens)
    with _refused(f"TransformerLens cannot wrap {kind}"):
        architecture = determine_architecture_from_hf_config(module.config)
        bridge = build_bridge_from_module(module, architecture, hf_config=copy.deepcopy(module.config), dtype=dtype, device=device)
        bridge.requires_grad_(False)  # wrapping makes new parameters
        info = _describe(source, bridge, module, expected, n_ctx, n_params, dtype, device)
    made = TransformerLensBackend(bridge, info, tokenizer, block_returns=returns, cached=True)
    with _refused(f"TransformerLens cannot run {kind}"):
        compare(made, expected)
        require_causal(made, expected)
    made.abilities = find_abilities(made, expected)
    return made


def _load_native(source: Source, dtype: torch.dtype, device: str) -> Backend:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = read_native_config(source.directory)
    module, cfg = build_native(source.directory, dtype, device)
    expected = reference(module, config["d_vocab"], config["n_ctx"], device)
    n_params = sum(p.numel() for p in module.parameters())
    bridge = build_bridge_from_module(module, "TransformerLensNative", tl_config=cfg, dtype=dtype, device=device)
    bridge.requires_grad_(False)
    info = _describe(source, bridge, module, expected, config["n_ctx"], n_params, dtype, device)
    info = replace(info, warnings=(*info.warnings, *strange_fields(config)))
    made = TransformerLensBackend(bridge, info, None, block_returns=1, cached=False)
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


def _vocabulary(module: nn.Module) -> int:
    return int(module.get_input_embeddings().weight.shape[0])  # type: ignore[operator]  # a Hugging Face module


def _context(config: dict[str, Any]) -> int:
    """The longest prompt. Where the rotation depends on the longest prompt of a batch, only as far as it does not: what stands beside a
    prompt would change its numbers.
    """
    names = ("n_positions", "max_position_embeddings", "n_ctx", "max_sequence_length", "seq_length")
    longest = next((int(config[name]) for name in names if isinstance(config.get(name), int)), 2048)
    rotation = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rotation, dict) or rotation.get("rope_type", rotation.get("type")) not in ("longrope", "su", "dynamic"):
        return longest
    places = (rotation, config)
    original = next(
        (p["original_max_position_embeddings"] for p in places if isinstance(p.get("original_max_position_embeddings"), int)), longest
    )
    return min(longest, int(original))


def _block_returns(module: nn.Module, tokens: torch.Tensor) -> int | None:
    """How the module's blocks hand on the residual stream: length of the tuple, or None for a bare tensor."""
    blocks = max((m for m in module.modules() if isinstance(m, nn.ModuleList)), key=len)
    found: list[Any] = []
    handle = blocks[0].register_forward_hook(lambda m, i, output: found.append(output))
    with torch.no_grad():
        module(input_ids=tokens[:, :1])
    handle.remove()
    return len(found[0]) if isinstance(found[0], tuple) else None


def _describe(
    source: Source, bridge: Any, module: nn.Module, expected: Reference, n_ctx: int, n_params: int, dtype: torch.dtype, device: str
) -> ModelInfo:
    cfg = bridge.cfg
    heads, d_head, d_model = int(cfg.n_heads), int(cfg.d_head), int(cfg.d_model)
    kv_heads = int(getattr(cfg, "n_key_value_heads", None) or heads)
    block = bridge.blocks[0]
    attn_only = bool(getattr(cfg, "attn_only", False))
    return ModelInfo(
        name=source.name,
        source=source.name if source.name == "bundled" or source.revision else str(source.directory),
        revision=source.revision,
        fingerprint=source.fingerprint,
        architecture=type(module).__name__,
        backend="transformerlens",
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        n_layers=int(cfg.n_layers),
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_model=d_model,
        d_head=d_head,
        d_vocab=expected.d_vocab,
        d_vocab_out=None if expected.logits.shape[-1] == expected.d_vocab else int(expected.logits.shape[-1]),
        n_ctx=n_ctx,
        n_params=n_params,
        attn_only=attn_only,
        parallel="blocks.0.hook_resid_mid" not in bridge.hook_dict and not attn_only,
        positions=str(getattr(cfg, "positional_embedding_type", None) or "unknown"),
        normalization=str(cfg.normalization_type),
        macs_attention=2 * d_model * d_head * (heads + kv_heads),
        macs_mlp=0 if attn_only else _mlp_work(block.mlp, module),
        warnings=("mps is untested: compare a few numbers with cpu before relying on them",) if device == "mps" else (),
    )


def _mlp_work(mlp: Any, module: Any) -> int:
    """Multiply-adds of an MLP at one position; of experts [expert …], those that a token is sent to."""
    parts = {name: part for name, part in mlp.named_children() if name in MLP_PARTS}
    chosen = parts.values() if {"in", "out"} <= set(parts) else [mlp.original_component]
    used = int(getattr(getattr(module, "config", None), "num_experts_per_tok", None) or 1)
    weights = {id(p): p for part in chosen for name, p in part.named_parameters() if p.ndim > 1 and "bias" not in name}
    return sum(p.numel() if p.ndim == 2 else p[0].numel() * used for p in weights.values())
