"""Which GGUF files are models, and which files are the parts of one. This module needs no torch.

`gguf-split` cuts a large model into files named `model-00001-of-00003.gguf`. All parts together are
one model, whose name is that of the first part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from discovery.errors import ModelError

GGUF_SUFFIX = ".gguf"
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


def is_gguf_name(path: Path) -> bool:
    """Return whether a file is named as a GGUF file."""
    return path.suffix.lower() == GGUF_SUFFIX


def list_gguf_models(directory: Path) -> list[Path]:
    """Return the GGUF models in a directory, by name; of a model in parts, the first part there.

    The directories below are not searched. A directory that cannot be read holds none.
    """
    models: dict[str, Path] = {}
    try:
        files = sorted(path for path in directory.iterdir() if is_gguf_name(path))
    except OSError:
        return []
    for path in files:
        if path.is_file():
            part = _PART_NAME.fullmatch(path.name)
            name = path.name if part is None else f"{part['stem']}-of-{part['count']}"
            models.setdefault(name, path)
    return list(models.values())


def find_gguf_parts(path: Path) -> tuple[Path, ...]:
    """Return the files that hold a GGUF model, in order: the file alone, or all its parts.

    Args:
        path: the file, or any part of a model in parts.

    Raises:
        ModelError: if parts are missing; the message names them.
    """
    parts = tuple(_name_parts(path))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelError(
            f"{path.name} is one of {len(parts)} parts of a model, and {len(missing)} of them "
            f"{'is' if len(missing) == 1 else 'are'} not in its directory: {', '.join(missing)}.",
            "Put all parts there, or merge them where they are: gguf-split --merge first-part.gguf "
            "merged.gguf.",
        )
    return parts


def _name_parts(path: Path) -> Iterator[Path]:
    """Yield the paths of all parts of a model, whether they exist or not."""
    part = _PART_NAME.fullmatch(path.name)
    if part is None:
        yield path
        return
    for number in range(1, int(part["count"]) + 1):
        yield path.with_name(f"{part['stem']}-{number:05d}-of-{part['count']}{path.suffix}")
