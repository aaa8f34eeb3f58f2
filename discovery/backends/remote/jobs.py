"""A batch, what is read of it and what is changed in it, as the plain data that `backends.shipped` works on elsewhere.

Small, for it goes over a network: a residual stream or a reference value is sent as its different vectors and where each stands (the rows
of a sweep differ in one position each), of an edit by index only the pairs that the batch has, and prompts as token ids.

What a server sends back, read and held against the jobs that it answers, before anything is computed from it.
"""

from __future__ import annotations

from collections import defaultdict
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
from discovery.backends.nnsight.layout import SHARED_PATTERN, WRAPPED_PATTERN, ModuleLayout
from discovery.backends.nnsight.traced_model import QKV
from discovery.interventions import Edit
from discovery.sites import Site


@dataclass(frozen=True)
class JobBuilder:
    """Where a model's sites are, by name.

    Attributes:
        unembed: path of its last Linear.
        returns: length of the tuple that a block returns, or None where it returns a tensor.
    """

    info: ModelInfo
    layout: ModuleLayout
    unembed: str
    block_tuple_length: int | None

    def build_walk(
        self, batch: Batch, reads: Sequence[Site], edits: Sequence[Edit]
    ) -> dict[str, Any]:
        """One run. What is read is then found under its number in `reads`."""
        patterns = {
            site.layer
            for site in (*reads, *(edit.site for edit in edits))
            if site.kind == "pattern"
        }
        opened = [
            self._path(layer, str(self.layout.pattern).partition(".source.")[0])
            for layer in sorted(patterns)
        ]
        return {
            "work": "walk",
            "arguments": self.build_arguments(batch.tokens[:1] if batch.joins else batch.tokens),
            "open": opened
            if self.layout.pattern is not None and ".source." in self.layout.pattern
            else [],
            "residual": pack_tensor(batch.residual),
            "returns": self.block_tuple_length,
            "skip": [self._path(layer) for layer in range(batch.start)],
            "steps": self._steps(batch, reads, edits),
            "last": None
            if batch.stop is not None or batch.answer_position is None
            else batch.answer_position.detach().cpu().clone(),
            "unembed": self.unembed,
            "columns": None if batch.columns is None else batch.columns.detach().cpu().clone(),
        }

    def build_reference(self, tokens: Tensor) -> dict[str, Any]:
        """The model's own logits."""
        return {
            "work": "reference",
            "arguments": self.build_arguments(tokens),
            "block": self._path(0),
        }

    def build_weights(self, layers: Collection[int]) -> dict[str, Any]:
        """W_O of some layers."""
        linears = [(layer, self._path(layer, self.layout.out)) for layer in sorted(layers)]
        return {
            "work": "weights",
            "arguments": self.build_arguments(torch.zeros(1, 1, dtype=torch.long)),
            "linears": linears,
        }

    def build_arguments(self, tokens: Tensor) -> dict[str, Any]:
        """What the model is called with."""
        return {"input_ids": tokens.detach().cpu().clone(), "use_cache": False}

    def _path(self, layer: int, part: str = "") -> str:
        return ".".join(word for word in (self.layout.blocks, str(layer), part) if word)

    def _steps(
        self, batch: Batch, reads: Sequence[Site], edits: Sequence[Edit]
    ) -> list[dict[str, Any]]:
        """Every site to stop at, in forward order."""
        by_site: dict[Site, list[Edit]] = defaultdict(list)
        for edit in edits:
            by_site[edit.site].append(edit)
        middles = {
            site.layer for site in by_site if site.kind == "resid_mid"
        }  # is changed through what it is the sum of
        enters = (
            batch.start < self.info.n_layers
            and batch.residual is not None
            and (batch.start == 0 or batch.after_attention)
        )
        kept = middles | ({batch.start} if batch.after_attention else set())
        starts = kept | set(batch.joins) | ({batch.start} if enters else set())
        wanted = {
            *reads,
            *by_site,
            *(Site("resid_pre", n) for n in starts),
            *(Site("attn_out", n) for n in middles),
        }
        steps = []
        for site in sorted(wanted, key=forward_order):
            here = site == Site("resid_pre", batch.start)
            steps.append(
                {
                    **self.place(site),
                    "layer": site.layer,
                    "shape": tuple(batch.tokens.shape),
                    "cut": self._cut(site),
                    "enter": here and enters,
                    "join": pack_tensor(batch.joins.get(site.layer))
                    if site.kind == "resid_pre"
                    else None,
                    "edits": []
                    if site.kind == "resid_mid"
                    else [pack_edit(edit) for edit in by_site.get(site, ())],
                    "middle": [pack_edit(e) for e in by_site.get(Site("resid_mid", site.layer), ())]
                    if site.kind == "attn_out"
                    else [],
                    "keep": site.kind == "resid_pre" and site.layer in kept,
                    "read": reads.index(site) if site in reads else None,
                    "skip": self._path(site.layer, self.layout.attn)
                    if here and batch.after_attention
                    else None,
                }
            )
        return steps

    def place(self, site: Site) -> dict[str, Any]:
        """Which module, and which side of it, carries a site. Of several paths the first is taken that there is."""
        layout = self.layout
        inputs, outputs = (
            {"z": layout.out, "resid_mid": layout.resid_mid},
            {"attn_out": layout.attn_out, "mlp_out": layout.mlp_out},
        )
        if site.kind in QKV:
            part = layout.qkv[QKV.index(site.kind) % len(layout.qkv)]
        elif site.kind in ("resid_pre", "resid_post"):
            part = ""
        else:
            part = str(
                layout.pattern if site.kind == "pattern" else {**inputs, **outputs}[site.kind]
            )
        side = "input" if site.kind == "resid_pre" or site.kind in inputs else "output"
        parts = (
            [part, part.removesuffix(SHARED_PATTERN) + WRAPPED_PATTERN]
            if part.endswith(SHARED_PATTERN)
            else [part]
        )
        return {"paths": [self._path(site.layer, one) for one in parts], "side": side}

    def _cut(self, site: Site) -> dict[str, Any] | None:
        """How a site's heads lie in what carries it."""
        info, fused = self.info, site.kind != "z" and len(self.layout.qkv) == 1
        if site.kind not in ("z", *QKV):
            return None
        ends = (
            [info.n_heads * info.d_head, (info.n_heads + info.n_kv_heads) * info.d_head]
            if fused and not self.layout.by_head
            else None
        )
        return {
            "d_head": info.d_head,
            "by_head": fused and self.layout.by_head,
            "ends": ends,
            "slot": QKV.index(site.kind) if fused else 0,
        }


