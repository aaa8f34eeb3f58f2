"""Free memory, and how it shows that memory ran out."""

from __future__ import annotations

import pytest
import torch

from discovery.backends.hardware.memory import is_out_of_memory, read_free_memory


def test_some_memory_is_free():
    assert read_free_memory(torch.device("cpu")) > 0


def test_what_running_out_of_memory_looks_like():
    for fault in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 9 bytes."
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ):
        assert is_out_of_memory(fault)
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("no"))


def test_a_real_allocation_that_cannot_be():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
