"""What is freed is given back where much of it is kept, and not after every batch."""

from __future__ import annotations

import sys

import pytest
import torch

from discovery.backends.memory import trim_heap
from discovery.engine import heap as module
from discovery.engine.heap import Heap

MB = 10**6


def test_it_is_given_back_only_beyond_its_share_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    held, given = [100 * MB], list[int]()
    monkeypatch.setattr(Heap, "_held", lambda _: held[0])
    monkeypatch.setattr(module, "trim_heap", lambda: given.append(held[0]))
    heap = Heap(100 * MB)
    held[0] += 49 * MB
    heap.tidy()
    assert given == []
    held[0] += 2 * MB
    heap.tidy()
    assert given == [151 * MB]
    heap.tidy()  # what is truly held is not tried for again, until there is more of it
    assert given == [151 * MB]
    held[0] += 6 * MB
    heap.tidy()
    assert given == [151 * MB, 157 * MB]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own call")
def test_what_the_library_keeps_goes_back_to_the_system() -> None:
    """Small blocks with one in a hundred kept: the heap cannot shrink by itself."""
    before = Heap(MB)._held()
    blocks = [torch.ones(2500) for _ in range(6000)]
    kept = blocks[::100]
    grown = Heap(MB)._held() - before
    del blocks
    trim_heap()
    assert grown > 40 * MB
    assert Heap(MB)._held() - before < grown / 2
    assert len(kept) == 60
