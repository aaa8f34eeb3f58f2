"""The console script `circuit-scout`, and `python -m mcp_server`.

Every command belongs to `discovery.cli`, which is imported only once a command is to run. `serve` is to be
taken out here, before that import, since the server is above the science; until it exists no command has that name.
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
    from discovery.cli import main as command_line

    return command_line(sys.argv[1:] if argv is None else list(argv))


if __name__ == "__main__":
    raise SystemExit(main())
