"""What a server sends back, read and held against the jobs that it answers, before anything is computed from it."""

from __future__ import annotations

from collections.abc import Callable
from json import JSONDecodeError
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError


class UnreadableError(Exception):
    """What came is no answer."""


def readable(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
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
        except (EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError, UnpicklingError, ZstdError) as fault:
            raise UnreadableError(f"{type(fault).__name__}: {fault}") from fault

    return reading


def require_whole(jobs: list[dict[str, Any]], found: Any) -> None:
    """Check that each job has an answer, and each answer what the job asks for.

    Raises:
        UnreadableError: where it has not.
    """
    if not isinstance(found, list) or len(found) != len(jobs):
        raise UnreadableError(f"no list of {len(jobs)} answers came back")
    for job, one in zip(jobs, found, strict=True):
        if not isinstance(one, dict) or not isinstance(one.get("seen"), dict):
            raise UnreadableError("an answer holds nothing that was seen")
        seen, wanted = one["seen"], _wanted(job)
        if lacking := sorted(wanted - {number for number, tensor in seen.items() if isinstance(tensor, torch.Tensor)}):
            raise UnreadableError(f"an answer lacks {len(lacking)} of {len(wanted)} activations")
        if _rows(job) is not None and (not isinstance(logits := one.get("logits"), torch.Tensor) or len(logits) != _rows(job)):
            raise UnreadableError(f"an answer lacks the logits of {_rows(job)} rows")
        if job["work"] == "reference" and "returns" not in one:
            raise UnreadableError("an answer does not say how a block hands on the residual stream")


def _wanted(job: dict[str, Any]) -> set[int]:
    """The numbers of what is to be seen."""
    if job["work"] == "walk":
        return {step["read"] for step in job["steps"] if step["read"] is not None}
    return {number for number, _ in job["linears"]} if job["work"] == "weights" else set()


def _rows(job: dict[str, Any]) -> int | None:
    """How many rows of logits there are to be; None where none are."""
    if job["work"] == "walk":
        return None if job["last"] is None else len(job["last"])
    return len(job["arguments"]["input_ids"]) if job["work"] == "reference" else None
