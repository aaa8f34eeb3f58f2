"""Jobs for a server, which are plain data, and the checks of what comes back.

A job tells `remote.server_code` what to run, read and change. It is kept small, because it goes
over a network. A residual stream or a reference value is sent as its distinct vectors and where
each belongs, because the rows of a sweep differ in one position each. Of an edit by index, only the
pairs of the batch are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from discovery.backends.base import Batch, forward_order
from discovery.backends.info import ModelInfo
from discovery.backends.nnsight.layout import QKV, ModuleLayout
from discovery.interventions import Edit, edits_by_site
from discovery.sites import Site

Job = dict[str, Any]


def build_reference_job(layout: ModuleLayout, tokens: Tensor) -> Job:
    """Return a job that reads the model's own logits, and what a block returns."""
    return {
        "work": "reference",
        "arguments": _forward_arguments(tokens),
        "block": _block_path(layout, 0),
    }


def build_weights_job(layout: ModuleLayout, layers: Collection[int]) -> Job:
    """Return a job that reads W_O of some layers."""
    linears = [
        (layer, _block_path(layout, layer, layout.output_projection)) for layer in sorted(layers)
    ]
    return {
        "work": "weights",
        "arguments": _forward_arguments(torch.zeros(1, 1, dtype=torch.long)),
        "linears": linears,
    }


def _forward_arguments(tokens: Tensor) -> dict[str, Any]:
    """Return what the model is called with."""
    return {"input_ids": _copy_to_cpu(tokens), "use_cache": False}


def _block_path(layout: ModuleLayout, layer: int, path: str = "") -> str:
    """Return the path of a block, or of a module inside it."""
    return ".".join(part for part in (layout.blocks, str(layer), path) if part)


@dataclass(frozen=True)
class JobBuilder:
    """Writes the jobs for one model.

    Attributes:
        info: the model's shape.
        layout: where the model keeps its sites.
        unembed: the path of its last Linear.
        block_tuple_length: the length of the tuple that a block returns; None if it returns a
            tensor.
    """

    info: ModelInfo
    layout: ModuleLayout
    unembed: str
    block_tuple_length: int | None

    def build_walk(self, batch: Batch, reads: Sequence[Site], edits: Sequence[Edit]) -> Job:
        """Return a job that runs a batch. The answer numbers what is read as `reads` does."""
        sites = [*reads, *(edit.site for edit in edits)]
        pattern_layers = {site.layer for site in sites if site.kind == "pattern"}
        source_module = self.layout.source_traced_module
        wants_logits = batch.stop is None and batch.answer_position is not None
        return {
            "work": "walk",
            "arguments": _forward_arguments(batch.input_ids),
            "open": [self._path(layer, source_module) for layer in sorted(pattern_layers)]
            if source_module is not None
            else [],
            "residual": pack_tensor(batch.residual),
            "returns": self.block_tuple_length,
            "skip": [self._path(layer) for layer in range(batch.start)],
            "steps": self._build_steps(batch, reads, edits),
            "last": _copy_to_cpu(batch.answer_position) if wants_logits else None,
            "unembed": self.unembed,
            "columns": _copy_to_cpu(batch.columns),
        }

    def build_weights(self, layers: Collection[int]) -> Job:
        """Return a job that reads W_O of some layers."""
        return build_weights_job(self.layout, layers)

    def _path(self, layer: int, path: str = "") -> str:
        return _block_path(self.layout, layer, path)

    def _build_steps(
        self, batch: Batch, reads: Sequence[Site], edits: Sequence[Edit]
    ) -> list[dict[str, Any]]:
        """Return every site to visit, in forward order, and what to do there."""
        edits_at = edits_by_site(edits)
        # An edit of resid_mid changes attn_out, by what it changes of resid_pre + attn_out.
        edited_mid = {site.layer for site in edits_at if site.kind == "resid_mid"}
        puts_residual_in = (
            batch.start < self.info.n_layers
            and batch.residual is not None
            and (batch.start == 0 or batch.after_attention)
        )
        stored_layers = edited_mid | ({batch.start} if batch.after_attention else set())
        entry_layers = stored_layers | set(batch.joins)
        if puts_residual_in:
            entry_layers.add(batch.start)
        visits = {
            *reads,
            *edits_at,
            *(Site("resid_pre", layer) for layer in entry_layers),
            *(Site("attn_out", layer) for layer in edited_mid),
        }
        steps: list[dict[str, Any]] = []
        for site in sorted(visits, key=forward_order):
            is_input = site.kind == "resid_pre"
            is_start = is_input and site.layer == batch.start
            skips_attention = is_start and batch.after_attention
            mid_edits = edits_at.get(Site("resid_mid", site.layer), [])
            step = {
                **self._locate(site),
                "layer": site.layer,
                "shape": tuple(batch.tokens.shape),
                "cut": self._describe_heads(site),
                "enter": is_start and puts_residual_in,
                "join": pack_tensor(batch.joins.get(site.layer)) if is_input else None,
                "edits": _pack_edits([] if site.kind == "resid_mid" else edits_at.get(site, [])),
                "middle": _pack_edits(mid_edits if site.kind == "attn_out" else []),
                "keep": is_input and site.layer in stored_layers,
                "read": reads.index(site) if site in reads else None,
                "skip": self._path(site.layer, self.layout.attn) if skips_attention else None,
            }
            steps.append(step)
        return steps

    def _locate(self, site: Site) -> dict[str, Any]:
        """Return which module carries a site, and on which side.

        The first path that exists is meant.
        """
        paths, side = self.layout.locate(site.kind)
        return {"paths": [self._path(site.layer, path) for path in paths], "side": side}

    def _describe_heads(self, site: Site) -> dict[str, Any] | None:
        """Return how a site's heads lie in the module that carries it; None if it has no heads."""
        if site.kind not in ("z", *QKV):
            return None
        info = self.info
        is_fused = site.kind != "z" and len(self.layout.qkv) == 1
        is_by_head = is_fused and self.layout.qkv_is_by_head
        ends = None
        if is_fused and not is_by_head:
            ends = [info.n_heads * info.d_head, (info.n_heads + info.n_kv_heads) * info.d_head]
        return {
            "d_head": info.d_head,
            "by_head": is_by_head,
            "ends": ends,
            "slot": QKV.index(site.kind) if is_fused else 0,
        }


