"""The model and the task that the flags of a command name.

Paths are made absolute before anything is loaded, so that a run can be resumed from another
directory.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discovery.backends.loading.source import BUNDLED
from discovery.cli.arguments import (
    LOAD_SETTINGS,
    MEMORY,
    MODEL,
    UsageError,
    absolute_path,
    add_flag,
    parse_choice,
    parse_text,
    parse_whole_number,
)
from discovery.cli.console import Console
from discovery.sites import METRIC_NAMES

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.backends.loading.load_arguments import LoadArguments
    from discovery.tasks import Task

DEFAULT_TASK = "ioi"

_NOT_SETTINGS = ("resume", "runs_dir", "json", "verbose", "quiet", "run", "parser", "command")
"""The values of a parsed command line that are not settings of a run."""


def add_model_and_task_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a model, the pairs of a task, and how the task is measured."""
    for setting in LOAD_SETTINGS:
        setting.add_to(parser)
    add_placement_flags(parser)
    add_flag(
        parser,
        "--pairs",
        "N",
        partial(parse_whole_number, 1),
        "the number of prompt pairs (default: all, or the default of the built-in task)",
    )
    add_flag(
        parser,
        "--seed",
        "S",
        partial(parse_whole_number, 0),
        "the seed of the pairs, the split and every resample (default 0)",
    )
    add_flag(
        parser,
        "--metric",
        "NAME",
        partial(parse_choice, METRIC_NAMES),
        f"{', '.join(METRIC_NAMES)} (default: the task's)",
    )
    MEMORY.add_to(parser)


def add_placement_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for a model that is too large for one device, or for this machine."""
    text = (
        "auto: spread the weights over this machine's devices, memory and disk (slow; nnsight only)"
    )
    add_flag(parser, "--device-map", "auto", partial(parse_choice, ("auto",)), text)
    parser.add_argument(
        "--remote",
        action="store_true",
        help="run the model on NDIF, with the key in NDIF_API_KEY; prompts are sent there",
    )


def add_sae_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names a sparse autoencoder."""
    text = (
        "a SAELens directory, the id or the folder of a training, or release/sae_id of the hub "
        "(default: the SAE of the bundled model)"
    )
    add_flag(parser, "--sae", "SAE", parse_text, text, default=BUNDLED)


def load_request(args: argparse.Namespace) -> LoadArguments:
    """Return how the flags and the environment ask for a model and a task to be loaded."""
    from discovery.backends.loading.load_arguments import LoadArguments

    remote = getattr(args, "remote", False)
    device_map = getattr(args, "device_map", None)
    # The variables in the environment are for models that one device of this machine holds.
    ignored_variables: tuple[str, ...] = ()
    if remote:
        ignored_variables = ("backend", "device", "dtype")
    elif device_map:
        ignored_variables = ("device",)
    values: dict[str, Any] = {}
    for setting in LOAD_SETTINGS:
        if setting.name in ignored_variables:
            values[setting.name] = setting.flag_value(args) or setting.default
        else:
            values[setting.name] = setting.resolve_value(args)
    return LoadArguments(
        model=_absolute_model(values["model"]),
        backend=values["backend"],
        device=values["device"],
        dtype=values["dtype"],
        device_map=device_map,
        remote=remote,
        task=_absolute_task(getattr(args, "task", None) or DEFAULT_TASK),
        pairs=getattr(args, "pairs", None),
    )


def load_requested_model(load: LoadArguments, console: Console) -> Backend:
    """Load the model that was asked for. A task that does not exist is reported before that."""
    from discovery.backends.loading.load_arguments import reload
    from discovery.backends.remote.status import listen_to_status
    from discovery.tasks import require_source

    require_source(load.task or DEFAULT_TASK)
    console.write_note(f"Loading the model {load.model}{' on NDIF' if load.remote else ''} …")
    with listen_to_status(console.progress.show_status):
        model = reload(load)
    console.write_note(f"On {model.info.backend}: {model.info.backend_reason}.")
    console.write_warning_notes(model.info.warnings)
    return model


def load_requested_task(load: LoadArguments, model: Backend, seed: int, console: Console) -> Task:
    """Read the task that was asked for, and print its warnings."""
    from discovery.tasks import load_task

    task = load_task(load.task or DEFAULT_TASK, model, pairs=load.pairs, seed=seed)
    console.write_warning_notes(task.warnings)
    return task


def require_no_settings(
    args: argparse.Namespace,
    what: str,
    *,
    allowed: Collection[str] = (),
    positional: str | None = None,
) -> None:
    """Check that --resume was given without the flags of a new run.

    Args:
        args: the parsed command line.
        what: what is resumed, for the message: "run" or "training".
        allowed: further values of the command line that --resume may be given with.
        positional: the value that is given without a flag, if there is one.

    Raises:
        UsageError: if there are other flags.
    """
    conflicting_flags = [
        name
        for name, value in vars(args).items()
        if name not in (*_NOT_SETTINGS, *allowed) and value is not None and value is not False
    ]
    if conflicting_flags:
        flags = (
            name.upper() if name == positional else f"--{name.replace('_', '-')}"
            for name in conflicting_flags
        )
        raise UsageError(
            f"--resume {args.resume} was given with {', '.join(flags)}.",
            f"Leave them out: a {what} is resumed with the settings that it began with.",
        )


def require_text_file(word: str, advice: str) -> Path:
    """Return the absolute path of the file that --text names.

    Raises:
        UsageError: if there is no such file. `advice` is the fix.
    """
    path = absolute_path(word)
    if not path.is_file():
        raise UsageError(f"--text is {word!r}, and there is no such file.", advice)
    return path


def _absolute_model(name: str) -> str:
    path = absolute_path(name)
    return str(path) if name != MODEL.default and path.exists() else name


def _absolute_task(name: str) -> str:
    from discovery.tasks import BUILTIN

    path = absolute_path(name)
    return str(path) if name not in BUILTIN and path.is_file() else name
