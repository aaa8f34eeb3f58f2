"""`load_model`: turn a name or a directory into a backend that has proved itself.

    from discovery import load_model
    model = load_model("bundled")              # or a directory, or a hub name
    model.info.n_layers, model.info.fingerprint

The backend is chosen from the model's outline, before any weight is read. The module is loaded and
run once as it is; then the backend wraps it, and must give the same logits. Last, the shortcuts are
tried.
"""

from __future__ import annotations

import contextlib
import copy
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
from discovery.backends.loading.gguf.convert import convert_gguf, describe_unread
from discovery.backends.loading.gguf.header import read_header
from discovery.backends.loading.huggingface import build_module, build_tokenizer
from discovery.backends.loading.native import (
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
from discovery.backends.loading.source import BUNDLED, ModelLocation, locate_model
from discovery.backends.nnsight.backend import NnsightBackend
from discovery.backends.nnsight.layout import NATIVE_LAYOUT, find_layout
from discovery.backends.transformerlens import TransformerLensBackend
from discovery.errors import ModelError, first_line, require_choice
from discovery.sites import BackendName
from discovery.tasks.pairs import Tokenizer

OUT_OF_MEMORY_CURE = (
    "Free memory, or choose a smaller dtype, device_map auto, another device or a smaller model. "
    "If a server ran out of memory, try later."
)


def load_model(
    name: str | Path = BUNDLED,
    *,
    backend: BackendName = "auto",
    device: str = "auto",
    dtype: str = "float32",
    device_map: Literal["auto"] | DeviceMap | None = None,
    max_memory: Mapping[str | int, int] | None = None,
    remote: bool | Literal["local"] = False,
) -> Backend:
    """Load a model.

    Args:
        name: "bundled", a GGUF file, a directory in Hugging Face or TransformerLens-native format,
            or a hub name.
        backend: the backend that runs the model. "auto" chooses by size, architecture and memory;
            `info.backend_reason` then says why.
        device: auto, cpu, cuda (or one GPU, as cuda:1), or mps (accepted and recorded, but
            untested).
        dtype: float32, float64, bfloat16 or float16.
        device_map: "auto" spreads the weights over this machine's devices, memory and disk, as
            transformers does. A mapping says where each part goes. Only nnsight runs such a model.
        max_memory: with device_map, how many bytes the weights may take of each device and of
            "cpu"; the rest goes to the disk.
        remote: True runs the model on NDIF, and "local" on nnsight's simulation of it. With False,
            nothing is sent anywhere.

    Returns:
        A backend that gave the same logits as the unwrapped module.

    Raises:
        ModelError: if there is no such model, or if it cannot be run or does not fit. The message
            says why and what to do.
        MemoryLimitError: if memory runs out although the weights seemed to fit.
    """
    require_dtype(dtype)
    require_choice("backend", backend, get_args(BackendName), ModelError)
    placement = Placement.from_arguments(device_map, max_memory, device, remote=bool(remote))
    with convert_out_of_memory(f"Memory ran out while {name} was loaded.", OUT_OF_MEMORY_CURE):
        if remote:
            # The remote backend imports this package, so it is imported only when it is needed.
            from discovery.backends.remote.load import load_remote

            model = load_remote(str(name), remote, backend=backend, device=device, dtype=dtype)
            model.info = replace(model.info, backend_reason=REMOTE_REASON)
            return model
        return _load_local(str(name), backend, choose_device(device), dtype, placement)


def _load_local(
    name: str, backend: BackendName, device: str, dtype: str, placement: Placement | None
) -> Backend:
    """Load a model on this machine, as `load_model` does."""
    location = locate_model(name, weights=False)
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens prints
        # The choice comes first: a model that does not fit is refused before its weights are read
        # or downloaded.
        kind, reason = _choose_fitting_backend(location, backend, device, dtype, placement)
        location = locate_model(name)
        torch_dtype: torch.dtype = getattr(torch, dtype)
        if location.is_native:
            model = _load_native(location, torch_dtype, device, kind)
        elif location.gguf:
            model = _load_gguf(location, torch_dtype, device, kind, placement)
        else:
            model = _load_hugging_face(location, torch_dtype, device, kind, placement)
    model.info = replace(model.info, backend_reason=reason)
    return model


def _choose_fitting_backend(
    location: ModelLocation,
    backend: BackendName,
    device: str,
    dtype: str,
    placement: Placement | None,
) -> tuple[BackendKind, str]:
    """Return the backend that runs a model, and the reason for it.

    Raises:
        ModelError: if no backend can run the model, or if its weights do not fit.
    """
    free = read_free_memory(device)
    try:
        outline = read_outline_at(location, dtype)
    except UnknownShapeError:
        if placement is not None:
            raise
        kind: BackendKind = "nnsight" if backend == "nnsight" else "transformerlens"
        return kind, "its configuration does not say how large it is"
    choice = choose_backend(outline, backend, free, is_spread=placement is not None)
    if placement is None:
        require_fit(choice, device, free)
    else:
        placement.require_disk_space(outline.name, outline.stacked_bytes)
    return choice.backend, choice.reason


def _load_hugging_face(
    location: ModelLocation,
    dtype: torch.dtype,
    device: str,
    kind: BackendKind,
    placement: Placement | None,
) -> Backend:
    """Load a model in Hugging Face format and verify the backend that wraps it."""
    file_dtype = None
    if placement is not None:
        empty_module, file_dtype = build_empty_module(location.directory)
        placement.require_modules(empty_module)
    module: Any = build_module(location.directory, dtype, device, placement)
    if placement is not None:
        device = input_device(module)
    tokenizer = build_tokenizer(location.directory)
    with _as_model_error(f"{location.directory.name} does not run"):
        plain = UnwrappedModel.of_module(
            location,
            module,
            d_vocab=read_vocabulary_size(module),
            n_ctx=read_module_context_length(module),
            dtype=dtype,
            device=device,
        )
    architecture = type(module).__name__
    wrap = _wrap_in_nnsight if kind == "nnsight" else _wrap_in_transformerlens
    with _as_model_error(f"{BACKEND_LABELS[kind]} cannot wrap {architecture}"):
        model = wrap(plain, tokenizer)
    with _as_model_error(f"{BACKEND_LABELS[kind]} cannot run {architecture}"):
        require_same_logits(model, plain.expected)
        require_causal(model, plain.expected)
    model.abilities = find_abilities(model, plain.expected)
    if placement is not None:
        _record_placement(model, module, placement, file_dtype or torch.float32)
    return model


def _load_gguf(
    location: ModelLocation,
    dtype: torch.dtype,
    device: str,
    kind: BackendKind,
    placement: Placement | None,
) -> Backend:
    """Load the dequantised copy of a GGUF model; the first time, it is made."""
    header = read_header(location.gguf)
    dtype_name = str(dtype).removeprefix("torch.")
    directory = convert_gguf(header, location.fingerprint, dtype_name)
    copied = replace(location, directory=directory)
    # `replace` does not hand on the fingerprint, which takes seconds to compute.
    vars(copied)["fingerprint"] = location.fingerprint
    model = _load_hugging_face(copied, dtype, device, kind, placement)
    model.info = replace(
        model.info,
        quantisation=header.quantisation,
        warnings=(*model.info.warnings, *describe_unread(header, directory)),
    )
    return model


def _record_placement(
    model: Backend, module: Any, placement: Placement, file_dtype: torch.dtype
) -> None:
    """Record how the weights of a model are spread, and whether it gives gradients."""
    info = model.info
    is_mapped = info.device == "cpu" and info.dtype == str(file_dtype).removeprefix("torch.")
    gradients = is_mapped or not is_offloaded(module)
    model.abilities = replace(model.abilities, gradients=gradients)
    device_map = placement.device_map
    model.info = replace(
        info,
        warnings=(*info.warnings, *describe_placement(module)),
        device_map="auto" if device_map == "auto" else str(dict(device_map)),
    )


def _wrap_in_transformerlens(plain: UnwrappedModel, tokenizer: Tokenizer | None) -> Backend:
    """Wrap a Hugging Face module in TransformerLens."""
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
    )

    config = plain.module.config
    return _build_bridge(
        plain,
        tokenizer,
        determine_architecture_from_hf_config(config),
        takes_cache=True,
        hf_config=copy.deepcopy(config),
    )


