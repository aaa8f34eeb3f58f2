"""The command line: `circuit-scout discover | tasks | runs | models | sae`.

Results go to standard output and everything else to standard error, whatever the libraries below print: see
`console`. The exit status is 0 where the command completed (whatever a verdict says, and where the reader of a
pipe went away), 2 for bad input, 130 where it was interrupted and 1 for a bug: see `faults`. What a command
needs is imported by that command, so that the light ones answer at once.

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
        argv: the words after `circuit-scout`; by default those of this process.

    Returns:
        The exit status: 0 completed, 2 bad input, 130 interrupted, 1 a bug.
    """
    try:
        args = parse_command_line(sys.argv[1:] if argv is None else argv)
    except UsageError as fault:
        return report_error(fault)
    with sigterm_as_interrupt(), divert_stdout(verbose=args.verbose, quiet=args.quiet) as console:
        return run_command(args, console)
