"""The memory that models use: how much is free, how much was used, and errors when none is left."""

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
from discovery.errors import DiscoveryError, MemoryLimitError, first_line


def read_free_memory(device: torch.device | str) -> int:
    """Return the free bytes of a GPU's memory, or of this machine's for every other device."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    allowed = containers.read_container_memory()
    return available if allowed is None else min(available, allowed)


def release_memory() -> None:
    """Free the memory of objects that nothing refers to any more.

    The parts of a model refer to one another, so that only the garbage collector frees them; torch
    and the C library then keep freed memory for themselves until they are asked for it.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return freed memory that the C library keeps to the system (Linux only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


MAX_KEPT_BYTES = 32 * 2**20  # that a job may leave with the process without being trimmed


class MemoryWatch:
    """Gives back to the system what a job has left behind.

    Memory is compared with what the process held when the job began, or after memory was returned
    the last time if that was less, so that what many small jobs leave behind is returned too.
    """

    _after_last_return: int | None = None

    def __init__(self) -> None:
        """Note the memory that the process holds now."""
        self._resident_before = read_resident_memory()

    def return_growth(self) -> None:
        """Return freed memory if the process has grown by more than `MAX_KEPT_BYTES`.

        The garbage collector takes longer than asking the C library, so it runs only if that does
        not suffice.
        """
        if torch.cuda.is_available():
            unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            if unused > MAX_KEPT_BYTES:
                torch.cuda.empty_cache()
        if not self._has_grown():
            return
        trim_heap()
        if self._has_grown():
            release_memory()
        MemoryWatch._after_last_return = read_resident_memory()

    def _has_grown(self) -> bool:
        lowest = self._resident_before
        if self._after_last_return is not None:
            lowest = min(lowest, self._after_last_return)
        return read_resident_memory() > lowest + MAX_KEPT_BYTES


def read_resident_memory() -> int:
    """Return the bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def read_peak_memory() -> int:
    """Return the most bytes that this process has used: of the GPU if there is one, else of RAM."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts kilobytes


def is_out_of_memory(fault: Exception) -> bool:
    """Return whether an exception says that memory ran out.

    torch has an exception class for this on cuda only; on cpu and mps it raises a RuntimeError
    whose text says so.
    """
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or any(
        words in str(fault)
        for words in ("can't allocate memory", "not enough memory", "backend out of memory")
    )


@contextmanager
def convert_out_of_memory(cause: str, cure: str) -> Iterator[None]:
    """Raise an error with this cause and cure if memory runs out inside the `with` block.

    Raises:
        MemoryLimitError: if memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if isinstance(fault, DiscoveryError) or not is_out_of_memory(fault):
            raise
        raise MemoryLimitError(cause, cure, detail=first_line(fault)) from None
