"""`circuit-scout sae`: train a sparse autoencoder, describe one, or show where it fires."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from discovery.backends.loading.source import BUNDLED
from discovery.cli.arguments import (
    LOAD_SETTINGS,
    MEMORY,
    RUNS_DIR,
    Subparsers,
    UsageError,
    ValueParser,
    absolute_path,
    add_flag,
    add_json_flag,
    parse_choice,
    parse_positive_number,
    parse_text,
    parse_whole_number,
)
from discovery.cli.commands import sae_examples
from discovery.cli.console import Console, format_columns
from discovery.cli.model_and_task import (
    add_placement_flags,
    load_request,
    load_requested_model,
    load_requested_task,
    require_no_settings,
    require_text_file,
)
from discovery.cli.suggested_commands import TRAIN_COMMAND
from discovery.tasks import BUILTIN, TEXT_PAIRS

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.backends.loading.load_arguments import LoadArguments
    from discovery.features.training import TrainedSAE
    from discovery.features.training.text import TrainingInput

ARCHITECTURES = ("topk", "standard")
_TRAIN = """Train a sparse autoencoder through SAELens on the activations of one site. Each line
of the text is a document. JSON Lines (.jsonl) have {"text": …} or {"tokens": [ids]}. Memory and
time are estimated first. The run is written to a folder as it goes. If it is interrupted,
--resume continues it. When it is finished, its folder holds the SAE in the format of SAELens."""
_INFO = """Describe an SAE, and how good it is on its own text. This reads only its files. PATH
is `bundled`, a SAELens directory, or the id or the folder of a training."""


class _RecipeFlag(NamedTuple):
    """A flag that sets one field of the recipe of a training."""

    field: str
    metavar: str
    parse_value: ValueParser
    help: str


_RECIPE_FLAGS: Mapping[str, _RecipeFlag] = {
    "--features": _RecipeFlag(
        "d_sae",
        "F",
        partial(parse_whole_number, 2),
        "the number of features (default: 8 for each dimension of the activation)",
    ),
    "--k": _RecipeFlag(
        "k",
        "K",
        partial(parse_whole_number, 1),
        "topk: the features kept at a position (default: by the width; 16 of 128)",
    ),
    "--l1": _RecipeFlag(
        "l1",
        "C",
        parse_positive_number,
        "standard: the coefficient of the L1 penalty (default 1)",
    ),
    "--tokens": _RecipeFlag(
        "tokens",
        "N",
        partial(parse_whole_number, 64),
        "the positions to train on (default: 1,000 for each feature)",
    ),
    "--batch": _RecipeFlag(
        "batch",
        "N",
        partial(parse_whole_number, 1),
        "the positions in a step (default: a thousandth of the tokens)",
    ),
    "--learning-rate": _RecipeFlag(
        "learning_rate",
        "R",
        parse_positive_number,
        "the highest learning rate (default: by the number of features)",
    ),
    "--context": _RecipeFlag(
        "context",
        "N",
        partial(parse_whole_number, 2),
        "the most tokens of a row (default 256, or the limit of the model)",
    ),
}


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs to the parser."""
    parser = commands.add_parser(
        "sae",
        parents=parents,
        help="sparse autoencoders: train one, describe one, or show where it fires",
    )
    add_json_flag(parser)
    parser.set_defaults(run=print_info, parser=parser, path=BUNDLED)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _register_train(verbs, parents)
    info_verb = verbs.add_parser("info", parents=parents, help="describe an SAE", description=_INFO)
    info_verb.add_argument(
        "path",
        metavar="PATH",
        help="bundled, a SAELens directory, or the id or the folder of a training",
    )
    RUNS_DIR.add_to(info_verb)
    add_json_flag(info_verb, is_verb=True)
    info_verb.set_defaults(run=print_info, parser=info_verb)
    sae_examples.register_verb(verbs, parents)


def _register_train(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "train", parents=parents, help="train an SAE on a model", description=_TRAIN
    )
    for setting in (*LOAD_SETTINGS, MEMORY, RUNS_DIR):
        setting.add_to(verb)
    add_placement_flags(verb)
    _add_text_flags(verb)
    site_help = "as in resid_pre.2, or a hook point (default: resid_pre of the middle layer)"
    add_flag(verb, "--site", "SITE", parse_text, site_help)
    architecture = partial(parse_choice, ARCHITECTURES)
    add_flag(verb, "--architecture", "|".join(ARCHITECTURES), architecture, "default topk")
    for name, flag in _RECIPE_FLAGS.items():
        add_flag(verb, name, flag.metavar, flag.parse_value, flag.help)
    add_flag(
        verb,
        "--seed",
        "S",
        partial(parse_whole_number, 0),
        "the seed of the first weights, the order of the text and the held-out part (default 0)",
    )
    add_flag(verb, "--out", "DIR", parse_text, "also write the finished SAE to this directory")
    verb.add_argument(
        "--dry-run", action="store_true", help="only estimate the time and memory of the training"
    )
    resume_help = "continue an interrupted training, with the settings that it began with"
    add_flag(verb, "--resume", "RUN_ID", parse_text, resume_help)
    add_json_flag(verb, is_verb=True)
    verb.set_defaults(run=train, parser=verb, resumed_by=TRAIN_COMMAND)


def _add_text_flags(verb: argparse.ArgumentParser) -> None:
    add_flag(verb, "--text", "FILE", parse_text, "the text to train on")
    verb.add_argument(
        "--task",
        metavar="TASK",
        action="append",
        help="train on the prompts of a task instead, both sides; may be given more than once",
    )
    add_flag(
        verb,
        "--pairs",
        "N",
        partial(parse_whole_number, 1),
        f"the pairs of each task (default: {TEXT_PAIRS:,} of a built-in one, or all)",
    )


