"""Answers that took long, kept on disk: one file for each fingerprint of a question."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.errors import StoreError
from discovery.graph.strict_json import dumps
from discovery.store.directory import default_cache_dir
from discovery.store.files import read_json, write_json

CACHE_VERSION = 2  # form of the answers; another number makes old answers unknown


@dataclass(frozen=True)
class DiskCache:
    """The file that holds the answer to one question.

    Attributes:
        path: the file.
        fingerprint: sha256 of everything that the answer depends on.
    """

    path: Path
    fingerprint: str

    @classmethod
    def of(
        cls, kind: str, question: Mapping[str, Any], folder: Path | str | None = None
    ) -> DiskCache:
        """Return the cache of a question.

        Args:
            kind: the kind of question, which is also the name of its default folder.
            question: everything that the answer depends on.
            folder: where answers are kept; the default is in the user's cache directory.
        """
        content = dumps({"kind": kind, "version": CACHE_VERSION, **question}, sort_keys=True)
        fingerprint = hashlib.sha256(content.encode("ascii")).hexdigest()
        directory = default_cache_dir() / kind if folder is None else Path(folder).expanduser()
        return cls(directory / f"{fingerprint}.json", fingerprint)

    def load(self) -> Any | None:
        """Return the kept answer, or None if there is none or its file is damaged."""
        try:
            return read_json(self.path) if self.path.is_file() else None
        except StoreError:
            return None

    def save(self, answer: Mapping[str, Any]) -> None:
        """Write the answer in one step, so that a reader never sees half of it.

        Raises:
            StoreError: if the file cannot be written.
        """
        write_json(self.path, answer)