def pack_edit(edit: Edit) -> dict[str, Any]:
    """A change as plain data."""
    value, index = edit.value, edit.index
    if index is not None:
        used, index = torch.unique(index, return_inverse=True)
        value = value[used]
    return {
        "operation": edit.operation,
        "value": pack_tensor(value),
        "where": None if edit.where is None else edit.where.detach().cpu().clone(),
        "index": None if index is None else index.cpu(),
    }


def pack_tensor(tensor: Tensor | None) -> Any:
    """A tensor, or its different vectors and where each stands, where those are fewer."""
    if tensor is None or tensor.ndim < 2:
        return None if tensor is None else tensor.detach().cpu().clone()
    vectors = tensor.detach().cpu().reshape(-1, tensor.shape[-1]).contiguous()
    number: dict[bytes, int] = {}
    index = [
        number.setdefault(row.tobytes(), len(number)) for row in vectors.view(torch.uint8).numpy()
    ]
    if 2 * len(number) > len(index) or not index:
        return tensor.detach().cpu().clone()
    first = {found: place for place, found in reversed(list(enumerate(index)))}
    return {
        "rows": vectors[[first[n] for n in range(len(number))]].clone(),
        "index": torch.tensor(index).reshape(tensor.shape[:-1]),
    }


class UnreadableAnswerError(Exception):
    """What came is no answer."""


def wrap_reader(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """nnsight's reading of a message or a result, whose faults are told from those of the code that was sent.

    Raises:
        UnreadableError: from what is returned, where the bytes are damaged or something else than expected.
    """
    from zstandard import ZstdError

    def reading(content: Any) -> Any:
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

    return reading


def require_complete_answers(jobs: list[dict[str, Any]], answers: Any) -> None:
    """Check that each job has an answer, and each answer what the job asks for.

    Raises:
        UnreadableError: where it has not.
    """
    if not isinstance(answers, list) or len(answers) != len(jobs):
        raise UnreadableAnswerError(f"no list of {len(jobs)} answers came back")
    for job, one in zip(jobs, answers, strict=True):
        if not isinstance(one, dict) or not isinstance(one.get("seen"), dict):
            raise UnreadableAnswerError("an answer holds nothing that was seen")
        seen, wanted = one["seen"], _requested_sites(job)
        if lacking := sorted(
            wanted - {number for number, tensor in seen.items() if isinstance(tensor, torch.Tensor)}
        ):
            raise UnreadableAnswerError(
                f"an answer lacks {len(lacking)} of {len(wanted)} activations"
            )
        if _logit_rows(job) is not None and (
            not isinstance(logits := one.get("logits"), torch.Tensor)
            or len(logits) != _logit_rows(job)
        ):
            raise UnreadableAnswerError(f"an answer lacks the logits of {_logit_rows(job)} rows")
        if job["work"] == "reference" and "returns" not in one:
            raise UnreadableAnswerError(
                "an answer does not say how a block hands on the residual stream"
            )


def _requested_sites(job: dict[str, Any]) -> set[int]:
    """The numbers of what is to be seen."""
    if job["work"] == "walk":
        return {step["read"] for step in job["steps"] if step["read"] is not None}
    return {number for number, _ in job["linears"]} if job["work"] == "weights" else set()


def _logit_rows(job: dict[str, Any]) -> int | None:
    """How many rows of logits there are to be; None where none are."""
    if job["work"] == "walk":
        return None if job["last"] is None else len(job["last"])
    return len(job["arguments"]["input_ids"]) if job["work"] == "reference" else None
