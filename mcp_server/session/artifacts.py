"""What a result leaves to be fetched: full grids and pictures, in memory, the oldest first to go.

A result's id says what was measured, so the same call gives the same id.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict

from mcp_server.errors import ServerError

MAX_BYTES = 128 * 2**20


class ArtifactStore:
    """Files of results by id and name."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._files: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def add(self, result_id: str, name: str, content: bytes) -> str:
        """Keep a file; returns its URI."""
        with self._lock:
            self._files[result_id, name] = content
            self._files.move_to_end((result_id, name))
            while sum(map(len, self._files.values())) > self._max_bytes and len(self._files) > 1:
                self._files.popitem(last=False)
        return f"scout://results/{result_id}/{name}"

    def get(self, result_id: str, name: str) -> bytes:
        """A file that was kept.

        Raises:
            ServerError: where it is not there any more.
        """
        with self._lock:
            if (result_id, name) not in self._files:
                raise ServerError(
                    f"There is no result {result_id}/{name} here now.",
                    "Make the same call again: it gives the same link.",
                )
            return self._files[result_id, name]

    def list_ids(self) -> list[str]:
        """Every result, the newest last."""
        with self._lock:
            return list(dict.fromkeys(result for result, _ in self._files))


def make_result_id(*parts: object) -> str:
    """A readable id: what was measured, on what, and how; its end tells apart what the words, which are cut, may not."""
    words = [
        re.sub(r"[^A-Za-z0-9._]+", "_", str(part)).strip("_")[:60] for part in parts if str(part)
    ]
    return "-".join([*words, hashlib.sha256(repr(parts).encode()).hexdigest()[:8]])
