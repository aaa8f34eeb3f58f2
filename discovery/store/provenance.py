"""How a run can be done again: the versions of what it was made with, its seed, device and command."""

from __future__ import annotations

import platform
from importlib import metadata

from discovery.graph import Provenance

LIBRARIES = ("circuit-scout", "torch", "transformer-lens", "transformers", "numpy", "scipy", "networkx")


def provenance(seed: int, device: str, command: str | None, created: str, more: tuple[str, ...] = ()) -> Provenance:
    """How to do a run again.

    Args:
        more: further libraries that it was made with.
    """
    versions = {"python": platform.python_version()}
    for library in (*LIBRARIES, *more):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue  # run from a checkout that is not installed: the record then lacks that line
    return Provenance(seed=seed, versions=versions, device=device, command=command, created=created)
