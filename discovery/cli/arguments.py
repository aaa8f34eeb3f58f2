"""What the words of a command line may be, and what is said of those that may not.

A *setting* is a flag with a twin in the environment: ``--runs-dir`` and ``CIRCUIT_SCOUT_RUNS_DIR``. The flag
comes before the twin, the twin before the default. Every message names the value given, what is allowed and a fix.

    >>> byte_count("--memory", "4GB"), byte_count("--memory", "512MiB"), byte_count("--memory", "123456")
    (4000000000, 536870912, 123456)
    >>> one_of(("cpu", "cuda"), "--device", "gpu")
    Traceback (most recent call last):
    discovery.cli.arguments.UsageError: --device is 'gpu'; allowed: cpu, cuda.
    Write --device cpu.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, get_args

from discovery.errors import DiscoveryError
from discovery.sites import DEVICE_KINDS, DTYPE_NAMES, BackendName

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)

ValueParser = Callable[[str, str], Any]
"""(what a message calls it, the word) -> the value; raises UsageError."""

Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"
"""Where a noun or a verb is added."""


class UsageError(DiscoveryError):
    """A command line that breaks a rule."""


def parse_text(name: str, word: str) -> str:
    """The word itself, if there is one."""
    if not word.strip():
        raise UsageError(f"{name} is empty.", f"Give a value after {name}, or leave it out.")
    return word


def parse_whole_number(minimum: int, name: str, word: str) -> int:
    """A whole number of at least `least`."""
    if not re.fullmatch(r"[+-]?\d+", word) or int(word) < minimum:
        raise UsageError(
            f"{name} is {word!r}, and must be a whole number of at least {minimum}.",
            f"Write for example {name} {max(minimum, 1) * 100}.",
        )
    return int(word)


def parse_positive_number(name: str, word: str) -> float:
    """A finite number above 0."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(
            f"{name} is {word!r}, and must be a number above 0.",
            f"Write for example {_name_before_value(name)}5000.",
        )
    return number


def parse_byte_count(name: str, word: str) -> int:
    """A number of bytes: plain, or with a unit: kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB of 1024; the B may be left out."""
    found = _BYTES.fullmatch(word.strip())
    if found:
        scale = (1024 if found[3] else 1000) ** (" kmgt".index(found[2].lower()) if found[2] else 0)
        size = float(found[1]) * scale
        if size >= 1 and (size.is_integer() or found[2]):
            return int(found[1]) * scale if found[1].isdigit() else int(size)
    raise UsageError(
        f"{name} is {word!r}, which is no number of bytes.",
        "Write a whole number of bytes, or a number with a unit: 4GB (10^9), 512MiB (2^20).",
    )


def _name_before_value(name: str) -> str:
    """A setting as it is written before its value: a flag, or a variable."""
    return f"{name} " if name.startswith("-") else f"{name}="


def parse_positions(name: str, word: str) -> list[int | str]:
    """Positions by number or label, with commas between."""
    parts = [part.strip() for part in word.split(",")]
    if not all(parts):
        raise UsageError(
            f"{name} is {word!r}, which lacks a position.",
            f"Write positions with commas between: {_name_before_value(name)}end,S2,-1.",
        )
    return [int(part) if re.fullmatch(r"-?\d+", part) else part for part in parts]


def parse_choice(allowed: Sequence[str], name: str, word: str) -> str:
    """One of the words that are allowed."""
    if word not in allowed:
        near = difflib.get_close_matches(word, allowed, n=1)
        raise UsageError(
            f"{name} is {word!r}; allowed: {', '.join(allowed)}.",
            f"Write {_name_before_value(name)}{near[0] if near else allowed[0]}.",
        )
    return word


def parse_device(name: str, word: str) -> str:
    """A kind of device, or one CUDA device by number."""
    return word if re.fullmatch(r"cuda:\d+", word) else parse_choice(DEVICE_KINDS, name, word)


def parse_folder(name: str, word: str) -> Path:
    """An absolute path, which need not exist."""
    return absolute_path(parse_text(name, word))


def absolute_path(word: str) -> Path:
    """The absolute path that a word names."""
    return Path(os.path.abspath(os.path.expanduser(word)))


def add_flag(
    parser: argparse.ArgumentParser,
    name: str,
    metavar: str,
    parse_value: ValueParser,
    text: str,
    **more: Any,
) -> None:
    """Give a parser a flag with a value.

    Args:
        parser: gets it.
        name: with its dashes.
        metavar: what the help calls the value.
        read: checks and turns the word.
        text: what the help says.
    """
    parser.add_argument(name, metavar=metavar, type=partial(parse_value, name), help=text, **more)


@dataclass(frozen=True)
class Setting:
    """A flag that the environment can give too.

    Attributes:
        name: of the flag, without dashes.
        metavar: what the help calls its value.
        help: one line.
        read: turns the word into a value.
        default: where neither is given.
    """

    name: str
    metavar: str
    help: str
    parse_value: ValueParser = parse_text
    default: Any = None

    @property
    def variable(self) -> str:
        """The twin in the environment."""
        return f"CIRCUIT_SCOUT_{self.name.replace('-', '_').upper()}"

    def add_to(self, parser: argparse.ArgumentParser, **more: Any) -> None:
        """Give a parser this flag."""
        default = "" if self.default is None else f"; default {self.default}"
        add_flag(
            parser,
            f"--{self.name}",
            self.metavar,
            self.parse_value,
            f"{self.help} (or {self.variable}{default})",
            **more,
        )

    def flag_value(self, args: argparse.Namespace) -> Any:
        """The flag's value, None where it was not given."""
        return getattr(args, self.name.replace("-", "_"), None)

    def resolve_value(self, args: argparse.Namespace) -> Any:
        """The flag's value, else that of the environment, else the default.

        Raises:
            UsageError: where the environment's is not allowed.
        """
        if (given := self.flag_value(args)) is not None:
            return given
        word = os.environ.get(self.variable)
        return self.parse_value(self.variable, word) if word else self.default


MODEL = Setting("model", "M", "bundled, a hub name, or a model directory", default="bundled")
BACKEND = Setting(
    "backend",
    "auto|transformerlens|nnsight",
    "what runs the model",
    partial(parse_choice, get_args(BackendName)),
    "auto",
)
DEVICE = Setting(
    "device", "auto|cpu|cuda|mps", "where it runs; mps is untested", parse_device, "auto"
)
DTYPE = Setting(
    "dtype",
    "D",
    f"the numbers it computes in: {', '.join(DTYPE_NAMES)}",
    partial(parse_choice, DTYPE_NAMES),
    "float32",
)
RUNS_DIR = Setting("runs-dir", "DIR", "where runs are kept", parse_folder)
MODELS_DIR = Setting("models-dir", "DIR", "where model directories are looked for", parse_folder)
MEMORY = Setting("memory", "BYTES", "the most memory to use, as in 4GB or 512MiB", parse_byte_count)

LOAD_SETTINGS = (MODEL, BACKEND, DEVICE, DTYPE)
SETTINGS = (*LOAD_SETTINGS, RUNS_DIR, MODELS_DIR, MEMORY)
