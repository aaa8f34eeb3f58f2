"""The console script `circuit-scout`, and `python -m mcp_server`.

`serve` runs here, since the server is above the science. Every other command belongs to `discovery.cli`, which is imported only once
one is to run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `circuit-scout`; by default those of this process.

    Returns:
        The exit status: 0 completed, 2 bad input, 130 interrupted, 1 a bug.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    command = next((n for n, word in enumerate(words) if not word.startswith("-")), None)
    if command is not None and words[command] == "serve":
        from mcp_server.server.command import run_serve as serve

        return serve([*words[:command], *words[command + 1 :]])
    from discovery.cli import main as command_line

    return command_line(words)


if __name__ == "__main__":
    raise SystemExit(main())
