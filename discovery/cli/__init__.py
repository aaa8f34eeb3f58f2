"""The command line: `circuit-scout discover | tasks | runs | models | look | sae | doctor`.

Results go to standard output. Everything else goes to standard error, also what libraries print
(see `console`). The exit status is 0 if the command completed, whatever the verdict, 2 for bad
input, 3 if `runs verify` found that a record does not hold, 130 if the command was interrupted,
and 1 for a bug (see `exit_status`). A command imports what it needs only when it runs, so that
light commands answer at once. `mcp_server` runs `serve`, `setup` and `new`.

    >>> main(["tasks", "lst"])
    2
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from discovery.cli.arguments import UsageError
from discovery.cli.console import divert_stdout
from discovery.cli.exit_status import report_error, run_command, sigterm_as_interrupt
from discovery.cli.parser import parse_command_line

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `circuit-scout`. If None, those of this process.

    Returns:
        The exit status: 0 completed, 2 bad input, 3 a record that does not hold, 130 interrupted,
        1 a bug.
    """
    try:
        args = parse_command_line(sys.argv[1:] if argv is None else argv)
    except UsageError as fault:
        return report_error(fault)
    with sigterm_as_interrupt(), divert_stdout(verbose=args.verbose, quiet=args.quiet) as console:
        return run_command(args, console)
