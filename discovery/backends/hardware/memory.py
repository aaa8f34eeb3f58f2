"""Memory where a model runs: how much is free, how much was held, and what it looks like when it runs out."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from discovery.backends.hardware import containers
from discovery.errors import DiscoveryError, MemoryLimitError


def read_free_memory(device: torch.device | str) -> int:
    """Bytes that are free where a model runs."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available, left = int(psutil.virtual_memory().available), containers.read_container_memory()
    return available if left is None else min(available, left)


def release_memory() -> None:
    """Let go of what nobody holds any more: a model's parts refer to one another, and a device and the C library keep what was freed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return to the system what the C library keeps of freed memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def read_peak_memory() -> int:
    """The most memory this process has held, in bytes (on cuda: on the device)."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def is_out_of_memory(fault: Exception) -> bool:
    """Whether memory ran out: only cuda has an exception of its own for it, cpu and mps say so in a RuntimeError."""
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or any(
        words in str(fault)
        for words in ("can't allocate memory", "not enough memory", "backend out of memory")
    )


@contextmanager
def convert_out_of_memory(cause: str, cure: str) -> Iterator[None]:
    """Say this where memory runs out in here.

    Raises:
        MemoryLimitError: where it does.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if isinstance(fault, DiscoveryError) or not is_out_of_memory(fault):
            raise
        raise MemoryLimitError(cause, cure, detail=str(fault).partition("\n")[0]) from None
