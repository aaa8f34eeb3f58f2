"""`circuit-scout models`: list the models on this machine, and describe one of them.

A model directory holds `config.json` (Hugging Face) or `tl_config.json` (TransformerLens native);
a GGUF model is a file. The models directory is searched for both up to three folders down. In the
output, `model` is the value to give to `--model`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discovery.backends.loading.gguf.files import find_gguf_parts, list_gguf_models
from discovery.backends.loading.source import MODEL_FORMATS, bundled_directory
from discovery.cli.arguments import (
    BACKEND,
    DEVICE,
    DTYPE,
    MODEL,
    MODELS_DIR,
    Subparsers,
    UsageError,
    add_json_flag,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.model_and_task import add_placement_flags, load_request
from discovery.errors import ModelError

if TYPE_CHECKING:
    from discovery.backends.loading.backend_choice import LoadPlan

_MAX_DEPTH = 3


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs to the parser."""
    parser = commands.add_parser(
        "models", parents=parents, help="list the models on this machine, or describe a model"
    )
    add_json_flag(parser)
    MODELS_DIR.add_to(parser)
    parser.set_defaults(run=print_models, parser=parser)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    list_verb = verbs.add_parser(
        "list",
        parents=parents,
        help="list the bundled model and those in the models directory",
    )
    info_verb = verbs.add_parser(
        "info",
        parents=parents,
        help="describe a model and the memory that it needs, from its configuration alone",
    )
    for verb, run in ((list_verb, print_models), (info_verb, print_info)):
        add_json_flag(verb, is_verb=True)
        MODELS_DIR.add_to(verb, default=argparse.SUPPRESS)
        verb.set_defaults(run=run, parser=verb)
    info_verb.add_argument("model", metavar="M", help=MODEL.help)
    for setting in (BACKEND, DEVICE, DTYPE):
        setting.add_to(info_verb)
    add_placement_flags(info_verb)


def print_models(args: argparse.Namespace, console: Console) -> None:
    """Print the bundled model, and every model under the models directory."""
    folder: Path | None = MODELS_DIR.resolve_value(args)
    if folder is not None and not folder.is_dir():
        raise UsageError(
            f"The models directory {str(folder)!r} is not a directory.",
            f"Give one with --models-dir or {MODELS_DIR.variable}.",
        )
    models = [
        {**_model_path_facts(bundled_directory()), "model": MODEL.default},
        *(_model_path_facts(path) for path in _find_models(folder)),
    ]
    if args.json:
        console.write_json({"models_dir": str(folder) if folder else None, "models": models})
        return
    rows = [
        (model["model"], model["format"] or "not installed", _format_megabytes(model["bytes"]))
        for model in models
    ]
    console.write_result(format_columns(rows))
    if folder is None:
        console.write_note(
            "Any hub name, model directory or GGUF file works too; --models-dir or "
            f"{MODELS_DIR.variable} lists the models of a directory here."
        )


def print_info(args: argparse.Namespace, console: Console) -> None:
    """Print what a model is and the memory that it needs, from its configuration alone."""
    from discovery.backends.hardware.placement import Placement
    from discovery.backends.loading.backend_choice import plan_load
    from discovery.backends.loading.outline import read_outline

    load = load_request(args)
    remote = bool(load.remote)
    plan = plan_load(
        read_outline(load.model, dtype=load.dtype),
        backend=load.backend,
        device=load.device,
        placement=Placement.from_arguments(load.device_map, None, load.device, remote=remote),
        remote=remote,
    )
    facts = _model_facts(plan)
    memory = _memory_facts(plan)
    if args.json:
        console.write_json({**facts, "memory": memory, "fits": plan.misfit is None})
        return
    rows = [(name, _format_value(value)) for name, value in facts.items()]
    console.write_result(format_columns(rows))
    for line in _describe_memory(memory, remote=remote):
        console.write_result(line)
    console.write_result(f"Free on {plan.device}: {_format_megabytes(plan.free_bytes)}.")
    if plan.misfit is not None:
        console.write_result(str(plan.misfit))


def _model_facts(plan: LoadPlan) -> dict[str, Any]:
    outline = plan.choice.outline
    return {
        **dataclasses.asdict(outline),
        "n_nodes": outline.n_nodes,
        "backend": plan.choice.backend,
        "chosen": plan.choice.reason,
    }


def _describe_memory(memory: dict[str, Any], *, remote: bool) -> Iterator[str]:
    """Yield sentences about the memory that a model and a sweep need."""
    if remote:
        yield "Memory: none for the weights, which are not loaded here."
    else:
        yield (
            f"Memory: at most {_format_megabytes(memory['loading'])} while the model is loaded, "
            f"and {_format_megabytes(memory['weights'])} after that."
        )
    if memory["disk"]:
        yield (
            f"{_format_megabytes(memory['disk'])} of the weights lie on the disk, and are read "
            "again in every pass."
        )
    yield (
        f"In addition, a sweep of {memory['pairs']} pairs of {memory['tokens']} tokens takes "
        f"{_format_megabytes(memory['sweep'])}, or {_format_megabytes(memory['sweep_pair'])} "
        "pair by pair."
    )
    yield f"With --memory {memory['limit']} or more, all these pairs are swept together."


def _memory_facts(plan: LoadPlan) -> dict[str, Any]:
    """Return the memory that a model needs and the memory that is free, in bytes."""
    from discovery.engine import MemoryNeed

    outline = plan.choice.outline
    on_disk = outline.weights_bytes - plan.resident_bytes if plan.loading_bytes else 0
    return {
        "loading": plan.loading_bytes,
        "weights": plan.resident_bytes,
        **dataclasses.asdict(MemoryNeed.of(outline)),
        "disk": on_disk,
        "free": plan.free_bytes,
    }


def _find_models(folder: Path | None, depth: int = _MAX_DEPTH) -> Iterator[Path]:
    """Yield the models in a folder and up to `depth` folders below it: directories and files."""
    if folder is None:
        return
    if _model_format(folder):
        yield folder
        return
    yield from list_gguf_models(folder)
    for entry in sorted(folder.iterdir()) if depth else ():
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _find_models(entry, depth - 1)


def _model_path_facts(path: Path) -> dict[str, Any]:
    """Return what the list says of a model; it has no size if a part of it is missing."""
    if path.is_file():
        with suppress(ModelError):
            size = sum(part.stat().st_size for part in find_gguf_parts(path))
            return {"model": str(path), "format": "gguf", "bytes": size}
        return {"model": str(path), "format": "gguf", "bytes": None}
    size = 0
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return {"model": str(path), "format": _model_format(path), "bytes": size or None}


def _model_format(directory: Path) -> str | None:
    formats = (name for file, name in MODEL_FORMATS.items() if (directory / file).is_file())
    return next(formats, None)


def _format_megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f} MB"


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        return "; ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
