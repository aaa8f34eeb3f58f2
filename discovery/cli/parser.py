"""The grammar of the command line: `circuit-scout NOUN [VERB] …`.

Each noun has its own file, which adds its flags and runs it. A bare `circuit-scout` prints the help and
exits with 0; a bare noun lists what there is of it. Flags are never abbreviated.
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

PROGRAM_NAME = "circuit-scout"
_ABOUT = "Find the circuit behind a language model's behaviour, and prove it."
_STATUS = (
    "Exit status: 0 completed, whatever the verdict; 2 bad input; 130 interrupted (what was finished is kept and can be resumed); "
    "1 a bug. Results go to standard output, progress and messages to standard error."
)
_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong as cause and cure, instead of printing the usage and leaving."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raises UsageError, whatever is wrong."""
        if found := _CHOICE.search(message):
            allowed = re.findall(r"[a-z]+", found[2])
            near = difflib.get_close_matches(found[1], allowed, n=1)
            raise UsageError(
                f"{self.prog} has no {found[1]!r}; it has {', '.join(allowed)}.",
                f"{_suggestion(near)}See `{self.prog} --help`.",
            )
        raise UsageError(f"{message[0].upper()}{message[1:]}.", f"See `{self.prog} --help`.")

    def print_help(self, file: object = None) -> NoReturn:
        """Asks for the help, which is told as any result is."""
        raise TextRequested(self.format_help().rstrip())

    def reject_words(self, words: Sequence[str]) -> NoReturn:
        """Raises UsageError for words that nothing in this parser takes."""
        known = re.findall(r"--[a-z][a-z-]*", self.format_help())
        near = difflib.get_close_matches(words[0].partition("=")[0], known, n=1)
        raise UsageError(
            f"{self.prog} does not take {' '.join(words)}.",
            f"{_suggestion(near)}See `{self.prog} --help`.",
        )


class _VersionAction(argparse.Action):
    """Asks for the version, which is looked up only then."""

    def __call__(self, *_: Any) -> NoReturn:
        raise TextRequested(f"{PROGRAM_NAME} {metadata.version(PROGRAM_NAME)}")


class TextRequested(Exception):  # noqa: N818  (an answer, not an error)
    """What was asked for is a text that the grammar itself knows: the help, the version."""

    def __init__(self, text: str) -> None:
        self.text = text


def parse_command_line(words: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Args:
        words: those after `circuit-scout`.

    Returns:
        its flags; `run`, the function that does it; `command`, the line as it would be typed.

    Raises:
        UsageError: for words that are not allowed.
    """
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(words)
        if args.run is None and not rest:
            parser.print_help()
    except TextRequested as asked:
        return argparse.Namespace(
            run=_print_text(asked.text),
            verbose=False,
            quiet=False,
            command=shlex.join([PROGRAM_NAME, *words]),
        )
    if rest:
        args.parser.reject_words(rest)
    if args.verbose and args.quiet:
        raise UsageError("-v and -q ask for more and for less.", "Give one of them.")
    args.command = shlex.join([PROGRAM_NAME, *words])
    return args


def build_parser() -> CommandParser:
    """The whole grammar."""
    parser = CommandParser(prog=PROGRAM_NAME, description=_ABOUT, epilog=_STATUS)
    parser.add_argument(
        "--version", action=_VersionAction, nargs=0, help="print the version and leave"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say more; a bug shows its traceback"
    )
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="no progress and no notes: only the result, and errors",
    )
    parser.set_defaults(run=None, parser=parser)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=CommandParser
    )
    for noun in (discover, tasks, runs, models, sae, doctor):
        noun.register(commands, [_verbosity_flags()])
    commands.add_parser(
        "serve", add_help=False, help="serve the tools to a coding assistant over MCP"
    )  # run by mcp_server; here for the help
    return parser


def _verbosity_flags() -> argparse.ArgumentParser:
    """-v and -q, which may stand after the command as well as before."""
    voice = argparse.ArgumentParser(add_help=False)
    for names, text in (
        (("-v", "--verbose"), "say more"),
        (("-q", "--quiet"), "only the result, and errors"),
    ):
        voice.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text)
    return voice


def _print_text(text: str) -> Callable[[argparse.Namespace, Console], None]:
    return lambda args, console: console.write_result(text)


def _suggestion(near: Sequence[str]) -> str:
    return f"Did you mean {near[0]}? " if near else ""