def train(args: argparse.Namespace, console: Console) -> None:
    """Start a training, resume one, or only estimate it."""
    if args.out is not None:
        _require_no_file_in_path(args.out)
    if args.resume is not None:
        trained = _resume_training(args, console)
    else:
        load, text, model = _load_model_and_text(args, console)
        recipe_settings = _recipe_settings(args)
        if args.dry_run:
            _write_estimate(args, console, model, text, recipe_settings)
            return
        from discovery.features.training import train_sae

        trained = train_sae(
            model,
            text,
            **recipe_settings,
            memory=MEMORY.resolve_value(args),
            runs_dir=RUNS_DIR.resolve_value(args),
            command=args.command,
            load=load,
            progress=console.progress,
            on_event=console.report_event,
        )
    if args.out is not None:
        from discovery.features.directory import copy_sae

        copy_sae(trained.directory, absolute_path(args.out))
    _write_result(args, console, trained)


def print_info(args: argparse.Namespace, console: Console) -> None:
    """Print what an SAE is."""
    from discovery.features.directory import read_info

    info = read_info(args.path, RUNS_DIR.resolve_value(args))
    facts = dataclasses.asdict(info)
    if args.json:
        console.write_json(facts)
        return
    rows = [
        (name, _format_value(value))
        for name, value in facts.items()
        if name not in ("recipe", "scores") and value
    ]
    rows += [
        (name, _format_value(value))
        for name, value in (info.recipe or {}).items()
        if value is not None and name not in ("site", "d_in", "d_sae")
    ]
    console.write_result(format_columns(rows))
    if info.scores:
        scores = [
            (name.replace("_", " "), _format_value(value))
            for name, value in info.scores.items()
            if value is not None
        ]
        console.write_result("On held-out text of its own:")
        console.write_result(format_columns(scores))


def _load_model_and_text(
    args: argparse.Namespace, console: Console
) -> tuple[LoadArguments, TrainingInput, Backend]:
    """Return the arguments that loaded the model, the text to train on, and the model."""
    _check_text_flags(args)
    from discovery.backends.loading.load_arguments import LoadArguments
    from discovery.tasks import require_source

    task_names = args.task or []
    args.task = task_names[0] if task_names else None
    load = load_request(args)
    path = None
    if args.text is not None:
        path = require_text_file(args.text, "Give a text with one document a line.")
    for name in task_names:
        require_source(name)
    model = load_requested_model(load, console)
    model_arguments = LoadArguments(model=load.model, **load.options)
    if path is not None:
        return model_arguments, path, model
    tasks = []
    for name in task_names:
        pairs = args.pairs or (TEXT_PAIRS if name in BUILTIN else None)
        task_arguments = load.model_copy(update={"task": name, "pairs": pairs})
        tasks.append(load_requested_task(task_arguments, model, args.seed or 0, console))
    return model_arguments, tasks, model


def _check_text_flags(args: argparse.Namespace) -> None:
    """Check that either --text or --task is given, and --pairs only with --task."""
    advice = "Say what to train on: --text FILE, or --task ioi."
    if args.text is None and args.task is None:
        raise UsageError("Neither --text nor --task was given.", advice)
    if args.text is not None and args.task is not None:
        raise UsageError("Both --text and --task were given.", advice)
    if args.text is not None and args.pairs is not None:
        raise UsageError(
            f"--pairs {args.pairs} was given with --text.", "Leave it out: pairs belong to --task."
        )


def _require_no_file_in_path(word: str) -> None:
    """Check before the training that the directory for the finished SAE can be made."""
    path = absolute_path(word)
    if file := next((part for part in (path, *path.parents) if part.is_file()), None):
        raise UsageError(
            f"--out is {word!r}, and {file} is a file.",
            "Name a directory. It is made if it does not exist.",
        )


def _recipe_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `train_sae` that decide the recipe."""
    settings = {
        flag.field: getattr(args, name[2:].replace("-", "_"))
        for name, flag in _RECIPE_FLAGS.items()
    }
    return {
        **settings,
        "site": args.site,
        "architecture": args.architecture or "topk",
        "seed": args.seed or 0,
    }


def _resume_training(args: argparse.Namespace, console: Console) -> TrainedSAE:
    require_no_settings(args, "training", allowed=("out", "path", "resumed_by"))
    from discovery.features.training import resume_training

    return resume_training(
        args.resume,
        runs_dir=RUNS_DIR.resolve_value(args),
        progress=console.progress,
        on_event=console.report_event,
    )


def _write_result(args: argparse.Namespace, console: Console, trained: TrainedSAE) -> None:
    recipe = trained.recipe
    if args.json:
        facts = {
            "run_id": trained.run_id,
            "path": str(trained.path),
            "sae": str(trained.directory),
            "recipe": recipe,
            "scores": trained.scores,
        }
        console.write_json(facts)
        return
    heading = f"{recipe.d_sae:,} features of {recipe.site} ({recipe.architecture})"
    rows = [("sae", str(trained.directory)), ("run", str(trained.path))]
    table = format_columns(rows, indent=0)
    console.write_result(f"{heading}: {trained.scores.describe()}.\n\n{table}")


def _write_estimate(
    args: argparse.Namespace,
    console: Console,
    model: Backend,
    text: TrainingInput,
    recipe_settings: Mapping[str, Any],
) -> None:
    from discovery.features.training import estimate_training

    memory = MEMORY.resolve_value(args)
    recipe, estimate = estimate_training(model, text, memory=memory, **recipe_settings)
    if args.json:
        console.write_json({"recipe": recipe, "estimate": estimate})
        return
    heading = f"{recipe.d_sae:,} features of {recipe.site} ({recipe.architecture})"
    console.write_result(f"{heading}: {estimate.describe()}.")


def _format_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
