"""`circuit-scout models`: the models that are at hand, and what one of them is.

A model directory is one that holds `config.json` (Hugging Face) or `tl_config.json` (TransformerLens native); those
in the models directory are found up to three folders down. `model` is what `--model` takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discovery.cli.arguments import (
    BACKEND,
    DEVICE,
    DTYPE,
    MODEL,
    MODELS_DIR,
    Subparsers,
    UsageError,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.model_and_task import add_placement_flags, load_request

if TYPE_CHECKING:
    from discovery.backends.loading.backend_choice import LoadPlan

_MAX_DEPTH = 3
_FORMATS = {"config.json": "huggingface", "tl_config.json": "native"}


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the noun and its verbs to the grammar."""
    noun = commands.add_parser("models", parents=parents, help="models at hand, and what one is")
    noun.add_argument("--json", action="store_true", help="print one JSON document")
    MODELS_DIR.add_to(noun)
    noun.set_defaults(run=print_models, parser=noun)
    verbs = noun.add_subparsers(title="verbs", metavar="VERB")
    for name, act, text in (
        ("list", print_models, "the bundled model and those in the models directory"),
        (
            "info",
            print_info,
            "what a model is and what memory it takes, from its configuration alone",
        ),
    ):
        verb = verbs.add_parser(name, parents=parents, help=text)
        verb.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )
        MODELS_DIR.add_to(verb, default=argparse.SUPPRESS)
        verb.set_defaults(run=act, parser=verb)
        if name == "info":
            verb.add_argument("model", metavar="M", help=MODEL.help)
            for setting in (BACKEND, DEVICE, DTYPE):
                setting.add_to(verb)
            add_placement_flags(verb)


def print_models(args: argparse.Namespace, console: Console) -> None:
    """The bundled model, and every model directory under the models directory."""
    from discovery.graph.strict_json import dumps

    place: Path | None = MODELS_DIR.resolve_value(args)
    if place is not None and not place.is_dir():
        raise UsageError(
            f"The models directory {str(place)!r} is not a directory.",
            f"Give one with --models-dir or {MODELS_DIR.variable}.",
        )
    bundled = Path(str(importlib.resources.files("discovery.backends"))) / "bundled"
    found = [
        {**_directory_facts(bundled), "model": MODEL.default},
        *(_directory_facts(directory) for directory in _find_model_directories(place)),
    ]
    if args.json:
        console.write_document(
            dumps({"models_dir": str(place) if place else None, "models": found}, indent=2) + "\n"
        )
        return
    console.write_result(
        format_columns(
            [
                (row["model"], row["format"] or "not installed", _format_megabytes(row["bytes"]))
                for row in found
            ]
        )
    )
    if place is None:
        console.write_note(
            f"Any hub name or model directory works too; --models-dir or {MODELS_DIR.variable} lists a directory's models here."
        )


def print_info(args: argparse.Namespace, console: Console) -> None:
    """What a model is and what memory it takes, from its configuration alone."""
    from discovery.backends.hardware.placement import Placement
    from discovery.backends.loading.backend_choice import plan_load
    from discovery.backends.loading.outline import read_outline
    from discovery.graph.strict_json import dumps

    asked = load_request(args)
    remote = bool(asked.remote)
    placement = Placement.from_arguments(asked.device_map, None, asked.device, remote=remote)
    plan = plan_load(
        read_outline(asked.model, dtype=asked.dtype),
        backend=asked.backend,
        device=asked.device,
        placement=placement,
        remote=remote,
    )
    outline = plan.choice.outline
    facts = {
        **dataclasses.asdict(outline),
        "n_nodes": outline.n_nodes,
        "backend": plan.choice.backend,
        "chosen": plan.choice.reason,
    }
    memory = _memory_facts(plan)
    if args.json:
        console.write_document(
            dumps({**facts, "memory": memory, "fits": plan.misfit is None}, indent=2) + "\n"
        )
        return
    console.write_result(
        format_columns([(name, _format_value(value)) for name, value in facts.items()])
    )
    pairs = "{pairs} pairs of {tokens} tokens".format(**memory)
    if remote:
        console.write_result("Memory: none for the weights, which are not loaded here.")
    else:
        console.write_result(
            f"Memory: {_format_megabytes(memory['loading'])} at most while it is loaded, {_format_megabytes(memory['weights'])} from then on."
        )
    if memory["disk"]:
        console.write_result(
            f"{_format_megabytes(memory['disk'])} of the weights lie on the disk, and are read again in every pass."
        )
    console.write_result(
        f"Beside it a sweep of {pairs} takes {_format_megabytes(memory['sweep'])}, or {_format_megabytes(memory['sweep_pair'])} pair by pair."
    )
    console.write_result(
        f"With --memory {memory['limit']} or more all these pairs are swept together."
    )
    console.write_result(f"Free on {plan.device}: {_format_megabytes(plan.free_bytes)}.")
    if plan.misfit is not None:
        console.write_result(str(plan.misfit))


def _memory_facts(plan: LoadPlan) -> dict[str, Any]:
    """Return what a model takes of the memory and what is free, in bytes."""
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


def _find_model_directories(place: Path | None, deep: int = _MAX_DEPTH) -> Iterator[Path]:
    """The model directories in `place` and below, by name."""
    if place is None:
        return
    if _model_format(place):
        yield place
        return
    for entry in sorted(place.iterdir()) if deep else ():
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _find_model_directories(entry, deep - 1)


def _directory_facts(directory: Path) -> dict[str, Any]:
    size = (
        sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        if directory.is_dir()
        else 0
    )
    return {"model": str(directory), "format": _model_format(directory), "bytes": size or None}


def _model_format(directory: Path) -> str | None:
    return next((kind for file, kind in _FORMATS.items() if (directory / file).is_file()), None)


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
