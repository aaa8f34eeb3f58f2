"""The command `circuit-scout serve`: its flags, their variables, and the transport."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

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
from discovery.cli.parser import CommandParser, TextRequested
from discovery.store import default_runs_dir
from mcp_server.errors import LOG
from mcp_server.server.http import HttpEndpoint, listen, serve_http
from mcp_server.server.server import build_server
from mcp_server.server.stdio import serve_stdio
from mcp_server.session.settings import TOOLSETS, ImagePolicy, ServerSettings, Toolset

_ABOUT = """Serve the tools to a coding assistant: over standard input and output, or over HTTP.
For Claude Code: claude mcp add circuit-scout -- circuit-scout serve. Over HTTP
anyone who can reach the port can use the models, so beyond this machine a token is required."""
_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")
_MAX_PORT = 65535


def _parse_address(name: str, word: str) -> tuple[str, int]:
    """Parse HOST:PORT; an IPv6 host is in brackets."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(\d{1,5})", word)
    if not match or int(match[2]) > _MAX_PORT:
        raise UsageError(
            f"{name} is {word!r}, and must be HOST:PORT.",
            f"Write for example {name} 127.0.0.1:8000.",
        )
    return match[1].strip("[]"), int(match[2])


def _parse_toolsets(name: str, word: str) -> tuple[Toolset, ...]:
    """Parse a list of groups of tools, or "all"; an empty list means all too."""
    names = {parse_choice((*TOOLSETS, "all"), name, part) for part in _split_list(word)}
    if not names or "all" in names:
        return TOOLSETS
    return tuple(toolset for toolset in TOOLSETS if toolset in names)


def _parse_token(name: str, word: str) -> str:
    """Parse a bearer token: visible ASCII, and too long to be guessed."""
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", word):
        raise UsageError(
            f"{name} is not a token: it must have 16 to 512 visible ASCII characters.",
            "Make one: openssl rand -hex 24.",
        )
    return word


def _parse_host_names(name: str, word: str) -> tuple[str, ...]:
    """Parse a list of host names with commas."""
    return tuple(_split_list(word))


def _split_list(word: str) -> list[str]:
    return [part.strip() for part in word.split(",") if part.strip()]


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
    parse_value=partial(parse_choice, get_args(ImagePolicy)),
    default="include",
)
READ_ONLY_VARIABLE = "CIRCUIT_SCOUT_READ_ONLY"


def parse_serve_arguments(words: Sequence[str]) -> tuple[ServerSettings, HttpEndpoint | None]:
    """Parse the command line of `serve`.

    Args:
        words: the words after `serve`.

    Returns:
        The settings, and where to listen for HTTP; None for standard input and output.

    Raises:
        UsageError: if a word or a variable in the environment is not allowed.
        TextRequested: if the help is asked for.
    """
    parser = _build_parser()
    args, unknown_words = parser.parse_known_args(words)
    if unknown_words:
        parser.reject_words(unknown_words)
    endpoint = _read_endpoint(args)
    models_dir = MODELS_DIR.resolve_value(args)
    if models_dir is not None and not models_dir.is_dir():
        raise UsageError(
            "The models directory is not a directory.",
            f"Give one with --models-dir or {MODELS_DIR.variable}.",
        )
    is_project = endpoint is None and models_dir is None
    settings = ServerSettings(
        runs_dir=RUNS_DIR.resolve_value(args) or default_runs_dir(),
        models_dir=models_dir,
        working_dir=_find_project_dir() if is_project else None,
        read_only=args.read_only or _read_switch(READ_ONLY_VARIABLE),
        images=IMAGES_FLAG.resolve_value(args),
        toolsets=TOOLSETS_FLAG.resolve_value(args) or TOOLSETS,
        backend=BACKEND.resolve_value(args),
        device=DEVICE.resolve_value(args),
        dtype=DTYPE.resolve_value(args),
        memory=MEMORY.resolve_value(args),
        is_local=endpoint is None,
    )
    return settings, endpoint


def _read_endpoint(args: argparse.Namespace) -> HttpEndpoint | None:
    """Return where to listen for HTTP, or None.

    Raises:
        UsageError: if other machines can reach the address and there is no token.
    """
    address = HTTP_FLAG.resolve_value(args)
    token = TOKEN_FLAG.resolve_value(args)
    if address is None:
        return None
    host, port = address
    if token is None and not _is_loopback(host):
        raise UsageError(
            f"--http {host}:{port} can be reached from other machines, and there is no token.",
            f"Give --token, or {TOKEN_FLAG.variable}, or listen on 127.0.0.1.",
        )
    extra_hosts = ALLOWED_HOSTS_FLAG.resolve_value(args) or ()
    return HttpEndpoint(host=host, port=port, token=token, extra_hosts=extra_hosts)


def _find_project_dir() -> Path | None:
    """Return the directory in which a local client started the server.

    Some clients start every server in the root or in the user's home. That says nothing about what
    may be read, so these two are None.
    """
    directory = Path.cwd()
    is_root = directory == Path(directory.anchor)
    if is_root or directory.resolve() == Path.home().resolve():
        LOG.warning(
            "Started in %s: no directory may be read. "
            "Give --models-dir to load models and task files from a directory.",
            directory,
        )
        return None
    return directory


def run_serve(words: Sequence[str]) -> int:
    """Serve until the client leaves or a signal ends the server.

    Args:
        words: the words of the command line, without `serve`.

    Returns:
        0 after the help, 2 for bad input. A server ends the process itself, with status 0 over
        standard input and output and 130 over HTTP.
    """
    try:
        settings, endpoint = parse_serve_arguments(words)
        listening = None if endpoint is None else listen(endpoint)
    except TextRequested as request:
        sys.stdout.write(f"{request.text}\n")
        return 0
    except UsageError as error:
        return report_error(error)
    set_library_environment(settings)
    server = build_server(settings)
    if listening is None:
        serve_stdio(server)
    return serve_http(server, *listening)


def set_library_environment(settings: ServerSettings) -> None:
    """Set what libraries read from the environment, before any of them is imported.

    They show no progress bars and open no windows, and a read-only server downloads nothing.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    if settings.read_only:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _build_parser() -> CommandParser:
    parser = CommandParser(prog="circuit-scout serve", description=_ABOUT)
    parser.add_argument("-v", "--verbose", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-q", "--quiet", action="store_true", help=argparse.SUPPRESS)
    for setting in (HTTP_FLAG, TOKEN_FLAG, ALLOWED_HOSTS_FLAG, TOOLSETS_FLAG):
        setting.add_to(parser)
    parser.add_argument(
        "--read-only",
        action="store_true",
        help="no downloads, no runs started or stopped, no final evaluation "
        f"(or {READ_ONLY_VARIABLE}=1)",
    )
    for setting in (MODELS_DIR, RUNS_DIR, IMAGES_FLAG, BACKEND, DEVICE, DTYPE, MEMORY):
        setting.add_to(parser)
    return parser


def _read_switch(variable: str) -> bool:
    """Return whether a variable in the environment is switched on.

    Raises:
        UsageError: if its value is neither a yes nor a no.
    """
    word = os.environ.get(variable, "").strip().lower()
    if word not in (*_YES, *_NO):
        allowed = ", ".join((*_YES, *_NO[1:]))
        raise UsageError(f"{variable} is {word!r}; allowed: {allowed}.", f"Write {variable}=1.")
    return word in _YES


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, not an address
        return host == "localhost"
