"""Loading a model that computes elsewhere.

    from discovery import load_model
    model = load_model("meta-llama/Llama-3.1-70B", remote=True)  # on NDIF, with NDIF_API_KEY
    model = load_model("bundled", remote="local")                # simulated, without a server

For a model on NDIF, only its configuration and its tokenizer are downloaded. Like any backend, a
remote one is verified when it is loaded; it is compared with the remote module's own plain run.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch

from discovery.backends.base import Backend
from discovery.backends.info import ModelInfo
from discovery.backends.loading.abilities import find_abilities
from discovery.backends.loading.backend_choice import (
    require_hub_model,
    require_remote_backend,
    require_tokenizer,
)
from discovery.backends.loading.checks import (
    ReferenceLogits,
    make_probe_tokens,
    require_causal,
    require_same_logits,
)
from discovery.backends.loading.description import (
    ModelShape,
    UnwrappedModel,
    count_parameters,
    describe_module,
    read_module_context_length,
    read_vocabulary_size,
)
from discovery.backends.loading.huggingface import build_module, build_tokenizer
from discovery.backends.loading.source import ModelLocation, require_supported_config
from discovery.backends.nnsight.backend import import_nnsight
from discovery.backends.nnsight.layout import ModuleLayout, find_layout
from discovery.backends.remote.backend import RemoteBackend
from discovery.backends.remote.jobs import (
    JobBuilder,
    build_reference_job,
    build_weights_job,
)
from discovery.backends.remote.ndif import NdifService
from discovery.backends.remote.service import Service, SimulatedService
from discovery.backends.remote.status import report_status
from discovery.errors import ModelError, first_line

RemoteMode = Literal[True, "local"]
UNTRIED_ABILITIES = ("prefix", "last_position_only")  # a remote backend does not offer them


def load_remote(name: str, remote: RemoteMode, *, backend: str, device: str, dtype: str) -> Backend:
    """Load a model that computes elsewhere.

    Args:
        name: a hub name; for the simulation, also a directory or "bundled".
        remote: True for NDIF; "local" for a simulation in this process, which loads the weights.
        backend: "auto" or "nnsight", which both mean nnsight.
        device: "auto" or "cpu". The results are worked on there; a server chooses its own device.
        dtype: the dtype that is asked for. A server computes in the dtype that it was started with,
            which is then recorded.

    Raises:
        ModelError: if the arguments are not possible together, the server does not answer, or the
            model does not run there.
    """
    if remote is not True and remote != "local":
        raise ModelError(
            f"remote is {remote!r}.",
            "Give True for NDIF, or 'local' for a simulation of it in this process.",
        )
    require_remote_backend(backend)
    if device not in ("auto", "cpu"):
        raise ModelError(
            f"device {device!r} cannot be chosen for a remote model: its server chooses.",
            "Leave it out.",
        )
    with contextlib.redirect_stdout(sys.stderr):
        if remote == "local":
            model = _load_simulated(name, dtype)
        else:
            model = _connect_to_ndif(name)
        return _build_verified(model, dtype)


@dataclass(frozen=True, kw_only=True)
class _UnverifiedModel:
    """A model that has not been run yet.

    Attributes:
        source: where it comes from.
        module: the plain module, with or without weights.
        traced: nnsight's wrapper of it.
        service: runs its jobs.
        layout: where the module keeps its sites.
        n_ctx: the number of tokens of the longest prompt.
    """

    source: ModelLocation
    module: Any
    traced: Any
    service: Service
    layout: ModuleLayout
    n_ctx: int


@dataclass(frozen=True)
class RemoteSource(ModelLocation):
    """Weights on a server: their fingerprint is the name and the commit that the hub has now."""

    @cached_property
    def fingerprint(self) -> str:
        return f"{self.name}@{self.revision}"


def _connect_to_ndif(name: str) -> _UnverifiedModel:
    """Prepare a hub model that NDIF runs; the module here has shapes and no weights."""
    from discovery.backends.loading.outline import build_empty_module
    from discovery.backends.loading.source import locate_model

    service = NdifService.from_environment()
    source = locate_model(name, weights=False)
    require_hub_model(name, source.revision)
    assert source.revision is not None  # a hub model has one
    require_supported_config(source.directory, weights=False)
    module, _ = build_empty_module(source.directory)
    layout = find_layout(module.config)
    running_models = service.running_models()
    traced = _wrap(module, source)
    traced.repo_id = name
    traced.args = (name,)
    service.model_key = _model_key(traced)
    if running_models and name not in running_models and traced.repo_id not in running_models:
        report_status(
            f"NDIF runs {len(running_models)} models, and {name} is not among them; "
            "asking for it anyway"
        )
    return _UnverifiedModel(
        source=RemoteSource(name, source.directory, source.revision),
        module=module,
        traced=traced,
        service=service,
        layout=layout,
        n_ctx=read_module_context_length(module),
    )


def _model_key(traced: Any) -> str:
    """Return the model's name on a server. The hub is asked for the name's exact spelling."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return str(traced.to_model_key())
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as fault:
        raise ModelError(
            f"The hub could not be asked for the spelling of {traced.repo_id!r} "
            f"({type(fault).__name__}).",
            "Check the connection and HF_HUB_OFFLINE.",
            detail=first_line(fault),
        ) from fault


