"""`circuit-scout sae`: train a sparse autoencoder on one layer of a model, say what one is, and where in a text it fires."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discovery.cli.arguments import (
    LOAD_SETTINGS,
    MEMORY,
    RUNS_DIR,
    Subparsers,
    UsageError,
    ValueParser,
    absolute_path,
    add_flag,
    parse_choice,
    parse_positive_number,
    parse_text,
    parse_whole_number,
)
from discovery.cli.commands.sae_examples import register_verb as add_examples
from discovery.cli.console import Console, format_columns
from discovery.cli.model_and_task import (
    add_placement_flags,
    load_request,
    load_requested_model,
    load_requested_task,
)
from discovery.cli.suggested_commands import TRAIN_COMMAND
from discovery.tasks import BUILTIN, TEXT_PAIRS

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.backends.loading.load_arguments import LoadArguments
    from discovery.features.training import TrainedSAE
    from discovery.features.training.text import TrainingInput

ARCHITECTURES = ("topk", "standard")
_RECIPE_FLAGS: Mapping[
    str, tuple[str, ValueParser, str, str]
] = {  # flag -> its value in the help, how it is read, the recipe's name for it, help
    "--features": (
        "F",
        partial(parse_whole_number, 2),
        "d_sae",
        "how many (default: 8 for each number of the activation)",
    ),
    "--k": (
        "K",
        partial(parse_whole_number, 1),
        "k",
        "topk: features kept at a position (default: by the width; 16 of 128)",
    ),
    "--l1": (
        "C",
        parse_positive_number,
        "l1",
        "standard: the coefficient of the L1 penalty (default 1)",
    ),
    "--tokens": (
        "N",
        partial(parse_whole_number, 64),
        "tokens",
        "positions to train on (default: 1,000 for each feature)",
    ),
    "--batch": (
        "N",
        partial(parse_whole_number, 1),
        "batch",
        "positions in a step (default: a thousandth of the tokens)",
    ),
    "--learning-rate": (
        "R",
        parse_positive_number,
        "learning_rate",
        "at its height (default: by the number of features)",
    ),
    "--context": (
        "N",
        partial(parse_whole_number, 2),
        "context",
        "the most tokens of a row (default 256, or the model's own)",
    ),
}
_NOT_SETTINGS = (
    "resume",
    "runs_dir",
    "json",
    "verbose",
    "quiet",
    "run",
    "parser",
    "command",
    "resumed_by",
    "path",
)
_TRAIN = """Train a sparse autoencoder through SAELens on the activations of one site. A text has a document a line; JSON Lines
(.jsonl) have {"text": …} or {"tokens": [ids]}. Memory and time are estimated first. The run is kept as it goes: interrupted, it is
resumed with --resume; finished, its folder holds the dictionary in SAELens's format."""
_INFO = (
    "What a dictionary is and how good it was on its own text, from its files alone: `bundled`, its directory, or the id or the folder of "
    "a training."
)


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the noun and its verbs to the grammar."""
    noun = commands.add_parser(
        "sae",
        parents=parents,
        help="sparse autoencoders: train one, say what one is, or where it fires",
    )
    noun.add_argument("--json", action="store_true", help="print one JSON document")
    noun.set_defaults(run=print_info, parser=noun, path="bundled")
    verbs = noun.add_subparsers(title="verbs", metavar="VERB")
    train_verb = verbs.add_parser(
        "train", parents=parents, help="train one on a model of yours", description=_TRAIN
    )
    for setting in (*LOAD_SETTINGS, MEMORY, RUNS_DIR):
        setting.add_to(train_verb)
    add_placement_flags(train_verb)
    add_flag(train_verb, "--text", "FILE", parse_text, "what to train on")
    train_verb.add_argument(
        "--task",
        metavar="TASK",
        action="append",
        help="or the prompts of a task, both sides of its pairs; may be given again",
    )
    add_flag(
        train_verb,
        "--pairs",
        "N",
        partial(parse_whole_number, 1),
        f"how many pairs of each task (default: {TEXT_PAIRS:,} of a built-in one, or all)",
    )
    add_flag(
        train_verb,
        "--site",
        "SITE",
        parse_text,
        "as in resid_pre.2, or a hook point (default: resid_pre of the middle layer)",
    )
    add_flag(
        train_verb,
        "--architecture",
        "|".join(ARCHITECTURES),
        partial(parse_choice, ARCHITECTURES),
        "default topk",
    )
    for name, (metavar, read, _, text) in _RECIPE_FLAGS.items():
        add_flag(train_verb, name, metavar, read, text)
    add_flag(
        train_verb,
        "--seed",
        "S",
        partial(parse_whole_number, 0),
        "draws the first weights, the order of the text and what is held out (default 0)",
    )
    add_flag(train_verb, "--out", "DIR", parse_text, "also write the finished dictionary there")
    train_verb.add_argument(
        "--dry-run", action="store_true", help="only estimate what the training would take"
    )
    add_flag(
        train_verb,
        "--resume",
        "RUN_ID",
        parse_text,
        "go on with an interrupted training, with the settings that it began with",
    )
    info_verb = verbs.add_parser(
        "info", parents=parents, help="what a dictionary is", description=_INFO
    )
    info_verb.add_argument(
        "path",
        metavar="PATH",
        help="bundled, a SAELens directory, or the id or the folder of a training",
    )
    RUNS_DIR.add_to(info_verb)
    add_examples(verbs, parents)
    for verb, act in ((train_verb, train), (info_verb, print_info)):
        verb.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )
        verb.set_defaults(run=act, parser=verb, resumed_by=TRAIN_COMMAND)


def train(args: argparse.Namespace, console: Console) -> None:
    """Train, resume or estimate."""
    if args.out is not None:
        _require_folder(args.out)
    if args.resume is not None:
        trained = _resume_training(args, console)
    else:
        load, text, model = _load_model_and_text(args, console)
        asked = _recipe_settings(args)
        if args.dry_run:
            _write_estimate(args, console, model, text, asked)
            return
        from discovery.features.training import train_sae

        kept = {
            "memory": MEMORY.resolve_value(args),
            "runs_dir": RUNS_DIR.resolve_value(args),
            "command": args.command,
            "load": load,
        }
        trained = train_sae(
            model, text, **asked, **kept, progress=console.progress, on_event=console.report_event
        )
    if args.out is not None:
        from discovery.features.directory import copy_sae

        copy_sae(trained.directory, absolute_path(args.out))
    _write_result(args, console, trained)


def print_info(args: argparse.Namespace, console: Console) -> None:
    """What a dictionary is."""
    from discovery.features.directory import read_info
    from discovery.graph.strict_json import dumps

    found = read_info(args.path, RUNS_DIR.resolve_value(args))
    if args.json:
        console.write_document(dumps(dataclasses.asdict(found), indent=2) + "\n")
        return
    recipe = {
        name: value
        for name, value in (found.recipe or {}).items()
        if value is not None and name not in ("site", "d_in", "d_sae")
    }
    rows = [
        (name, _format_value(value))
        for name, value in dataclasses.asdict(found).items()
        if name not in ("recipe", "scores") and value
    ]
    console.write_result(
        format_columns([*rows, *((name, _format_value(value)) for name, value in recipe.items())])
    )
    if found.scores:
        console.write_result("On held-out text of its own:")
        console.write_result(
            format_columns(
                [
                    (name.replace("_", " "), _format_value(value))
                    for name, value in found.scores.items()
                    if value is not None
                ]
            )
        )


def _load_model_and_text(
    args: argparse.Namespace, console: Console
) -> tuple[LoadArguments, TrainingInput, Backend]:
    """How the model was opened, what is trained on, and the model."""
    if (args.text is None) == (args.task is None):
        given = (
            "Neither --text nor --task was" if args.text is None else "Both --text and --task were"
        )
        raise UsageError(f"{given} given.", "Say what to train on: --text FILE, or --task ioi.")
    if args.text is not None and args.pairs is not None:
        raise UsageError(
            f"--pairs {args.pairs} was given with --text.", "Leave it out: pairs belong to --task."
        )
    from discovery.backends.loading.load_arguments import LoadArguments
    from discovery.tasks import require_source

    named = args.task or []
    args.task = named[0] if named else None
    load = load_request(args)
    if args.text is not None and not absolute_path(args.text).is_file():
        raise UsageError(
            f"--text is {args.text!r}, and there is no such file.",
            "Give a text with one document a line.",
        )
    for name in named:
        require_source(name)
    model = load_requested_model(load, console)
    model_arguments = LoadArguments(model=load.model, **load.options)
    if args.text is not None:
        return model_arguments, absolute_path(args.text), model
    pairs = {name: args.pairs or (TEXT_PAIRS if name in BUILTIN else None) for name in named}
    tasks = [
        load_requested_task(
            load.model_copy(update={"task": name, "pairs": pairs[name]}),
            model,
            args.seed or 0,
            console,
        )
        for name in named
    ]
    return model_arguments, tasks, model


def _require_folder(word: str) -> None:
    """Said before the training, and not after it."""
    path = absolute_path(word)
    if file := next((part for part in (path, *path.parents) if part.is_file()), None):
        raise UsageError(
            f"--out is {word!r}, and {file} is a file.",
            "Name a directory; it is made where it is not there.",
        )


def _recipe_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides the recipe."""
    given = {
        name: getattr(args, key[2:].replace("-", "_"))
        for key, (_, _, name, _) in _RECIPE_FLAGS.items()
    }
    return {
        **given,
        "site": args.site,
        "architecture": args.architecture or "topk",
        "seed": args.seed or 0,
    }


