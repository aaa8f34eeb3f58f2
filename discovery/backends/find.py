"""Where a model is: the bundled one, a directory, or a hub name whose files are fetched."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from discovery.backends.native import NATIVE_CONFIG
from discovery.backends.source import Source, fetch
from discovery.errors import ModelError


def find_source(name: str, *, weights: bool = True) -> Source:
    """Where a model is; of a hub name its files are fetched, without the weights where they are not wanted.

    Raises:
        ModelError: where the name is no model directory, and not on the hub either.
    """
    if name == "bundled":
        bundled = Path(str(importlib.resources.files("discovery.backends") / "bundled"))
        if not (bundled / "config.json").is_file():
            raise ModelError("This installation lacks the bundled model.", "Install the package again, or give a model directory.")
        return Source(name, bundled)
    try:
        directory = Path(name).expanduser()
    except RuntimeError:
        raise ModelError(f"{name!r} names a user that does not exist.", "Write the path out.") from None
    if directory.is_dir():
        if not any((directory / file).is_file() for file in ("config.json", NATIVE_CONFIG)):
            raise ModelError(
                f"{name!r} is a directory without config.json or tl_config.json.",
                "Give the directory that save_pretrained wrote, or one in TransformerLens's native format.",
            )
        return Source(name, directory)
    if directory.is_file():
        raise ModelError(f"{name!r} is a file.", "Give the directory that holds config.json and the weights.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"The directory {name!r} does not exist.", "Check the path.")
    return fetch(name, weights=weights)
