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

from discovery.backends.base import Backend, Batch, Outcome
from discovery.backends.hardware.placement import held
from discovery.backends.info import Abilities, ModelInfo
from discovery.backends.loading.abilities import find_abilities
from discovery.backends.loading.backend_choice import require_hub, require_remote, require_tokenizer
from discovery.backends.loading.checks import Reference, compare, probe_tokens, require_causal
from discovery.backends.loading.description import Plain, Shape, context_of, describe_module, vocabulary
from discovery.backends.loading.huggingface import build_module, build_tokenizer
from discovery.backends.loading.source import Source, read_config
from discovery.backends.nnsight.backend import require_possible
from discovery.backends.nnsight.layout import Layout, layout_of
from discovery.backends.remote.jobs import Chart
from discovery.backends.remote.ndif import Ndif
from discovery.backends.remote.service import Service, Simulation
from discovery.errors import MeasurementError, ModelError, first_line
from discovery.interventions import Edit
from discovery.sites import Site
from discovery.tasks.pairs import Tokenizer

Remote = Literal[True, "local"]
NOT_TRIED = ("prefix", "narrow")
WEIGHT_BYTES = 64 * 2**20  # of W_O in one request: a small model's layers come together
NO_GRADIENTS = "A remote model gives no gradients: NDIF runs what is sent apart from the model."


