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

from discovery.cli.arguments import BACKEND, DEVICE, DTYPE, MEMORY, MODELS_DIR, RUNS_DIR, Setting, UsageError, one_of
from discovery.cli.exit_status import told
from discovery.cli.parser import Parser
from discovery.store import default_runs_dir
from mcp_server.errors import LOG
from mcp_server.server.http import Door, listen, serve_http
from mcp_server.server.server import build_server
from mcp_server.server.stdio import serve_stdio
from mcp_server.session.settings import TOOLSETS, Settings, Toolset

_ABOUT = """Serve the tools to a coding assistant: over standard input and output, or over HTTP.
For Claude Code: claude mcp add circuit-scout -- circuit-scout serve. Over HTTP
anyone who can reach the port can use the models, so beyond this machine a token is required."""
_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


def _address(name: str, word: str) -> tuple[str, int]:
    """HOST:PORT, HOST in brackets where it is IPv6."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(\d{1,5})", word)
    if not found or int(found[2]) > 65535:
        raise UsageError(f"{name} is {word!r}, and must be HOST:PORT.", f"Write for example {name} 127.0.0.1:8000.")
    return found[1].strip("[]"), int(found[2])


def _toolsets(name: str, word: str) -> tuple[Toolset, ...]:
    """A list of groups of tools, or all."""
    chosen = [part.strip() for part in word.split(",") if part.strip()]
    sets = {one_of((*TOOLSETS, "all"), name, part) for part in chosen}
    return TOOLSETS if "all" in sets or not sets else tuple(known for known in TOOLSETS if known in sets)


def _token(name: str, word: str) -> str:
    """A bearer token: visible ASCII, not too short to be guessed."""
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", word):
        raise UsageError(f"{name} is no token: it must have 16 to 512 visible ASCII characters.", "Make one: openssl rand -hex 24.")
    return word


def _names(name: str, word: str) -> tuple[str, ...]:
    """Names by which this server is reached."""
    return tuple(part.strip() for part in word.split(",") if part.strip())


HTTP = Setting("http", "HOST:PORT", "serve over HTTP at http://HOST:PORT/mcp instead of standard input and output", _address)
TOKEN = Setting("token", "T", "the bearer token that HTTP clients must send; required beyond this machine", _token)
ALLOWED = Setting("allowed-hosts", "NAMES", "further host names by which HTTP clients reach it, with commas", _names)
SETS = Setting("toolsets", "NAMES", f"which groups of tools: all, or some of {', '.join(TOOLSETS)}", _toolsets)
IMAGES = Setting(
    "images", "include|omit", "whether results carry pictures", lambda name, word: one_of(("include", "omit"), name, word), "include"
)
READ_ONLY = "CIRCUIT_SCOUT_READ_ONLY"


def parse(words: Sequence[str]) -> tuple[Settings, Door | None]:
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
        _parser().reject(rest)
    address, token = HTTP.value(args), TOKEN.value(args)
    if address is not None and token is None and not _loopback(address[0]):
        raise UsageError(
            f"--http {address[0]}:{address[1]} can be reached from other machines, and there is no token.",
            f"Give --token, or {TOKEN.variable}, or listen on 127.0.0.1.",
        )
    settings = Settings(
        runs_dir=RUNS_DIR.value(args) or default_runs_dir(),
        models_dir=MODELS_DIR.value(args),
        here=None if address is not None or MODELS_DIR.value(args) is not None else _project(),
        read_only=args.read_only or _switch(READ_ONLY),
        images=IMAGES.value(args),
        toolsets=SETS.value(args) or TOOLSETS,
        backend=BACKEND.value(args),
        device=DEVICE.value(args),
        dtype=DTYPE.value(args),
        memory=MEMORY.value(args),
        local=address is None,
    )
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise UsageError("The models directory is not a directory.", f"Give one with --models-dir or {MODELS_DIR.variable}.")
    return settings, None if address is None else Door(address[0], address[1], token, ALLOWED.value(args) or ())


def _project() -> Path | None:
    """The directory that a local client started the server in; the root or a home says nothing of what may be read."""
    here = Path.cwd()
    if here == Path(here.anchor) or here.resolve() == Path.home().resolve():
        LOG.warning("Started in %s: no directory may be read. Give --models-dir to load models and task files from one.", here)
        return None
    return here


def command_line(words: Sequence[str]) -> int:
    """Serve until the client goes.

    Args:
        words: those of the command line, without `serve`.

    Returns:
        The exit status: 0 the client went, 2 bad input.
    """
    try:
        settings, door = parse(words)
        listening = None if door is None else listen(door)
    except _Asked as asked:
        sys.stdout.write(f"{asked.text}\n")
        return 0
    except UsageError as fault:
        return told(fault)
    quieten(settings)
    server = build_server(settings)
    return serve_stdio(server) if listening is None else serve_http(server, *listening)


def quieten(settings: Settings) -> None:
    """Before any library is imported: no progress bars, no figures on a display, and no downloads where they are not wanted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    if settings.read_only:
        os.environ["HF_HUB_OFFLINE"] = "1"


class _Asked(Exception):  # noqa: N818  (an answer, not an error)
    """The help is asked for."""

    def __init__(self, text: str) -> None:
        self.text = text


class _Parser(Parser):
    """Tells its help as a result is told."""

    def print_help(self, file: object = None) -> NoReturn:
        """Asks for the help."""
        raise _Asked(self.format_help().rstrip())


def _parser() -> Parser:
    parser = _Parser(prog="circuit-scout serve", description=_ABOUT)
    parser.add_argument("-v", "--verbose", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-q", "--quiet", action="store_true", help=argparse.SUPPRESS)
    for setting in (HTTP, TOKEN, ALLOWED, SETS):
        setting.add(parser)
    parser.add_argument(
        "--read-only", action="store_true", help=f"no downloads, no runs started or stopped, no final evaluation (or {READ_ONLY}=1)"
    )
    for setting in (MODELS_DIR, RUNS_DIR, IMAGES, BACKEND, DEVICE, DTYPE, MEMORY):
        setting.add(parser)
    return parser


def _switch(variable: str) -> bool:
    word = os.environ.get(variable, "").strip().lower()
    if word not in (*_YES, *_NO):
        raise UsageError(f"{variable} is {word!r}; allowed: {', '.join(_YES)}, {', '.join(_NO[1:])}.", f"Write {variable}=1.")
    return word in _YES


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