def _resume_training(args: argparse.Namespace, console: Console) -> TrainedSAE:
    given = [
        name
        for name, value in vars(args).items()
        if name not in (*_NOT_SETTINGS, "out") and value is not None and value is not False
    ]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"--resume {args.resume} was given with {words}.",
            "Leave them out: a training goes on with the settings that it began with.",
        )
    from discovery.features.training import resume_training

    return resume_training(
        args.resume,
        runs_dir=RUNS_DIR.resolve_value(args),
        progress=console.progress,
        on_event=console.report_event,
    )


def _write_result(args: argparse.Namespace, console: Console, trained: TrainedSAE) -> None:
    from discovery.graph.strict_json import dumps

    recipe, scores = trained.recipe, trained.scores
    if args.json:
        found = {
            "run_id": trained.run_id,
            "path": str(trained.path),
            "sae": str(trained.directory),
            "recipe": recipe,
            "scores": scores,
        }
        console.write_document(dumps(found, indent=2) + "\n")
        return
    rows = [("sae", str(trained.directory)), ("run", str(trained.path))]
    console.write_result(
        f"{recipe.d_sae:,} features of {recipe.site} ({recipe.architecture}): {scores.describe()}.\n\n{format_columns(rows, indent=0)}"
    )


def _write_estimate(
    args: argparse.Namespace,
    console: Console,
    model: Backend,
    text: TrainingInput,
    asked: Mapping[str, Any],
) -> None:
    from discovery.features.training import estimate_training
    from discovery.graph.strict_json import dumps

    recipe, expected = estimate_training(model, text, memory=MEMORY.resolve_value(args), **asked)
    if args.json:
        console.write_document(dumps({"recipe": recipe, "estimate": expected}, indent=2) + "\n")
        return
    console.write_result(
        f"{recipe.d_sae:,} features of {recipe.site} ({recipe.architecture}): {expected.describe()}."
    )


def _format_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else str(Path(value) if isinstance(value, Path) else value)
    )
