"""The command `circuit-scout new DIR`: a folder for a study of one's own.

The files come from `study_template`. The folder holds the question, the plan, the tasks and the
runs, the rules of evidence for people and assistants, and the configuration of a project server.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from discovery.cli.arguments import UsageError, absolute_path
from discovery.cli.console import Console, divert_stdout
from discovery.cli.exit_status import (
    EXIT_COMPLETED,
    report_error,
    run_command,
    sigterm_as_interrupt,
)
from discovery.cli.parser import CommandParser, TextRequested
from mcp_server.errors import SetupError
from mcp_server.setup.configuration import SERVER_NAME
from mcp_server.setup.machine import find_script

TEMPLATE = Path(__file__).parent / "study_template"
_ABOUT = """Make a folder for a study: tasks, runs, notes, a plan, the rules of evidence for people
and assistants (AGENTS.md), and .mcp.json, by which Claude Code and VS Code find the server."""
_HIDDEN = {"gitignore": ".gitignore"}
"""Files that are hidden in a study, but not in the template, in which they would have effect."""


def run_new(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: the words of the command line, without `new`.

    Returns:
        0 if the folder was made, 2 for bad input, 130 if it was interrupted, 1 for a bug.
    """
    parser = CommandParser(prog="circuit-scout new", description=_ABOUT)
    parser.add_argument("-v", "--verbose", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-q", "--quiet", action="store_true", help="print no notes")
    parser.add_argument("folder", metavar="DIR", help="the folder, which must be new or empty")
    try:
        args, unknown_words = parser.parse_known_args(words)
        if unknown_words:
            parser.reject_words(unknown_words)
    except TextRequested as request:
        sys.stdout.write(f"{request.text}\n")
        return EXIT_COMPLETED
    except UsageError as fault:
        return report_error(fault)
    args.command = shlex.join(["circuit-scout", "new", *words])
    args.run = _make_folder
    with sigterm_as_interrupt(), divert_stdout(verbose=args.verbose, quiet=args.quiet) as console:
        return run_command(args, console)


def make_study(folder: Path, script: Path) -> list[Path]:
    """Make the folder of a study.

    Args:
        folder: the folder, which must be new or empty.
        script: the absolute path of our script.

    Returns:
        The files, relative to the folder.

    Raises:
        SetupError: if the folder is not empty, or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SetupError(
                f"{folder} is there already, and is not an empty folder.",
                "Name a new folder: nothing is ever overwritten.",
            )
        contents = _render(folder.name, script)
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8", newline="\n")
    except OSError as fault:
        raise SetupError(
            f"{folder} cannot be made: {fault.strerror or type(fault).__name__}.",
            "Name a folder in a place where you may write.",
        ) from None
    return [Path(name) for name in contents]


def _render(name: str, script: Path) -> dict[str, str]:
    """Return the content of every file by its name."""
    contents = {}
    for path in sorted(TEMPLATE.rglob("*")):
        if path.is_file():
            place = path.relative_to(TEMPLATE).as_posix()
            text = Template(path.read_text(encoding="utf-8")).safe_substitute(name=name)
            contents[_HIDDEN.get(place, place)] = text
    entry = {
        "type": "stdio",
        "command": str(script),
        "args": ["serve", "--runs-dir", "runs"],
    }
    contents[".mcp.json"] = json.dumps({"mcpServers": {SERVER_NAME: entry}}, indent=2) + "\n"
    contents["runs/.gitkeep"] = ""
    return contents


def _make_folder(args: argparse.Namespace, console: Console) -> None:
    """Make the folder and print what is in it, and what comes next."""
    folder = absolute_path(args.folder)
    files = make_study(folder, find_script())
    console.write_result("\n".join([str(folder), *(f"  {file}" for file in sorted(files))]))
    console.write_note(
        f"Next: cd {shlex.quote(args.folder)}, write the question into notes.md, and start your "
        "assistant there. tasks/example.jsonl shows the form of a task."
    )