def _build_bridge(
    plain: UnwrappedModel,
    tokenizer: Tokenizer | None,
    architecture: str,
    *,
    takes_cache: bool,
    **configuration: Any,
) -> Backend:
    """Build a TransformerLens bridge around a module.

    Args:
        plain: the model.
        tokenizer: its tokenizer, if it has one.
        architecture: the name by which TransformerLens knows its architecture.
        takes_cache: whether its blocks take and return a Hugging Face cache.
        configuration: the model's configuration, under the name that TransformerLens expects.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    bridge = build_bridge_from_module(
        plain.module, architecture, dtype=plain.dtype, device=plain.device, **configuration
    )
    bridge.requires_grad_(False)  # wrapping makes new parameters
    return TransformerLensBackend(
        bridge,
        describe_bridge(plain, bridge),
        tokenizer,
        block_tuple_length=plain.block_tuple_length,
        takes_cache=takes_cache,
    )


def _wrap_in_nnsight(plain: UnwrappedModel, tokenizer: Tokenizer | None) -> Backend:
    """Wrap a Hugging Face module in nnsight."""
    layout = find_layout(plain.module.config)
    return NnsightBackend(
        plain.module,
        plain.module.get_output_embeddings(),
        layout,
        describe_module(plain, layout),
        tokenizer,
        block_tuple_length=plain.block_tuple_length,
    )


def _load_native(
    location: ModelLocation, dtype: torch.dtype, device: str, kind: BackendKind
) -> Backend:
    """Load a model in TransformerLens's native format and verify the backend that wraps it."""
    config = read_native_config(location.directory)
    module, cfg = build_native(config, location.directory, dtype, device)
    plain = UnwrappedModel.of_module(
        location, module, d_vocab=config.d_vocab, n_ctx=config.n_ctx, dtype=dtype, device=device
    )
    model: Backend
    if kind == "nnsight":
        model = NnsightBackend(
            plain.module,
            plain.module.head,
            NATIVE_LAYOUT,
            describe_module(plain, NATIVE_LAYOUT),
            None,
            block_tuple_length=plain.block_tuple_length,
        )
    else:
        model = _build_bridge(
            plain, None, "TransformerLensNative", takes_cache=False, tl_config=cfg
        )
    warnings = (*model.info.warnings, *describe_unknown_fields(config))
    model.info = replace(model.info, warnings=warnings)
    # There is nothing to check as to causality: another attention_dir is refused before.
    require_same_logits(model, plain.expected)
    model.abilities = find_abilities(model, plain.expected)
    return model


@contextlib.contextmanager
def _as_model_error(failure: str) -> Iterator[None]:
    """Turn what other libraries raise on a model that they cannot take into a ModelError.

    Raises:
        ModelError: in place of the library's exception, whose first line is the detail.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as fault:
        raise ModelError(
            f"{failure} ({type(fault).__name__}).",
            "Check its config.json, or use another dtype or another model.",
            detail=first_line(fault),
        ) from fault
