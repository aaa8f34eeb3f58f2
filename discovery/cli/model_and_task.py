"""What a command is about: the model and the task that its flags name.

A directory or file is made absolute before it is opened, so that a run which is resumed from elsewhere finds the
same model and task, under the same name.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from discovery.cli.arguments import (
    LOAD_SETTINGS,
    MEMORY,
    MODEL,
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


def add_model_and_task_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose a model, the pairs of a task, and how it is measured."""
    for setting in LOAD_SETTINGS:
        setting.add_to(parser)
    add_placement_flags(parser)
    add_flag(
        parser,
        "--pairs",
        "N",
        partial(parse_whole_number, 1),
        "how many prompt pairs (default: all, or the built-in task's own number)",
    )
    add_flag(
        parser,
        "--seed",
        "S",
        partial(parse_whole_number, 0),
        "draws the pairs, the split and every resample (default 0)",
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
    """The flags for a model that is larger than one device, or than this machine."""
    text = (
        "auto: spread the weights over this machine's devices, memory and disk (slow; nnsight only)"
    )
    add_flag(parser, "--device-map", "auto", partial(parse_choice, ("auto",)), text)
    parser.add_argument(
        "--remote",
        action="store_true",
        help="run the model on NDIF, with the key in NDIF_API_KEY: prompts are sent there",
    )


def add_sae_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that names a sparse autoencoder."""
    text = "a SAELens directory, the id or the folder of a training, or release/sae_id of the hub (default: the bundled model's)"
    add_flag(parser, "--sae", "SAE", parse_text, text, default="bundled")


def load_request(args: argparse.Namespace) -> LoadArguments:
    """Return how the flags and the environment ask for a model and a task to be loaded."""
    from discovery.backends.loading.load_arguments import LoadArguments

    remote, spread = getattr(args, "remote", False), getattr(args, "device_map", None)
    plain = (
        ("backend", "device", "dtype") if remote else ("device",) if spread else ()
    )  # the environment's are for models loaded whole here
    asked: dict[str, Any] = {
        setting.name: setting.flag_value(args) or setting.default
        if setting.name in plain
        else setting.resolve_value(args)
        for setting in LOAD_SETTINGS
    }
    return LoadArguments(
        model=_absolute_model(asked["model"]),
        backend=asked["backend"],
        device=asked["device"],
        dtype=asked["dtype"],
        device_map=spread,
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
    for warning in model.info.warnings:
        console.write_note(f"warning: {warning}")
    return model


def load_requested_task(load: LoadArguments, model: Backend, seed: int, console: Console) -> Task:
    """Read the task that was asked for, and print its warnings."""
    from discovery.tasks import load_task

    task = load_task(load.task or DEFAULT_TASK, model, pairs=load.pairs, seed=seed)
    for warning in task.warnings:
        console.write_note(f"warning: {warning}")
    return task


def _absolute_model(name: str) -> str:
    directory = absolute_path(name)
    return str(directory) if name != MODEL.default and directory.is_dir() else name


def _absolute_task(name: str) -> str:
    from discovery.tasks import BUILTIN

    path = absolute_path(name)
    return str(path) if name not in BUILTIN and path.is_file() else name
