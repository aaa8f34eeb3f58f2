"""Flags, settings, and the parsing of their values.

A *setting* is a flag that an environment variable can also give: ``--runs-dir`` or
``CIRCUIT_SCOUT_RUNS_DIR``. The flag overrides the variable, and the variable overrides the default.
Every error message names the value, what is allowed, and a fix.

    >>> [parse_byte_count("--memory", word) for word in ("4GB", "512MiB", "123456")]
    [4000000000, 536870912, 123456]
    >>> parse_choice(("cpu", "cuda"), "--device", "gpu")
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

from discovery.backends.loading.source import BUNDLED
from discovery.errors import DiscoveryError
from discovery.sites import DEVICE_KINDS, DTYPE_NAMES, BackendName

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)

ValueParser = Callable[[str, str], Any]
"""(the name for messages, the word) -> the value. Raises UsageError if the word is not allowed."""

Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"
"""The commands of a parser, or the verbs of a command."""


class UsageError(DiscoveryError):
    """A command line that is not valid."""


def parse_text(name: str, word: str) -> str:
    """Return the word if it is not empty."""
    if not word.strip():
        raise UsageError(f"{name} is empty.", f"Give a value after {name}, or leave it out.")
    return word


def parse_whole_number(minimum: int, name: str, word: str) -> int:
    """Return a whole number that is at least `minimum`."""
    if not re.fullmatch(r"[+-]?\d+", word) or int(word) < minimum:
        raise UsageError(
            f"{name} is {word!r}, and must be a whole number of at least {minimum}.",
            f"Write for example {name} {max(minimum, 1) * 100}.",
        )
    return int(word)


def parse_positive_number(name: str, word: str) -> float:
    """Return a finite number above 0."""
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
    """Return a number of bytes.

    The word is a number, with or without a unit: kB, MB, GB and TB are powers of 1000, and KiB,
    MiB, GiB and TiB are powers of 1024. The B may be left out.
    """
    match = _BYTES.fullmatch(word.strip())
    if match:
        number, prefix, is_binary = match.groups()
        exponent = " kmgt".index(prefix.lower()) if prefix else 0
        scale = (1024 if is_binary else 1000) ** exponent
        size = float(number) * scale
        if size >= 1 and (size.is_integer() or prefix):
            # Whole numbers are not rounded to a float.
            return int(number) * scale if number.isdigit() else int(size)
    raise UsageError(
        f"{name} is {word!r}, which is not a number of bytes.",
        "Write a whole number of bytes, or a number with a unit: 4GB (10^9), 512MiB (2^20).",
    )


def _name_before_value(name: str) -> str:
    """Return the name of a flag or a variable as it is written before its value."""
    return f"{name} " if name.startswith("-") else f"{name}="


def parse_positions(name: str, word: str) -> list[int | str]:
    """Return positions, which are numbers or labels with commas between them."""
    parts = [part.strip() for part in word.split(",")]
    if not all(parts):
        raise UsageError(
            f"{name} is {word!r}, in which a position is missing.",
            f"Write positions with commas between them: {_name_before_value(name)}end,S2,-1.",
        )
    return [int(part) if re.fullmatch(r"-?\d+", part) else part for part in parts]


def parse_choice(allowed: Sequence[str], name: str, word: str) -> str:
    """Return the word if it is one of those that are allowed."""
    if word not in allowed:
        similar = difflib.get_close_matches(word, allowed, n=1)
        raise UsageError(
            f"{name} is {word!r}; allowed: {', '.join(allowed)}.",
            f"Write {_name_before_value(name)}{similar[0] if similar else allowed[0]}.",
        )
    return word


def parse_device(name: str, word: str) -> str:
    """Return a kind of device, or one CUDA device such as cuda:1."""
    return word if re.fullmatch(r"cuda:\d+", word) else parse_choice(DEVICE_KINDS, name, word)


def parse_folder(name: str, word: str) -> Path:
    """Return an absolute path, which does not have to exist."""
    return absolute_path(parse_text(name, word))


def absolute_path(word: str) -> Path:
    """Return the absolute path that a word names."""
    return Path(os.path.abspath(os.path.expanduser(word)))


def add_flag(
    parser: argparse.ArgumentParser,
    name: str,
    metavar: str,
    parse_value: ValueParser,
    text: str,
    **options: Any,
) -> None:
    """Add a flag that takes a value.

    Args:
        parser: the parser that gets the flag.
        name: the name of the flag, with its dashes.
        metavar: what the help calls the value.
        parse_value: the function that checks and converts the word.
        text: the description in the help.
        options: further arguments of `ArgumentParser.add_argument`.
    """
    parser.add_argument(
        name, metavar=metavar, type=partial(parse_value, name), help=text, **options
    )


def add_json_flag(parser: argparse.ArgumentParser, *, is_verb: bool = False) -> None:
    """Add --json.

    Args:
        parser: the parser that gets the flag.
        is_verb: whether the parser belongs to a verb. If the flag is not given after the verb, the
            value from before the verb is kept.
    """
    default = argparse.SUPPRESS if is_verb else False
    parser.add_argument(
        "--json", action="store_true", default=default, help="print one JSON document"
    )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A flag that an environment variable can also give.

    Attributes:
        name: the name of the flag, without dashes.
        metavar: what the help calls its value.
        help: the description in the help: one line.
        parse_value: the function that checks and converts the word.
        default: the value if neither the flag nor the variable is given.
    """

    name: str
    metavar: str
    help: str
    parse_value: ValueParser = parse_text
    default: Any = None

    @property
    def variable(self) -> str:
        """The name of the environment variable."""
        return f"CIRCUIT_SCOUT_{self.name.replace('-', '_').upper()}"

    def add_to(self, parser: argparse.ArgumentParser, **options: Any) -> None:
        """Add this flag to a parser."""
        default = "" if self.default is None else f"; default {self.default}"
        add_flag(
            parser,
            f"--{self.name}",
            self.metavar,
            self.parse_value,
            f"{self.help} (or {self.variable}{default})",
            **options,
        )

    def flag_value(self, args: argparse.Namespace) -> Any:
        """Return the value of the flag, or None if it was not given."""
        return getattr(args, self.name.replace("-", "_"), None)

    def resolve_value(self, args: argparse.Namespace) -> Any:
        """Return the value of the flag, else that of the variable, else the default.

        Raises:
            UsageError: if the value of the variable is not allowed.
        """
        value = self.flag_value(args)
        if value is not None:
            return value
        word = os.environ.get(self.variable)
        return self.parse_value(self.variable, word) if word else self.default