def _load_simulated(name: str, dtype: str) -> _UnverifiedModel:
    """Load a Hugging Face model with its weights, to be run in the simulation."""
    from discovery.backends.loading.source import locate_model

    source = locate_model(name)
    if source.is_native:
        raise ModelError(
            f"{name!r} is in TransformerLens's native format, which NDIF does not run.",
            "Load it without remote.",
        )
    if source.gguf:
        raise ModelError(
            f"{name!r} is a GGUF model, which NDIF does not run.", "Load it without remote."
        )
    module = build_module(source.directory, getattr(torch, dtype), "cpu")
    return _UnverifiedModel(
        source=source,
        module=module,
        traced=_wrap(module, source),
        service=SimulatedService(),
        layout=find_layout(module.config),
        n_ctx=read_module_context_length(module),
    )


def _wrap(module: Any, source: ModelLocation) -> Any:
    """Return nnsight's wrapper of the module. The wrapper that NDIF knows needs a tokenizer."""
    import_nnsight()
    from nnsight.modeling.transformers import TransformersModel

    tokenizer = build_tokenizer(source.directory)
    require_tokenizer(source.name, tokenizer is not None)
    assert tokenizer is not None
    device = {"device": "meta"} if next(module.parameters()).is_meta else {}
    return TransformersModel(module, task="text-generation", tokenizer=tokenizer.wrapped, **device)


def _build_verified(model: _UnverifiedModel, dtype: str) -> Backend:
    """Return a backend that reproduces the remote module's plain run.

    Raises:
        ModelError: if another dtype than the server's was asked for, or the logits differ.
    """
    module = model.module
    d_vocab = read_vocabulary_size(module)
    tokens = make_probe_tokens(d_vocab, model.n_ctx, "cpu")
    paths = {id(part): path for path, part in module.named_modules()}
    unembed = paths[id(module.get_output_embeddings())]
    last_layer = ModelShape.of_hugging_face(module.config).n_layers - 1
    jobs = [
        build_reference_job(model.layout, tokens),
        build_weights_job(model.layout, {0, last_layer}),
    ]
    reference, head_weights = model.service.run(model.traced, jobs)
    if not bool(reference["logits"].isfinite().all()):
        raise ModelError(
            "The model's own logits are not finite.",
            "Its server may have loaded damaged weights: tell those who run it.",
        )
    expected = ReferenceLogits(tokens, reference["logits"], d_vocab)
    plain = UnwrappedModel(
        location=model.source,
        module=module,
        expected=expected,
        n_ctx=model.n_ctx,
        n_params=count_parameters(module),
        block_tuple_length=reference["returns"],
        dtype=reference["logits"].dtype,
        device="cpu",
    )
    info = replace(describe_module(plain, model.layout), remote=model.service.address)
    job_builder = JobBuilder(
        _add_server_warning(info, dtype), model.layout, unembed, reference["returns"]
    )
    backend = RemoteBackend(
        model.traced, job_builder, model.service, build_tokenizer(model.source.directory)
    )
    backend.store_head_weights(head_weights["seen"])
    require_same_logits(backend, expected)
    require_causal(backend, expected)
    abilities = find_abilities(backend, expected, untried=UNTRIED_ABILITIES)
    backend.abilities = replace(abilities, gradients=False)
    return backend


def _add_server_warning(info: ModelInfo, dtype: str) -> ModelInfo:
    """Add a warning about what a server chose, which users must know.

    Raises:
        ModelError: if the dtype that was asked for is neither the default nor the server's.
    """
    if info.remote is None:
        return info
    if dtype not in ("float32", info.dtype):
        raise ModelError(
            f"dtype {dtype!r} was asked for, and NDIF computes {info.name} in {info.dtype}.",
            f"Ask for {info.dtype}.",
        )
    warning = (
        f"computed at {info.remote} in {info.dtype}: its weights were not seen here, "
        "and are named by hub name and commit"
    )
    return replace(info, warnings=(*info.warnings, warning))
