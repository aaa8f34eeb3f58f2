"""Answers that took long, kept on disk: one file for each question's fingerprint, written in one step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from discovery.errors import StoreError
from discovery.graph.strict_json import dumps
from discovery.store.files import read_json, write_json

CACHE_VERSION = 2  # of what is kept
CACHE_DIR_VARIABLE = "CIRCUIT_SCOUT_CACHE_DIR"


def default_cache_dir() -> Path:
    """CIRCUIT_SCOUT_CACHE_DIR, else the user's cache directory for circuit-scout."""
    chosen = os.environ.get(CACHE_DIR_VARIABLE)
    return (
        Path(chosen).expanduser()
        if chosen
        else platformdirs.user_cache_path("circuit-scout", appauthor=False)
    )


@dataclass(frozen=True)
class DiskCache:
    """The place of one answer.

    Attributes:
        fingerprint: sha256 of everything that it depends on.
    """

    path: Path
    fingerprint: str

    @classmethod
    def of(
        cls, kind: str, question: Mapping[str, Any], folder: Path | str | None = None
    ) -> DiskCache:
        """The place of the answer to what was asked.

        Args:
            folder: where to keep answers; in the user's cache directory where None.
        """
        fingerprint = hashlib.sha256(
            dumps({"kind": kind, "version": CACHE_VERSION, **question}, sort_keys=True).encode(
                "ascii"
            )
        ).hexdigest()
        place = default_cache_dir() / kind if folder is None else Path(folder).expanduser()
        return cls(place / f"{fingerprint}.json", fingerprint)

    def load(self) -> Any | None:
        """What was kept; None where nothing was, or where the file is damaged and the answer must be found anew."""
        try:
            return read_json(self.path) if self.path.is_file() else None
        except StoreError:
            return None

    def save(self, answer: Mapping[str, Any]) -> None:
        """Write it down.

        Raises:
            StoreError: where the disk refuses.
        """
        write_json(self.path, answer)
