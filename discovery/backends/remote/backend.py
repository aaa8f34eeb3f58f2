"""The contract on a model that computes elsewhere: each run is one request to NDIF, or to nnsight's simulation of it.

from discovery import load_model
model = load_model("meta-llama/Llama-3.1-70B", remote=True)        # NDIF_API_KEY; nothing but config and tokenizer is downloaded
model = load_model("bundled", remote="local")                      # the same way, without a server

Token ids, residual streams and reference values go there; what is read, and logits at the answer positions, come back. Keys and values
are not reused, nor is the last layer narrowed: each would send more than it saves. There are no gradients, since NDIF runs a block apart
from the model. Whatever is found at load is found as for any backend, but the reference is the remote module's own plain run.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.backends.hardware.placement import resident_weight_bytes
from discovery.backends.info import Abilities, ModelInfo
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
    describe_module,
    read_module_context_length,
    read_vocabulary_size,
)
from discovery.backends.loading.huggingface import build_module, build_tokenizer
from discovery.backends.loading.source import ModelLocation, require_supported_config
from discovery.backends.nnsight.backend import check_run
from discovery.backends.nnsight.layout import ModuleLayout, find_layout
from discovery.backends.remote.jobs import JobBuilder
from discovery.backends.remote.ndif import NdifService
from discovery.backends.remote.service import Service, SimulatedService
from discovery.errors import MeasurementError, ModelError, first_line
from discovery.interventions import Edit
from discovery.sites import Site
from discovery.tasks.pairs import Tokenizer

RemoteMode = Literal[True, "local"]
UNTRIED_ABILITIES = ("prefix", "last_position_only")
MAX_WEIGHT_BYTES = 64 * 2**20  # of W_O in one request: a small model's layers come together
NO_REMOTE_GRADIENTS = (
    "A remote model gives no gradients: NDIF runs what is sent apart from the model."
)


class RemoteBackend(Backend):
    """A module that is traced elsewhere; one request at a time."""

    tokens_per_batch = 131072  # a request takes seconds whatever its size, and a server is a GPU

    def __init__(
        self, net: Any, chart: JobBuilder, service: Service, tokenizer: Tokenizer | None
    ) -> None:
        """Take over a traced module.

        Args:
            net: nnsight's model; its weights need not be here.
        """
        self.net, self.job_builder, self.service, self.tokenizer = net, chart, service, tokenizer
        self.info, self.abilities = (
            chart.info,
            Abilities(pattern=True, gradients=False),
        )  # until it has been tried
        self._weights: dict[int, Tensor] = {}
        self._lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")  # where what came back is worked on

    @property
    def resident_weight_bytes(self) -> int:
        return resident_weight_bytes(self.net._module, self.device)  # of a server's model: nothing

    def require_gradients(self) -> None:
        raise MeasurementError(
            NO_REMOTE_GRADIENTS,
            "Measure every cell (without a budget, or with --exhaustive), or load the model here.",
        )

    def run(
        self,
        batch: Batch,
        reads: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        *,
        keep_prefix: bool = False,
        grad: bool = False,
    ) -> BatchResult:
        for site in (*reads, *(edit.site for edit in edits)):
            self.require_site(site)
        check_run(
            self.info,
            self.abilities,
            self.job_builder.layout,
            batch,
            reads,
            edits,
            keep_prefix=keep_prefix,
            grad=grad,
        )
        if grad:
            self.require_gradients()
        if keep_prefix or batch.prefix is not None or batch.last_position_only:
            raise RuntimeError("keys, values and narrow runs are not sent to a server")
        found = self._ask(self.job_builder.build_walk(batch, reads, edits))
        return BatchResult(
            found.get("logits"), {site: found["seen"][reads.index(site)] for site in reads}
        )

    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        if layer not in self._weights:
            info = self.info
            size = info.n_heads * info.d_head * info.d_model * info.itemsize
            some = [n for n in range(layer, info.n_layers) if n not in self._weights][
                : max(1, MAX_WEIGHT_BYTES // size)
            ]
            self.store_head_weights(self._ask(self.job_builder.build_weights(some))["seen"])
        return self._weights[layer]

    def store_head_weights(self, found: Mapping[int, Tensor]) -> None:
        """W_O of some layers, as a server gave them."""
        self._weights |= {
            n: w.reshape(self.info.n_heads, self.info.d_head, self.info.d_model)
            for n, w in found.items()
        }

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            return self.service.run(self.net, [job])[0]


def load_remote(name: str, remote: RemoteMode, *, backend: str, device: str, dtype: str) -> Backend:
    """Open a model that computes elsewhere.

    Args:
        remote: True for NDIF, "local" for the simulation in this process, which loads the weights here.
        backend: auto or nnsight; nnsight it is.
        device: auto or cpu: where the results are worked on.
        dtype: what is asked for; a server computes in what it was started with, which is then recorded.

    Raises:
        ModelError: what is asked for cannot be, the server does not answer, or the model does not run there.
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
        return _build_verified(
            _load_simulated(name, dtype) if remote == "local" else _connect_to_ndif(name, dtype),
            dtype,
        )


@dataclass(frozen=True)
class _UnverifiedModel:
    """A model that has not been run yet."""

    source: ModelLocation
    module: Any
    net: Any
    service: Service
    layout: ModuleLayout
    n_ctx: int