class RemoteBackend(Backend):
    """A module that is traced elsewhere; one request at a time."""

    batch_tokens = 131072  # a request takes seconds whatever its size, and a server is a GPU

    def __init__(self, net: Any, chart: Chart, service: Service, tokenizer: Tokenizer | None) -> None:
        """Take over a traced module.

        Args:
            net: nnsight's model; its weights need not be here.
        """
        self.net, self.chart, self.service, self.tokenizer = net, chart, service, tokenizer
        self.info, self.abilities = chart.info, Abilities(pattern=True, gradients=False)  # until it has been tried
        self._weights: dict[int, Tensor] = {}
        self._lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")  # where what came back is worked on

    @property
    def held(self) -> int:
        return held(self.net._module, self.device)  # of a server's model: nothing

    def require_gradients(self) -> None:
        raise MeasurementError(NO_GRADIENTS, "Measure every cell (without a budget, or with --exhaustive), or load the model here.")

    def run(
        self, batch: Batch, reads: Sequence[Site] = (), edits: Sequence[Edit] = (), *, keep_prefix: bool = False, grad: bool = False
    ) -> Outcome:
        for site in (*reads, *(edit.site for edit in edits)):
            self.require(site)
        require_possible(self.info, self.abilities, self.chart.layout, batch, reads, edits, keep_prefix=keep_prefix, grad=grad)
        if grad:
            self.require_gradients()
        if keep_prefix or batch.prefix is not None or batch.narrow:
            raise RuntimeError("keys, values and narrow runs are not sent to a server")
        found = self._ask(self.chart.walk(batch, reads, edits))
        return Outcome(found.get("logits"), {site: found["seen"][reads.index(site)] for site in reads})

    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        if layer not in self._weights:
            info = self.info
            size = info.n_heads * info.d_head * info.d_model * info.width
            some = [n for n in range(layer, info.n_layers) if n not in self._weights][: max(1, WEIGHT_BYTES // size)]
            self.keep_weights(self._ask(self.chart.weights(some))["seen"])
        return self._weights[layer]

    def keep_weights(self, found: Mapping[int, Tensor]) -> None:
        """W_O of some layers, as a server gave them."""
        self._weights |= {n: w.reshape(self.info.n_heads, self.info.d_head, self.info.d_model) for n, w in found.items()}

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            return self.service.run(self.net, [job])[0]


def load_remote(name: str, remote: Remote, *, backend: str, device: str, dtype: str) -> Backend:
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
        raise ModelError(f"remote is {remote!r}.", "Give True for NDIF, or 'local' for a simulation of it in this process.")
    require_remote(backend)
    if device not in ("auto", "cpu"):
        raise ModelError(f"device {device!r} cannot be chosen for a remote model: its server chooses.", "Leave it out.")
    with contextlib.redirect_stdout(sys.stderr):
        return _proved(_simulated(name, dtype) if remote == "local" else _served(name, dtype), dtype)


@dataclass(frozen=True)
class _Opened:
    """A model that has not been run yet."""

    source: Source
    module: Any
    net: Any
    service: Service
    layout: Layout
    n_ctx: int


@dataclass(frozen=True)
class Hosted(Source):
    """Weights that are not here: their fingerprint is the name and the commit that the hub has now."""

    @property
    def fingerprint(self) -> str:
        return f"{self.name}@{self.revision}"


def _served(name: str, dtype: str) -> _Opened:
    """A hub model that NDIF runs: shapes only, no weights."""
    from discovery.backends.loading.outline import empty_module
    from discovery.backends.loading.source import find_source

    service = Ndif.configured()
    source = find_source(name, weights=False)
    require_hub(name, source.revision)
    assert source.revision is not None  # it is one of the hub
    read_config(source.directory, weights=False)
    module, _ = empty_module(source.directory)
    layout = layout_of(module.config)
    offered = service.running()
    net = _wrapped(module, source)
    net.repo_id, net.args = name, (name,)
    service.model_key = _key(net)
    if offered and name not in offered and net.repo_id not in offered:
        from discovery.backends.remote.status import tell

        tell(f"NDIF runs {len(offered)} models, and {name} is not among them: it is asked for all the same")
    return _Opened(Hosted(name, source.directory, source.revision), module, net, service, layout, context_of(module))


def _key(net: Any) -> str:
    """The model's name on a server; the hub is asked how it is written."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return str(net.to_model_key())
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as fault:
        cause = f"The hub could not be asked how {net.repo_id!r} is written ({type(fault).__name__})."
        raise ModelError(cause, "Check the connection and HF_HUB_OFFLINE.", detail=first_line(fault)) from fault


def _simulated(name: str, dtype: str) -> _Opened:
    """Any Hugging Face model, weights and all."""
    from discovery.backends.loading.source import find_source

    source = find_source(name)
    if (source.directory / "tl_config.json").is_file():
        raise ModelError(f"{name!r} is in TransformerLens's native format, which NDIF does not run.", "Load it without remote.")
    module = build_module(source.directory, getattr(torch, dtype), "cpu")
    return _Opened(source, module, _wrapped(module, source), Simulation(), layout_of(module.config), context_of(module))


def _wrapped(module: Any, source: Source) -> Any:
    """nnsight's model around the module. The wrapper that NDIF knows needs a tokenizer."""
    from discovery.backends.nnsight.backend import library

    library()
    from nnsight.modeling.transformers import TransformersModel

    tokenizer = build_tokenizer(source.directory)
    require_tokenizer(source.name, tokenizer is not None)
    assert tokenizer is not None
    place = {"device": "meta"} if next(module.parameters()).is_meta else {}
    return TransformersModel(module, task="text-generation", tokenizer=tokenizer.wrapped, **place)


def _proved(opened: _Opened, dtype: str) -> Backend:
    """A backend that has proved itself against the remote module's plain run.

    Raises:
        ModelError: another dtype than the server's was asked for, or the model does not reproduce itself.
    """
    module, service = opened.module, opened.service
    d_vocab = vocabulary(module)
    tokens = probe_tokens(d_vocab, opened.n_ctx, "cpu")
    paths = {id(part): path for path, part in module.named_modules()}
    unembed = paths[id(module.get_output_embeddings())]
    chart = Chart(None, opened.layout, unembed, None)  # type: ignore[arg-type]  # what it is, its first run says
    layers = Shape.of_hugging_face(module.config).n_layers
    said, mixes = service.run(opened.net, [chart.reference(tokens), chart.weights({0, layers - 1})])
    if not bool(said["logits"].isfinite().all()):
        raise ModelError("The model's own logits are not finite.", "Its server may have loaded damaged weights: tell those who run it.")
    expected = Reference(tokens, said["logits"], d_vocab)
    width: torch.dtype = said["logits"].dtype
    n_params = sum(parameter.numel() for parameter in module.parameters())
    plain = Plain(opened.source, module, expected, opened.n_ctx, n_params, said["returns"], width, "cpu")
    info = _said_of(replace(describe_module(plain, opened.layout), remote=service.place), dtype)
    tokenizer = build_tokenizer(opened.source.directory)
    made = RemoteBackend(opened.net, Chart(info, opened.layout, unembed, said["returns"]), service, tokenizer)
    made.keep_weights(mixes["seen"])
    compare(made, expected)
    require_causal(made, expected)
    made.abilities = replace(find_abilities(made, expected, without=NOT_TRIED), gradients=False)
    return made


def _said_of(info: ModelInfo, asked: str) -> ModelInfo:
    """With what a user must know of a server's choices."""
    if info.remote is None:
        return info
    if asked not in ("float32", info.dtype):
        raise ModelError(f"dtype {asked!r} was asked for, and NDIF computes {info.name} in {info.dtype}.", f"Ask for {info.dtype}.")
    weights = f"computed at {info.remote} in {info.dtype}: its weights were not seen here, and are named by hub name and commit"
    return replace(info, warnings=(*info.warnings, weights))
