"""How the benchmarks print: Markdown tables."""

from __future__ import annotations


def format_header(*columns: str) -> str:
    """The first two lines of a table."""
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
