"""`load_model`: a name or a directory becomes a backend that has proved itself.

from discovery import load_model
model = load_model("bundled")              # or a directory, or a hub name
model.info.n_layers, model.info.fingerprint
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from discovery.backends.base import Backend
from discovery.backends.hardware.devices import choose_device
from discovery.backends.hardware.memory import convert_out_of_memory, read_free_memory
from discovery.backends.hardware.placement import (
    DeviceMap,
    Placement,
    describe_placement,
    input_device,
    is_offloaded,
)
from discovery.backends.info import require_dtype
from discovery.backends.loading.abilities import find_abilities
from discovery.backends.loading.backend_choice import REMOTE_REASON, choose_backend, require_fit
from discovery.backends.loading.checks import require_causal, require_same_logits
from discovery.backends.loading.description import (
    UnwrappedModel,
    describe_bridge,
    describe_module,
    read_module_context_length,
    read_vocabulary_size,
)
from discovery.backends.loading.huggingface import build_module, build_tokenizer
from discovery.backends.loading.native import (
    NATIVE_CONFIG,
    build_native,
    describe_unknown_fields,
    read_native_config,
)
from discovery.backends.loading.outline import (
    BACKEND_LABELS,
    BackendKind,
    UnknownShapeError,
    build_empty_module,
    read_outline_at,
)
from discovery.backends.loading.source import ModelLocation, locate_model
from discovery.backends.nnsight.backend import NnsightBackend
from discovery.backends.nnsight.layout import NATIVE_LAYOUT, find_layout
from discovery.backends.transformerlens import TransformerLensBackend
from discovery.errors import ModelError, first_line
from discovery.sites import BackendName
from discovery.tasks.pairs import Tokenizer

OUT_OF_MEMORY_CURE = "Free memory, or choose a smaller dtype, device_map auto, another device or a smaller model; where a server's ran out, try later."


def load_model(
    name: str | Path = "bundled",
    *,
    backend: BackendName = "auto",
    device: str = "auto",
    dtype: str = "float32",
    device_map: Literal["auto"] | DeviceMap | None = None,
    max_memory: Mapping[str | int, int] | None = None,
    remote: bool | Literal["local"] = False,
) -> Backend:
    """Open a model.

    Args:
        name: "bundled", a Hugging Face or TransformerLens-native directory, or a hub name.
        backend: which engine runs it; "auto" chooses by size, architecture and memory (`backends.choose`), and `info.chosen` says why.
        device: auto, cpu, cuda (or cuda:1 …), or mps (accepted, recorded, untested).
        dtype: float32, float64, bfloat16 or float16.
        device_map: "auto" spreads the weights over this machine's devices, memory and disk, as transformers does (nnsight only).
        max_memory: then, bytes that they may take of each device and of "cpu"; the rest lies on the disk.
        remote: run it on NDIF (True; see `backends.remote`), or "local" on nnsight's simulation of it. Nothing is sent anywhere otherwise.

    Returns:
        A backend whose logits were held against the unwrapped module's.

    Raises:
        ModelError: the name is no model, or not one that can be run, or it does not fit; says why and what to do.
        MemoryLimitError: memory ran out all the same.
    """
    require_dtype(dtype)
    if backend not in get_args(BackendName):
        raise ModelError(
            f"backend {backend!r} is not known.", f"Allowed: {', '.join(get_args(BackendName))}."
        )
    spread = Placement.from_arguments(device_map, max_memory, device, remote=bool(remote))
    with convert_out_of_memory(f"Memory ran out while {name} was loaded.", OUT_OF_MEMORY_CURE):
        if remote:
            from discovery.backends.remote.load import load_remote

            made = load_remote(str(name), remote, backend=backend, device=device, dtype=dtype)
            made.info = replace(made.info, backend_reason=REMOTE_REASON)
            return made
        return _load_local(str(name), backend, choose_device(device), dtype, spread)


def _load_local(
    name: str, backend: BackendName, device: str, dtype: str, spread: Placement | None
) -> Backend:
    """As `load_model`, on this machine."""
    said = locate_model(name, weights=False)
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens and its friends print
        engine, reason = _choose_fitting_backend(
            said, backend, device, dtype, spread
        )  # before the weights are read, or fetched
        source = locate_model(name)
        width: torch.dtype = getattr(torch, dtype)
        if (source.directory / NATIVE_CONFIG).is_file():
            made = _load_native(source, width, device, engine)
        else:
            made = _load_huggingface(source, width, device, engine, spread)
    made.info = replace(made.info, backend_reason=reason)
    return made


def _choose_fitting_backend(
    source: ModelLocation, backend: BackendName, device: str, dtype: str, spread: Placement | None
) -> tuple[BackendKind, str]:
    """The engine and why it; refused where the weights do not fit.

    Raises:
        ModelError: as `choose` and `require_fit`.
    """
    free = read_free_memory(device)
    try:
        found = read_outline_at(source, dtype)
    except UnknownShapeError:
        if spread is not None:
            raise
        return (
            "nnsight" if backend == "nnsight" else "transformerlens",
            "its configuration does not say how large it is",
        )
    choice = choose_backend(found, backend, free, is_spread=spread is not None)
    if spread is None:
        require_fit(choice, device, free)
    else:
        spread.require_disk_space(found.name, found.stacked_bytes)
    return choice.backend, choice.reason


def _load_huggingface(
    source: ModelLocation,
    dtype: torch.dtype,
    device: str,
    backend: BackendKind,
    spread: Placement | None,
) -> Backend:
    saved = None if spread is None else _require_parts(source, spread)
    module: Any = build_module(source.directory, dtype, device, spread)
    device = device if spread is None else input_device(module)
    tokenizer = build_tokenizer(source.directory)
    kind = type(module).__name__
    with _as_model_error(f"{source.directory.name} does not run"):
        plain = UnwrappedModel.of(
            source,
            module,
            read_vocabulary_size(module),
            read_module_context_length(module),
            dtype,
            device,
        )
    with _as_model_error(f"{BACKEND_LABELS[backend]} cannot wrap {kind}"):
        made = (
            _wrap_in_nnsight(plain, tokenizer)
            if backend == "nnsight"
            else _wrap_in_transformerlens(plain, tokenizer)
        )
    with _as_model_error(f"{BACKEND_LABELS[backend]} cannot run {kind}"):
        require_same_logits(made, plain.expected)
        require_causal(made, plain.expected)
    made.abilities = find_abilities(made, plain.expected)
    if spread is not None:
        warnings = (*made.info.warnings, *describe_placement(module))
        made.abilities = replace(
            made.abilities, gradients=(device, dtype) == ("cpu", saved) or not is_offloaded(module)
        )
        made.info = replace(
            made.info,
            warnings=warnings,
            device_map="auto" if spread.device_map == "auto" else str(dict(spread.device_map)),
        )
    return made


def _require_parts(source: ModelLocation, spread: Placement) -> torch.dtype:
    """Check how weights are to lie; returns the dtype of the files.

    Raises:
        ModelError: as `Placement.require_parts`.
    """
    empty, saved = build_empty_module(source.directory)
    spread.require_modules(empty)
    return saved or torch.float32


def _wrap_in_transformerlens(plain: UnwrappedModel, tokenizer: Tokenizer | None) -> Backend:
    """A Hugging Face module in TransformerLens."""
    import copy

    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
    )

    module, place = plain.module, {"dtype": plain.dtype, "device": plain.device}
    architecture = determine_architecture_from_hf_config(module.config)
    bridge = build_bridge_from_module(
        module, architecture, hf_config=copy.deepcopy(module.config), **place
    )
    bridge.requires_grad_(False)  # wrapping makes new parameters
    return TransformerLensBackend(
        bridge,
        describe_bridge(plain, bridge),
        tokenizer,
        block_tuple_length=plain.block_tuple_length,
        takes_cache=True,
    )


def _wrap_in_nnsight(plain: UnwrappedModel, tokenizer: Tokenizer | None) -> Backend:
    """A Hugging Face module in nnsight."""
    layout = find_layout(plain.module.config)
    unembed = plain.module.get_output_embeddings()
    return NnsightBackend(
        plain.module,
        unembed,
        layout,
        describe_module(plain, layout),
        tokenizer,
        block_tuple_length=plain.block_tuple_length,
    )


def _load_native(
    source: ModelLocation, dtype: torch.dtype, device: str, backend: BackendKind
) -> Backend:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = read_native_config(source.directory)
    module: Any
    module, cfg = build_native(source.directory, dtype, device)
    plain = UnwrappedModel.of(source, module, config["d_vocab"], config["n_ctx"], dtype, device)
    made: Backend
    if backend == "nnsight":
        made = NnsightBackend(
            module,
            module.head,
            NATIVE_LAYOUT,
            describe_module(plain, NATIVE_LAYOUT),
            None,
            block_tuple_length=plain.block_tuple_length,
        )
    else:
        bridge = build_bridge_from_module(
            module, "TransformerLensNative", tl_config=cfg, dtype=dtype, device=device
        )
        bridge.requires_grad_(False)
        made = TransformerLensBackend(
            bridge,
            describe_bridge(plain, bridge),
            None,
            block_tuple_length=plain.block_tuple_length,
            takes_cache=False,
        )
    made.info = replace(made.info, warnings=(*made.info.warnings, *describe_unknown_fields(config)))
    require_same_logits(made, plain.expected)
    made.abilities = find_abilities(made, plain.expected)
    return made


@contextlib.contextmanager
def _as_model_error(what: str) -> Iterator[None]:
    """Other libraries say in many ways that they cannot take a model."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as fault:
        cure = "Check its config.json, or use another dtype or another model."
        raise ModelError(
            f"{what} ({type(fault).__name__}).", cure, detail=first_line(fault)
        ) from fault
