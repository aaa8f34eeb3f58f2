"""The backend contract on a model that computes on NDIF, or in nnsight's simulation of it.

Each run is one request. Token ids, residual streams and reference values are sent; the sites that
are read, and logits at the answer positions, come back. Keys and values are not reused, and the
last layer is not restricted to the answer position, because either would send more than it saves.
There are no gradients, because NDIF runs what is sent apart from the model.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.backends.hardware.placement import resident_weight_bytes
from discovery.backends.info import Abilities
from discovery.backends.nnsight.layout import require_pattern_path
from discovery.backends.remote.jobs import JobBuilder
from discovery.backends.remote.service import Service
from discovery.errors import MeasurementError
from discovery.interventions import Edit
from discovery.sites import Site
from discovery.tasks.pairs import Tokenizer

# Bytes of W_O that one request may return; it then brings several layers of a small model.
MAX_WEIGHT_BYTES = 64 * 2**20
NO_REMOTE_GRADIENTS = (
    "A remote model gives no gradients: NDIF runs what is sent apart from the model."
)


class RemoteBackend(Backend):
    """A module that is traced elsewhere; it sends one request at a time."""

    # A request takes seconds whatever its size, and a server has a GPU.
    tokens_per_batch = 131072

    def __init__(
        self, model: Any, job_builder: JobBuilder, service: Service, tokenizer: Tokenizer | None
    ) -> None:
        """Wrap a traced module.

        Args:
            model: nnsight's wrapper of the module, whose weights need not be on this machine.
            job_builder: writes the jobs for this model.
            service: runs the jobs.
            tokenizer: the model's tokenizer.
        """
        self.model = model
        self.job_builder = job_builder
        self.service = service
        self.tokenizer = tokenizer
        self.info = job_builder.info
        self.abilities = Abilities(pattern=True, gradients=False)  # until they have been tried
        self._head_weights: dict[int, Tensor] = {}
        self._lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")  # what comes back is worked on here

    @property
    def resident_weight_bytes(self) -> int:
        return resident_weight_bytes(self.model._module, self.device)  # 0 for a server's model

    def max_rows_by_work(self, macs: int) -> int:
        return sys.maxsize  # the server's speed is not known; a request waits in its queue anyway

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
        self.check_run(batch, reads, edits, keep_prefix=keep_prefix, grad=grad)
        sites = [*reads, *(edit.site for edit in edits)]
        require_pattern_path(self.job_builder.layout, self.info.architecture, sites)
        if keep_prefix or batch.prefix is not None or batch.last_position_only:
            raise RuntimeError("keys, values and restricted runs are not sent to a server")
        answer = self._send(self.job_builder.build_walk(batch, reads, edits))
        activations = {site: answer["seen"][reads.index(site)] for site in reads}
        return BatchResult(answer.get("logits"), activations)

    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        if layer not in self._head_weights:
            info = self.info
            layer_bytes = info.n_heads * info.d_head * info.d_model * info.itemsize
            count = max(1, MAX_WEIGHT_BYTES // layer_bytes)
            missing = [n for n in range(layer, info.n_layers) if n not in self._head_weights]
            answer = self._send(self.job_builder.build_weights(missing[:count]))
            self.store_head_weights(answer["seen"])
        return self._head_weights[layer]

    def store_head_weights(self, weights: Mapping[int, Tensor]) -> None:
        """Keep W_O of some layers; a server returns [head·d_head d_model] for each."""
        shape = (self.info.n_heads, self.info.d_head, self.info.d_model)
        self._head_weights |= {layer: weight.reshape(shape) for layer, weight in weights.items()}

    def _send(self, job: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            return self.service.run(self.model, [job])[0]