@dataclass(frozen=True)
class RemoteSource(ModelLocation):
    """Weights that are not here: their fingerprint is the name and the commit that the hub has now."""

    @property
    def fingerprint(self) -> str:
        return f"{self.name}@{self.revision}"


def _connect_to_ndif(name: str, dtype: str) -> _UnverifiedModel:
    """A hub model that NDIF runs: shapes only, no weights."""
    from discovery.backends.loading.outline import build_empty_module
    from discovery.backends.loading.source import locate_model

    service = NdifService.from_environment()
    source = locate_model(name, weights=False)
    require_hub_model(name, source.revision)
    assert source.revision is not None  # it is one of the hub
    require_supported_config(source.directory, weights=False)
    module, _ = build_empty_module(source.directory)
    layout = find_layout(module.config)
    offered = service.running_models()
    net = _wrap(module, source)
    net.repo_id, net.args = name, (name,)
    service.model_key = _model_key(net)
    if offered and name not in offered and net.repo_id not in offered:
        from discovery.backends.remote.status import report_status

        report_status(
            f"NDIF runs {len(offered)} models, and {name} is not among them: it is asked for all the same"
        )
    return _UnverifiedModel(
        RemoteSource(name, source.directory, source.revision),
        module,
        net,
        service,
        layout,
        read_module_context_length(module),
    )


def _model_key(net: Any) -> str:
    """The model's name on a server; the hub is asked how it is written."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return str(net.to_model_key())
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as fault:
        cause = (
            f"The hub could not be asked how {net.repo_id!r} is written ({type(fault).__name__})."
        )
        raise ModelError(
            cause, "Check the connection and HF_HUB_OFFLINE.", detail=first_line(fault)
        ) from fault


def _load_simulated(name: str, dtype: str) -> _UnverifiedModel:
    """Any Hugging Face model, weights and all."""
    from discovery.backends.loading.source import locate_model

    source = locate_model(name)
    if (source.directory / "tl_config.json").is_file():
        raise ModelError(
            f"{name!r} is in TransformerLens's native format, which NDIF does not run.",
            "Load it without remote.",
        )
    module = build_module(source.directory, getattr(torch, dtype), "cpu")
    return _UnverifiedModel(
        source,
        module,
        _wrap(module, source),
        SimulatedService(),
        find_layout(module.config),
        read_module_context_length(module),
    )


def _wrap(module: Any, source: ModelLocation) -> Any:
    """nnsight's model around the module. The wrapper that NDIF knows needs a tokenizer."""
    from discovery.backends.nnsight.backend import import_nnsight

    import_nnsight()
    from nnsight.modeling.transformers import TransformersModel

    tokenizer = build_tokenizer(source.directory)
    require_tokenizer(source.name, tokenizer is not None)
    assert tokenizer is not None
    place = {"device": "meta"} if next(module.parameters()).is_meta else {}
    return TransformersModel(module, task="text-generation", tokenizer=tokenizer.wrapped, **place)


def _build_verified(opened: _UnverifiedModel, dtype: str) -> Backend:
    """A backend that has proved itself against the remote module's plain run.

    Raises:
        ModelError: another dtype than the server's was asked for, or the model does not reproduce itself.
    """
    module, service = opened.module, opened.service
    d_vocab = read_vocabulary_size(module)
    tokens = make_probe_tokens(d_vocab, opened.n_ctx, "cpu")
    paths = {id(part): path for path, part in module.named_modules()}
    unembed = paths[id(module.get_output_embeddings())]
    chart = JobBuilder(None, opened.layout, unembed, None)  # type: ignore[arg-type]  # what it is, its first run says
    layers = ModelShape.of_hugging_face(module.config).n_layers
    said, mixes = service.run(
        opened.net, [chart.build_reference(tokens), chart.build_weights({0, layers - 1})]
    )
    if not bool(said["logits"].isfinite().all()):
        raise ModelError(
            "The model's own logits are not finite.",
            "Its server may have loaded damaged weights: tell those who run it.",
        )
    expected = ReferenceLogits(tokens, said["logits"], d_vocab)
    width: torch.dtype = said["logits"].dtype
    n_params = sum(parameter.numel() for parameter in module.parameters())
    plain = UnwrappedModel(
        opened.source, module, expected, opened.n_ctx, n_params, said["returns"], width, "cpu"
    )
    info = _add_server_warning(
        replace(describe_module(plain, opened.layout), remote=service.address), dtype
    )
    tokenizer = build_tokenizer(opened.source.directory)
    made = RemoteBackend(
        opened.net, JobBuilder(info, opened.layout, unembed, said["returns"]), service, tokenizer
    )
    made.store_head_weights(mixes["seen"])
    require_same_logits(made, expected)
    require_causal(made, expected)
    made.abilities = replace(
        find_abilities(made, expected, untried=UNTRIED_ABILITIES), gradients=False
    )
    return made


def _add_server_warning(info: ModelInfo, asked: str) -> ModelInfo:
    """With what a user must know of a server's choices."""
    if info.remote is None:
        return info
    if asked not in ("float32", info.dtype):
        raise ModelError(
            f"dtype {asked!r} was asked for, and NDIF computes {info.name} in {info.dtype}.",
            f"Ask for {info.dtype}.",
        )
    weights = f"computed at {info.remote} in {info.dtype}: its weights were not seen here, and are named by hub name and commit"
    return replace(info, warnings=(*info.warnings, weights))
