"""`circuit-scout serve`: the flags, their twins in the environment, and which transport they ask for."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from discovery.cli.arguments import (
    BACKEND,
    DEVICE,
    DTYPE,
    MEMORY,
    MODELS_DIR,
    RUNS_DIR,
    Setting,
    UsageError,
    parse_choice,
)
from discovery.cli.exit_status import report_error
from discovery.cli.parser import CommandParser
from discovery.store import default_runs_dir
from mcp_server.errors import LOG
from mcp_server.server.http import HttpEndpoint, listen, serve_http
from mcp_server.server.server import build_server
from mcp_server.server.stdio import serve_stdio
from mcp_server.session.settings import TOOLSETS, ServerSettings, Toolset

_ABOUT = """Serve the tools to a coding assistant: over standard input and output, or over HTTP.
For Claude Code: claude mcp add circuit-scout -- circuit-scout serve. Over HTTP
anyone who can reach the port can use the models, so beyond this machine a token is required."""
_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


def _parse_address(name: str, word: str) -> tuple[str, int]:
    """HOST:PORT, HOST in brackets where it is IPv6."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(\d{1,5})", word)
    if not found or int(found[2]) > 65535:
        raise UsageError(
            f"{name} is {word!r}, and must be HOST:PORT.",
            f"Write for example {name} 127.0.0.1:8000.",
        )
    return found[1].strip("[]"), int(found[2])


def _parse_toolsets(name: str, word: str) -> tuple[Toolset, ...]:
    """A list of groups of tools, or all."""
    chosen = [part.strip() for part in word.split(",") if part.strip()]
    sets = {parse_choice((*TOOLSETS, "all"), name, part) for part in chosen}
    return (
        TOOLSETS
        if "all" in sets or not sets
        else tuple(known for known in TOOLSETS if known in sets)
    )


def _parse_token(name: str, word: str) -> str:
    """A bearer token: visible ASCII, not too short to be guessed."""
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", word):
        raise UsageError(
            f"{name} is no token: it must have 16 to 512 visible ASCII characters.",
            "Make one: openssl rand -hex 24.",
        )
    return word


def _parse_host_names(name: str, word: str) -> tuple[str, ...]:
    """Names by which this server is reached."""
    return tuple(part.strip() for part in word.split(",") if part.strip())


HTTP_FLAG = Setting(
    name="http",
    metavar="HOST:PORT",
    help="serve over HTTP at http://HOST:PORT/mcp instead of standard input and output",
    parse_value=_parse_address,
)
TOKEN_FLAG = Setting(
    name="token",
    metavar="T",
    help="the bearer token that HTTP clients must send; required beyond this machine",
    parse_value=_parse_token,
)
ALLOWED_HOSTS_FLAG = Setting(
    name="allowed-hosts",
    metavar="NAMES",
    help="further host names by which HTTP clients reach it, with commas",
    parse_value=_parse_host_names,
)
TOOLSETS_FLAG = Setting(
    name="toolsets",
    metavar="NAMES",
    help=f"which groups of tools: all, or some of {', '.join(TOOLSETS)}",
    parse_value=_parse_toolsets,
)
IMAGES_FLAG = Setting(
    name="images",
    metavar="include|omit",
    help="whether results carry pictures",
    parse_value=lambda name, word: parse_choice(("include", "omit"), name, word),
    default="include",
)
READ_ONLY_VARIABLE = "CIRCUIT_SCOUT_READ_ONLY"


