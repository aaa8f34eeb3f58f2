"""The console script `circuit-scout`, and `python -m mcp_server`.

`serve`, `setup` and `new` run here, because the server is above `discovery`. Every other command
belongs to `discovery.cli`, which is imported only if one of them is to run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status.

    Args:
        argv: the words after `circuit-scout`; by default those of this process.

    Returns:
        0 if the command completed, 2 for bad input, 3 if `runs verify` found that a record does
        not hold, 130 if it was interrupted, 1 for a bug. `serve` over standard input and output
        does not return: it ends the process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    place = next((n for n, word in enumerate(words) if not word.startswith("-")), None)
    if place is not None:
        command = words[place]
        others = [*words[:place], *words[place + 1 :]]
        if command == "serve":
            from mcp_server.server.command import run_serve

            return run_serve(others)
        if command == "setup":
            from mcp_server.setup.command import run_setup

            return run_setup(others, _serves_stdio)
        if command == "new":
            from mcp_server.setup.study_folder import run_new

            return run_new(others)
    from discovery import cli

    return cli.main(words)


def _serves_stdio(words: Sequence[str]) -> bool:
    """Return whether `serve` with these words serves over standard input and output.

    Raises:
        UsageError: if a word is not allowed.
    """
    from mcp_server.server.command import parse_serve_arguments

    return parse_serve_arguments(words)[1] is None


if __name__ == "__main__":
    raise SystemExit(main())