def _pack_edits(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    return [pack_edit(edit) for edit in edits]


def pack_edit(edit: Edit) -> dict[str, Any]:
    """Return an edit as plain data."""
    value, index = edit.value, edit.index
    if index is not None:
        used, index = torch.unique(index, return_inverse=True)
        value = value[used]
    return {
        "operation": edit.operation,
        "value": pack_tensor(value),
        "where": _copy_to_cpu(edit.where),
        "index": None if index is None else index.cpu(),
    }


def pack_tensor(tensor: Tensor | None) -> Any:
    """Return a tensor as its distinct vectors and where each belongs, if that is much smaller.

    Otherwise the tensor is copied, so that a view does not bring its whole storage along.
    """
    if tensor is None or tensor.ndim < 2:
        return _copy_to_cpu(tensor)
    vectors = tensor.detach().cpu().reshape(-1, tensor.shape[-1]).contiguous()
    numbers: dict[bytes, int] = {}
    index = [
        numbers.setdefault(row.tobytes(), len(numbers)) for row in vectors.view(torch.uint8).numpy()
    ]
    if 2 * len(numbers) > len(index) or not index:
        return _copy_to_cpu(tensor)
    first_row: dict[int, int] = {}
    for row, number in enumerate(index):
        first_row.setdefault(number, row)
    return {
        "rows": vectors[[first_row[number] for number in range(len(numbers))]].clone(),
        "index": torch.tensor(index).reshape(tensor.shape[:-1]),
    }


def _copy_to_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().cpu().clone()


class UnreadableAnswerError(Exception):
    """What a server sent is damaged, or is no answer to the jobs."""


def wrap_reader(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a function of nnsight that reads a message, so that its errors can be told apart.

    The code that was sent may raise the same kinds of error on the server.

    Raises:
        UnreadableAnswerError: (by the function that is returned) if the bytes are damaged, or hold
            something else than expected.
    """
    from zstandard import ZstdError

    def read_or_raise(content: Any) -> Any:
        try:
            return read(content)
        except (ValidationError, JSONDecodeError):
            raise
        except (
            EOFError,
            ImportError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            UnpicklingError,
            ZstdError,
        ) as fault:
            raise UnreadableAnswerError(f"{type(fault).__name__}: {fault}") from fault

    return read_or_raise


def require_complete_answers(jobs: list[Job], answers: Any) -> None:
    """Check that each job has an answer, and that each answer holds what its job asks for.

    Raises:
        UnreadableAnswerError: if something is missing.
    """
    if not isinstance(answers, list) or len(answers) != len(jobs):
        raise UnreadableAnswerError(f"no list of {len(jobs)} answers came back")
    for job, answer in zip(jobs, answers, strict=True):
        _require_complete_answer(job, answer)


def _require_complete_answer(job: Job, answer: Any) -> None:
    if not isinstance(answer, dict) or not isinstance(answer.get("seen"), dict):
        raise UnreadableAnswerError("an answer holds no activations")
    requested = _requested_numbers(job)
    tensors = {n for n, value in answer["seen"].items() if isinstance(value, Tensor)}
    if missing := requested - tensors:
        raise UnreadableAnswerError(
            f"an answer lacks {len(missing)} of {len(requested)} activations"
        )
    rows = _logit_rows(job)
    logits = answer.get("logits")
    if rows is not None and (not isinstance(logits, Tensor) or len(logits) != rows):
        raise UnreadableAnswerError(f"an answer lacks the logits of {rows} rows")
    if job["work"] == "reference" and "returns" not in answer:
        raise UnreadableAnswerError("an answer does not say what a block returns")


def _requested_numbers(job: Job) -> set[int]:
    """Return the numbers under which an answer must hold activations or weights."""
    if job["work"] == "walk":
        return {step["read"] for step in job["steps"] if step["read"] is not None}
    return {number for number, _ in job["linears"]} if job["work"] == "weights" else set()


def _logit_rows(job: Job) -> int | None:
    """Return how many rows of logits an answer must hold; None if it holds none."""
    if job["work"] == "walk":
        return None if job["last"] is None else len(job["last"])
    return len(job["arguments"]["input_ids"]) if job["work"] == "reference" else None
