"""What a command is about: the model and the task that its flags name.

A directory or file is made absolute before it is opened, so that a run which is resumed from elsewhere finds the
same model and task, under the same name.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from discovery.cli.arguments import LOADING, MEMORY, MODEL, any_text, flag, one_of, whereabouts, whole
from discovery.cli.console import Console
from discovery.sites import METRIC_NAMES

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.tasks import Task

TASK = "ioi"


def add_subject_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose a model, the pairs of a task, and how it is measured."""
    for setting in LOADING:
        setting.add(parser)
    add_place_flags(parser)
    flag(parser, "--pairs", "N", partial(whole, 1), "how many prompt pairs (default: all, or the built-in task's own number)")
    flag(parser, "--seed", "S", partial(whole, 0), "draws the pairs, the split and every resample (default 0)")
    flag(parser, "--metric", "NAME", partial(one_of, METRIC_NAMES), f"{', '.join(METRIC_NAMES)} (default: the task's)")
    MEMORY.add(parser)


def add_place_flags(parser: argparse.ArgumentParser) -> None:
    """The flags for a model that is larger than one device, or than this machine."""
    text = "auto: spread the weights over this machine's devices, memory and disk (slow; nnsight only)"
    flag(parser, "--device-map", "auto", partial(one_of, ("auto",)), text)
    parser.add_argument("--remote", action="store_true", help="run the model on NDIF, with the key in NDIF_API_KEY: prompts are sent there")


def add_sae_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that names a sparse autoencoder."""
    text = "a SAELens directory, the id or the folder of a training, or release/sae_id of the hub (default: the bundled model's)"
    flag(parser, "--sae", "SAE", any_text, text, default="bundled")


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """How to open the model and the task again: model, backend, device, dtype, device_map, remote, task, pairs."""
    remote, spread = getattr(args, "remote", False), getattr(args, "device_map", None)
    plain = (
        ("backend", "device", "dtype") if remote else ("device",) if spread else ()
    )  # the environment's are for models loaded whole here
    asked = {setting.name: setting.given(args) or setting.default if setting.name in plain else setting.value(args) for setting in LOADING}
    return {
        **asked,
        "model": _model(asked["model"]),
        "device_map": spread,
        "remote": remote,
        "task": _task(getattr(args, "task", None) or TASK),
        "pairs": getattr(args, "pairs", None),
    }


def open_model(load: Mapping[str, Any], console: Console) -> Backend:
    """The model that `loading` names; a task that is not there is noticed before it is loaded."""
    from discovery.backends.loading.load import load_model
    from discovery.backends.remote.status import listening
    from discovery.tasks import require_source

    require_source(load["task"])

    console.note(f"Loading the model {load['model']}{' on NDIF' if load['remote'] else ''} …")
    how = {name: load[name] for name in ("backend", "device", "dtype", "device_map", "remote")}
    with listening(console.progress.say):
        model = load_model(load["model"], **how)
    console.note(f"On {model.info.backend}: {model.info.chosen}.")
    for warning in model.info.warnings:
        console.note(f"warning: {warning}")
    return model


def open_task(load: Mapping[str, Any], model: Backend, seed: int, console: Console) -> Task:
    """The task that `loading` names, read for a model."""
    from discovery.tasks import load_task

    task = load_task(load["task"], model, pairs=load["pairs"], seed=seed)
    for warning in task.warnings:
        console.note(f"warning: {warning}")
    return task


def _model(name: str) -> str:
    directory = whereabouts(name)
    return str(directory) if name != MODEL.default and directory.is_dir() else name


def _task(name: str) -> str:
    from discovery.tasks import BUILTIN

    path = whereabouts(name)
    return str(path) if name not in BUILTIN and path.is_file() else name
