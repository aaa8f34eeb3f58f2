"""Freed memory that the C library keeps, given back before a process is seen to hold more than it may.

glibc puts blocks of up to 32 MB into a heap, which tears as tensors of many sizes come and go: it holds up to twice what is in use (seen
with GPT-NeoX). A process is judged by what it holds. Returning all of it after each batch would cost a twentieth of the time, so
it is done only where there is much of it.
"""

from __future__ import annotations

import psutil

from discovery.backends.memory import trim_heap

GROWN = 50  # percent of a limit, beyond which what is kept is given back
AGAIN = 5  # percent of it, by which a process that truly holds more has to grow before that is tried anew


class Heap:
    """Watches how much a process holds more than when the watch began."""

    def __init__(self, limit: int) -> None:
        """Begin.

        Args:
            limit: bytes by which the process should not grow.
        """
        self._process = psutil.Process()
        self._again = limit * AGAIN // 100
        self._most = self._held() + limit * GROWN // 100

    def tidy(self) -> None:
        """Give back what is kept, where it is time to."""
        if self._held() > self._most:
            trim_heap()
            self._most = max(self._most, self._held() + self._again)

    def _held(self) -> int:
        return int(self._process.memory_info().rss)
