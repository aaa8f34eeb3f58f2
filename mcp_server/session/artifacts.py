"""Files that results leave in memory for clients to fetch: full grids, activations and pictures.

The id of a result says what was measured, so that the same call gives the same id. When the files
take too much memory, the oldest are dropped.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict

from mcp_server.errors import ServerError

MAX_BYTES = 128 * 2**20
_MAX_WORD = 60  # characters of one part of a result's id


class ArtifactStore:
    """The files of results, by the result's id and the file's name."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._files: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def add(self, result_id: str, name: str, content: bytes) -> str:
        """Keep a file, and return its URI."""
        with self._lock:
            self._files[result_id, name] = content
            self._files.move_to_end((result_id, name))
            while sum(map(len, self._files.values())) > self._max_bytes and len(self._files) > 1:
                self._files.popitem(last=False)
        return f"scout://results/{result_id}/{name}"

    def get(self, result_id: str, name: str) -> bytes:
        """Return a file.

        Raises:
            ServerError: if it is not kept, or not any more.
        """
        with self._lock:
            if (result_id, name) not in self._files:
                raise ServerError(
                    f"There is no result {result_id}/{name} in this server's memory.",
                    "Make the same call again: it gives the same link.",
                )
            return self._files[result_id, name]

    def list_ids(self) -> list[str]:
        """Return the id of every result, the newest last."""
        with self._lock:
            return list(dict.fromkeys(result_id for result_id, _ in self._files))


def make_result_id(*parts: object) -> str:
    """Return a readable id that says what was measured, on what, and how.

    The words are cut, so the id ends with a hash that tells apart what the words may not.
    """
    words = [
        re.sub(r"[^A-Za-z0-9._]+", "_", str(part)).strip("_")[:_MAX_WORD]
        for part in parts
        if str(part)
    ]
    return "-".join([*words, hashlib.sha256(repr(parts).encode()).hexdigest()[:8]])