MODEL = Setting(
    name="model",
    metavar="M",
    help="bundled, a hub name, a model directory, or a GGUF file",
    default=BUNDLED,
)
BACKEND = Setting(
    name="backend",
    metavar="auto|transformerlens|nnsight",
    help="the library that runs the model",
    parse_value=partial(parse_choice, get_args(BackendName)),
    default="auto",
)
DEVICE = Setting(
    name="device",
    metavar="auto|cpu|cuda|mps",
    help="the device that the model runs on; mps is untested",
    parse_value=parse_device,
    default="auto",
)
DTYPE = Setting(
    name="dtype",
    metavar="D",
    help=f"the dtype that the model computes in: {', '.join(DTYPE_NAMES)}",
    parse_value=partial(parse_choice, DTYPE_NAMES),
    default="float32",
)
RUNS_DIR = Setting(
    name="runs-dir",
    metavar="DIR",
    help="the directory of the runs",
    parse_value=parse_folder,
)
MODELS_DIR = Setting(
    name="models-dir",
    metavar="DIR",
    help="a directory that is searched for model directories",
    parse_value=parse_folder,
)
MEMORY = Setting(
    name="memory",
    metavar="BYTES",
    help="the most memory to use, as in 4GB or 512MiB",
    parse_value=parse_byte_count,
)

LOAD_SETTINGS = (MODEL, BACKEND, DEVICE, DTYPE)
SETTINGS = (*LOAD_SETTINGS, RUNS_DIR, MODELS_DIR, MEMORY)
