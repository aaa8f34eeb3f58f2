"""Rows of words as columns of text."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], indent: int = 2) -> str:
    """The rows under one another, each column as wide as its widest cell, the last one ragged.

    >>> columns([("ioi", "names"), ("induction", "copies")], indent=0).splitlines()
    ['ioi        names', 'induction  copies']
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(" " * indent + line for line in lines)
