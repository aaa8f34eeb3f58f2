"""The parser of the command line: `circuit-scout COMMAND [VERB] …`.

Each command has a module of its own in `commands`, which adds its flags and runs it.
`circuit-scout` without a command prints the help. A command such as `runs` without a verb lists
what there is. Flags are never abbreviated.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NoReturn

from discovery.cli.arguments import UsageError
from discovery.cli.commands import discover, doctor, models, runs, sae, tasks
from discovery.cli.console import Console
from discovery.cli.look import command as look

PROGRAM_NAME = "circuit-scout"
_ABOUT = "Find the circuit behind a language model's behaviour, and test whether the claim holds."
_STATUS = (
    "Exit status: 0 completed, whatever the verdict; 2 bad input; 3 `runs verify` found that the "
    "record does not hold; 130 interrupted (the finished part is kept and can be resumed); 1 a "
    "bug. Results go to standard output, progress and messages to standard error."
)
_SERVER_COMMANDS = {
    "setup": "write the server into the configurations of your coding assistants",
    "new": "make a folder for a study of your own",
    "serve": "serve the tools to a coding assistant over MCP",
}
_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)


class CommandParser(argparse.ArgumentParser):
    """A parser that raises an error with a cause and a fix instead of exiting."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise UsageError for a message of argparse."""
        if match := _CHOICE.search(message):
            allowed = re.findall(r"[a-z]+", match[2])
            raise UsageError(
                f"{self.prog} has no {match[1]!r}; it has {', '.join(allowed)}.",
                f"{_suggestion(match[1], allowed)}See `{self.prog} --help`.",
            )
        raise UsageError(f"{message[0].upper()}{message[1:]}.", f"See `{self.prog} --help`.")

    def print_help(self, file: object = None) -> NoReturn:
        """Raise TextRequested with the help, which is then printed like any result."""
        raise TextRequested(self.format_help().rstrip())

    def reject_words(self, words: Sequence[str]) -> NoReturn:
        """Raise UsageError for words that this parser does not take."""
        flags = re.findall(r"--[a-z][a-z-]*", self.format_help())
        raise UsageError(
            f"{self.prog} does not take {' '.join(words)}.",
            f"{_suggestion(words[0].partition('=')[0], flags)}See `{self.prog} --help`.",
        )


class _VersionAction(argparse.Action):
    """The action of --version. It looks up the version only when the flag is given."""

    def __call__(self, *_: Any) -> NoReturn:
        raise TextRequested(f"{PROGRAM_NAME} {metadata.version(PROGRAM_NAME)}")


class TextRequested(Exception):  # noqa: N818  (an answer, not an error)
    """The command line asks for a text that the parser knows: the help or the version.

    Attributes:
        text: the text to print.
    """

    def __init__(self, text: str) -> None:
        self.text = text


def parse_command_line(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Args:
        words: the words after `circuit-scout`.

    Returns:
        The values of the flags; `run`, the function of the command; and `command`, the line as it
        would be typed.

    Raises:
        UsageError: if the command line is not valid.
    """
    parser = build_parser()
    command = shlex.join([PROGRAM_NAME, *words])
    try:
        args, unknown_words = parser.parse_known_args(words)
        if args.run is None and not unknown_words:
            parser.print_help()
    except TextRequested as request:
        return argparse.Namespace(
            run=_print_text(request.text), verbose=False, quiet=False, command=command
        )
    if unknown_words:
        args.parser.reject_words(unknown_words)
    if args.verbose and args.quiet:
        raise UsageError("-v and -q cannot be combined.", "Give one of them.")
    args.command = command
    return args


def build_parser() -> CommandParser:
    """Build the parser with all commands."""
    parser = CommandParser(prog=PROGRAM_NAME, description=_ABOUT, epilog=_STATUS)
    parser.add_argument(
        "--version", action=_VersionAction, nargs=0, help="print the version and exit"
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show single decisions, and the traceback of a bug",
    )
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="show no progress and no notes: only the result, and errors",
    )
    parser.set_defaults(run=None, parser=parser)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=CommandParser
    )
    for command in (discover, tasks, runs, models, look, sae, doctor):
        command.register(commands, [_verbosity_flags()])
    # mcp_server runs these. They are added here so that the help lists them.
    for name, text in _SERVER_COMMANDS.items():
        commands.add_parser(name, add_help=False, help=text)
    return parser


def _verbosity_flags() -> argparse.ArgumentParser:
    """Return a parent parser with -v and -q, so that they may also stand after the command."""
    parent = argparse.ArgumentParser(add_help=False)
    for names, text in (
        (("-v", "--verbose"), "show single decisions, and the traceback of a bug"),
        (("-q", "--quiet"), "show only the result, and errors"),
    ):
        parent.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text)
    return parent


def _print_text(text: str) -> Callable[[argparse.Namespace, Console], None]:
    return lambda args, console: console.write_result(text)


def _suggestion(word: str, allowed: Sequence[str]) -> str:
    similar = difflib.get_close_matches(word, allowed, n=1)
    return f"Did you mean {similar[0]}? " if similar else ""