def parse_serve_arguments(words: Sequence[str]) -> tuple[ServerSettings, HttpEndpoint | None]:
    """What a command line asks for.

    Args:
        words: those after `serve`.

    Returns:
        the settings, and where to listen; None for standard input and output.

    Raises:
        UsageError: for words that are not allowed.
    """
    args, rest = _parser().parse_known_args(words)
    if rest:
        _parser().reject_words(rest)
    address, token = HTTP_FLAG.resolve_value(args), TOKEN_FLAG.resolve_value(args)
    if address is not None and token is None and not _is_loopback(address[0]):
        raise UsageError(
            f"--http {address[0]}:{address[1]} can be reached from other machines, and there is no token.",
            f"Give --token, or {TOKEN_FLAG.variable}, or listen on 127.0.0.1.",
        )
    settings = ServerSettings(
        runs_dir=RUNS_DIR.resolve_value(args) or default_runs_dir(),
        models_dir=MODELS_DIR.resolve_value(args),
        working_dir=None
        if address is not None or MODELS_DIR.resolve_value(args) is not None
        else _find_project_dir(),
        read_only=args.read_only or _read_switch(READ_ONLY_VARIABLE),
        images=IMAGES_FLAG.resolve_value(args),
        toolsets=TOOLSETS_FLAG.resolve_value(args) or TOOLSETS,
        backend=BACKEND.resolve_value(args),
        device=DEVICE.resolve_value(args),
        dtype=DTYPE.resolve_value(args),
        memory=MEMORY.resolve_value(args),
        is_local=address is None,
    )
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise UsageError(
            "The models directory is not a directory.",
            f"Give one with --models-dir or {MODELS_DIR.variable}.",
        )
    return settings, None if address is None else HttpEndpoint(
        address[0], address[1], token, ALLOWED_HOSTS_FLAG.resolve_value(args) or ()
    )


def _find_project_dir() -> Path | None:
    """The directory that a local client started the server in; the root or a home says nothing of what may be read."""
    here = Path.cwd()
    if here == Path(here.anchor) or here.resolve() == Path.home().resolve():
        LOG.warning(
            "Started in %s: no directory may be read. Give --models-dir to load models and task files from one.",
            here,
        )
        return None
    return here


def run_serve(words: Sequence[str]) -> int:
    """Serve until the client goes.

    Args:
        words: those of the command line, without `serve`.

    Returns:
        The exit status: 0 the client went, 2 bad input.
    """
    try:
        settings, door = parse_serve_arguments(words)
        listening = None if door is None else listen(door)
    except _HelpRequested as asked:
        sys.stdout.write(f"{asked.text}\n")
        return 0
    except UsageError as fault:
        return report_error(fault)
    set_library_environment(settings)
    server = build_server(settings)
    return serve_stdio(server) if listening is None else serve_http(server, *listening)


def set_library_environment(settings: ServerSettings) -> None:
    """Before any library is imported: no progress bars, no figures on a display, and no downloads where they are not wanted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    if settings.read_only:
        os.environ["HF_HUB_OFFLINE"] = "1"


class _HelpRequested(Exception):  # noqa: N818  (an answer, not an error)
    """The help is asked for."""

    def __init__(self, text: str) -> None:
        self.text = text


class _ServeParser(CommandParser):
    """Tells its help as a result is told."""

    def print_help(self, file: object = None) -> NoReturn:
        """Asks for the help."""
        raise _HelpRequested(self.format_help().rstrip())


def _parser() -> CommandParser:
    parser = _ServeParser(prog="circuit-scout serve", description=_ABOUT)
    parser.add_argument("-v", "--verbose", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-q", "--quiet", action="store_true", help=argparse.SUPPRESS)
    for setting in (HTTP_FLAG, TOKEN_FLAG, ALLOWED_HOSTS_FLAG, TOOLSETS_FLAG):
        setting.add_to(parser)
    parser.add_argument(
        "--read-only",
        action="store_true",
        help=f"no downloads, no runs started or stopped, no final evaluation (or {READ_ONLY_VARIABLE}=1)",
    )
    for setting in (MODELS_DIR, RUNS_DIR, IMAGES_FLAG, BACKEND, DEVICE, DTYPE, MEMORY):
        setting.add_to(parser)
    return parser


def _read_switch(variable: str) -> bool:
    word = os.environ.get(variable, "").strip().lower()
    if word not in (*_YES, *_NO):
        raise UsageError(
            f"{variable} is {word!r}; allowed: {', '.join(_YES)}, {', '.join(_NO[1:])}.",
            f"Write {variable}=1.",
        )
    return word in _YES


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
