"""The command `circuit-scout setup`: write clients' configurations, then check the installation."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from discovery.cli.arguments import UsageError, parse_choice
from discovery.cli.console import Console, divert_stdout, format_columns
from discovery.cli.exit_status import (
    EXIT_BAD_INPUT,
    EXIT_COMPLETED,
    report_error,
    run_command,
    sigterm_as_interrupt,
)
from discovery.cli.parser import CommandParser, TextRequested
from mcp_server.errors import SetupError
from mcp_server.setup.clients import CLIENT_NAMES, CLIENTS, Client, Scope, find_clients
from mcp_server.setup.configuration import (
    ConfigChange,
    plan_addition,
    plan_removal,
    write_change,
)
from mcp_server.setup.machine import Machine, find_script
from mcp_server.setup.skill_folders import plan_skills, write_skill

_ABOUT = """Write this server into the configurations of the coding assistants on this machine.
Other servers, settings and comments stay as they are, and the old file is kept. Words after -- are
given to `serve`, for example: circuit-scout setup -- --models-dir ~/models."""


Report = tuple[list[tuple[str, str, str]], list[str]]
"""The rows of the table, and the notes below it."""

ServeParser = Callable[[Sequence[str]], bool]
"""The words of `serve` -> whether it then serves over standard input. Raises UsageError."""


def run_setup(words: Sequence[str], serves_stdio: ServeParser) -> int:
    """Run the command.

    Args:
        words: the words of the command line, without `setup`.
        serves_stdio: the function that checks the words for `serve`.

    Returns:
        0 if every client was written or needed nothing, 2 for bad input or a file that could not
        be changed, 130 if it was interrupted, 1 for a bug.
    """
    try:
        args = parse_setup_arguments(words, serves_stdio)
    except TextRequested as request:
        sys.stdout.write(f"{request.text}\n")
        return EXIT_COMPLETED
    except UsageError as fault:
        return report_error(fault)
    with sigterm_as_interrupt(), divert_stdout(verbose=args.verbose, quiet=args.quiet) as console:
        status = run_command(args, console)
    if status != EXIT_COMPLETED or args.dry_run or args.remove:
        return status
    from discovery import cli

    return cli.main(["doctor"])


def parse_setup_arguments(words: Sequence[str], serves_stdio: ServeParser) -> argparse.Namespace:
    """Parse the command line of `setup`.

    Args:
        words: the words after `setup`.
        serves_stdio: the function that checks the words for `serve`.

    Returns:
        The values of the flags; `serve_words`, the words after `--`, or None; and `run`.

    Raises:
        UsageError: if a word is not allowed.
        TextRequested: if the help is asked for.
    """
    own = list(words)
    serve_words = None
    if "--" in own:
        cut = own.index("--")
        own, serve_words = own[:cut], own[cut + 1 :]
    parser = _build_parser()
    args, unknown_words = parser.parse_known_args(own)
    if unknown_words:
        parser.reject_words(unknown_words)
    if serve_words is not None:
        serve_words = _check_serve_words(serve_words, serves_stdio)
    args.serve_words = serve_words
    args.command = shlex.join(["circuit-scout", "setup", *words])
    args.run = _configure
    return args


def _build_parser() -> CommandParser:
    parser = CommandParser(prog="circuit-scout setup", description=_ABOUT)
    parser.add_argument("-v", "--verbose", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-q", "--quiet", action="store_true", help="print no notes")
    parser.add_argument(
        "--client",
        metavar="NAMES",
        type=partial(_parse_clients, "--client"),
        help=f"some of {', '.join(CLIENT_NAMES)}, with commas; by default all that are here",
    )
    parser.add_argument(
        "--scope",
        metavar="user|project",
        type=partial(parse_choice, get_args(Scope), "--scope"),
        default="user",
        help="for all your projects, or for the project in the current directory; default user",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the changes, write nothing")
    parser.add_argument("--remove", action="store_true", help="remove what setup has added")
    parser.add_argument("--skills", action="store_true", help="also install (or remove) the skills")
    return parser


def _parse_clients(name: str, word: str) -> tuple[str, ...]:
    """Parse names of clients, with commas between them."""
    parts = [part.strip() for part in word.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{name} names no client.", f"Allowed: {', '.join(CLIENT_NAMES)}.")
    return tuple(parse_choice(CLIENT_NAMES, name, part) for part in parts)


def _check_serve_words(words: list[str], serves_stdio: ServeParser) -> list[str]:
    """Return words for `serve` in which the directories are absolute.

    A client starts the server in a directory of its own choice.

    Raises:
        UsageError: if `serve` does not take the words, or they would make it listen on a port.
    """
    absolute = [
        str(Path(word).expanduser().absolute())
        if before in ("--models-dir", "--runs-dir")
        else word
        for before, word in zip(["", *words], words, strict=False)
    ]
    if not serves_stdio(absolute):
        raise UsageError(
            "--http cannot be set up: a client starts the server itself, over standard input.",
            "Leave out --http, or add the address by hand, see docs/mcp.md.",
        )
    return absolute


def _configure(args: argparse.Namespace, console: Console) -> int:
    """Write or remove the configurations and skills, and print what was done."""
    machine = Machine.here()
    if args.scope == "project" and machine.project.resolve() == machine.home.resolve():
        raise SetupError(
            f"{machine.project} is your home directory, which is no project.",
            "Change to the directory of a project, or leave out --scope project.",
        )
    clients = _choose_clients(args, machine)
    reports: list[Report] = []
    failures = []
    for client in clients:
        try:
            reports.append(_configure_client(client, args, machine))
        except SetupError as fault:
            failures.append(fault)
            reports.append(([(client.title, "failed", fault.cause)], []))
    if args.skills:
        reports.append(_configure_skills(clients, args, machine))
    if args.dry_run:
        reports.append(([], ["Nothing was written (--dry-run)."]))
    console.write_result(format_columns([row for rows, _ in reports for row in rows], indent=0))
    for note in [note for _, notes in reports for note in notes]:
        console.write_note(note)
    for failure in failures:
        report_error(failure)
    return EXIT_BAD_INPUT if failures else EXIT_COMPLETED


def _choose_clients(args: argparse.Namespace, machine: Machine) -> list[Client]:
    """Return the clients that are named, or else those that are here.

    Raises:
        SetupError: if there is none, or a client that is named has no configuration in this scope.
    """
    named = [client for client in CLIENTS if args.client and client.name in args.client]
    for client in named:
        if client.config_path(machine, args.scope) is None:
            raise SetupError(
                f"{client.title} has one configuration for all projects.",
                f"Write: circuit-scout setup --client {client.name} --scope user.",
            )
    clients = [
        client
        for client in named or find_clients(machine)
        if client.config_path(machine, args.scope) is not None
    ]
    if clients:
        return clients
    raise SetupError(
        f"None of these is on this machine: {', '.join(client.title for client in CLIENTS)}.",
        "Name the one that you are going to use, as in --client claude-code. For any other client, "
        "see docs/mcp.md.",
    )


def _configure_client(client: Client, args: argparse.Namespace, machine: Machine) -> Report:
    """Change the configuration of one client."""
    path = client.config_path(machine, args.scope)
    assert path is not None  # _choose_clients leaves these out
    if args.remove:
        change = plan_removal(client, path)
    else:
        change = plan_addition(client, path, find_script(), args.serve_words)
    rows: list[tuple[str, str, str]] = [(client.title, change.outcome, machine.short_name(path))]
    if args.dry_run:
        is_change = change.outcome not in ("unchanged", "absent")
        return rows, [_format_difference(change, machine)] if is_change else []
    backup = write_change(change, machine)
    notes = [] if backup is None else [f"The old file is {machine.short_name(backup)}."]
    if change.outcome in ("added", "updated"):
        notes.append(f"{client.title}: {client.next_step}")
    return rows, notes


def _configure_skills(
    clients: Sequence[Client], args: argparse.Namespace, machine: Machine
) -> Report:
    """Change the skills of all clients; several clients read the same folder."""
    rows: list[tuple[str, str, str]] = []
    notes: list[str] = []
    folders: dict[Path, list[str]] = {}
    for client in clients:
        folder = client.skills_path(machine, args.scope)
        if folder is None:
            notes.append(f"{client.title} has no folder of skills here; it takes them by upload.")
        else:
            folders.setdefault(folder, []).append(client.title)
    for folder, titles in folders.items():
        for change in plan_skills(folder, remove=args.remove):
            place = f"{machine.short_name(change.path)} ({', '.join(titles)})"
            rows.append((f"skill {change.path.name}", change.outcome, place))
            backup = None if args.dry_run else write_skill(change, machine)
            if backup is not None:
                notes.append(f"It had been changed; the old folder is {backup}.")
    return rows, notes


def _format_difference(change: ConfigChange, machine: Machine) -> str:
    """Return the lines that a change removes and adds, without the lines around them.

    The lines around them may hold the secrets of other servers.
    """
    before, after = [
        (data or b"").decode("utf-8", "replace").splitlines()
        for data in (change.before, change.after)
    ]
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    body = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    return "\n".join([f"{machine.short_name(change.path)}:", *body])
