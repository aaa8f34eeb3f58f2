"""`circuit-scout sae examples`: show where in a text the features of an SAE fire most."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from discovery.cli.arguments import (
    LOAD_SETTINGS,
    RUNS_DIR,
    Subparsers,
    add_flag,
    add_json_flag,
    parse_text,
    parse_whole_number,
)
from discovery.cli.console import Console
from discovery.cli.model_and_task import (
    add_placement_flags,
    add_sae_flag,
    load_request,
    load_requested_model,
    require_text_file,
)
from discovery.tasks import BUILTIN

if TYPE_CHECKING:
    from discovery.methods.features import FeatureExamples
    from discovery.methods.features.examples.dashboards import ActivatingExample, FeatureDashboard

_ABOUT = """Read a text once, and show the contexts in which features fire most, and contexts
with weaker activation by quantile. Each line of the text is a document. JSON Lines (.jsonl) have
{"text": …}, another --field, {"tokens": [ids]}, or the pairs of a task. The name of a built-in
task stands for its prompts. The result is cached, and printed from the cache the next time."""


class _SamplingFlag(NamedTuple):
    """A flag that sets one field of `Sampling`."""

    field: str
    minimum: int
    help: str


_SAMPLING_FLAGS = {
    "--top": _SamplingFlag("k", 1, "the number of strongest contexts of each (default 10)"),
    "--bins": _SamplingFlag("bins", 0, "the number of quantile bins (default 4)"),
    "--window": _SamplingFlag("window", 2, "the number of tokens of a pass (default 128)"),
    "--around": _SamplingFlag(
        "around", 0, "the number of tokens shown on either side of a peak (default 10)"
    ),
    "--positions": _SamplingFlag("most", 1, "the most positions to read (default: all)"),
    "--seed": _SamplingFlag("seed", 0, "the seed that draws the contexts in the bins (default 0)"),
}


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the verb `examples` to the command `sae`."""
    verb = verbs.add_parser(
        "examples",
        parents=parents,
        help="show where in a text features fire most",
        description=_ABOUT,
    )
    for setting in LOAD_SETTINGS:
        setting.add_to(verb)
    add_placement_flags(verb)
    add_sae_flag(verb)
    RUNS_DIR.add_to(verb)
    text_help = "the text to read: a file, or a built-in task"
    add_flag(verb, "--text", "FILE", parse_text, text_help, required=True)
    features_help = "the numbers of the features, as in 12,345"
    add_flag(verb, "--features", "LIST", _parse_features, features_help, required=True)
    field_help = "the field of JSON Lines that holds the text (default text)"
    add_flag(verb, "--field", "NAME", parse_text, field_help)
    for name, flag in _SAMPLING_FLAGS.items():
        add_flag(verb, name, "N", partial(parse_whole_number, flag.minimum), flag.help)
    verb.add_argument(
        "--no-cache", action="store_true", help="neither read from the cache nor write to it"
    )
    add_json_flag(verb, is_verb=True)
    verb.set_defaults(run=print_examples, parser=verb)


def print_examples(args: argparse.Namespace, console: Console) -> None:
    """Print where features fire in a text."""
    advice = (
        "Give a text with one document a line, JSON Lines, or a built-in task: "
        f"{', '.join(BUILTIN)}."
    )
    text = args.text if args.text in BUILTIN else require_text_file(args.text, advice)
    model = load_requested_model(load_request(args), console)
    from discovery.features import open_sae
    from discovery.methods.features import Sampling, feature_examples

    settings = {flag.field: getattr(args, name[2:]) for name, flag in _SAMPLING_FLAGS.items()}
    sampling = Sampling(**{name: value for name, value in settings.items() if value is not None})
    examples = feature_examples(
        model,
        open_sae(args.sae, model, RUNS_DIR.resolve_value(args)),
        text,
        args.features,
        field=args.field or "text",
        sampling=sampling,
        cache=not args.no_cache,
        progress=console.progress,
    )
    console.write_warning_notes(examples.warnings)
    if getattr(args, "json", False):
        console.write_json(dataclasses.asdict(examples))
    else:
        console.write_result(_format_examples(examples))


def _format_examples(examples: FeatureExamples) -> str:
    size = f"{examples.positions:,} positions of {examples.documents:,} documents"
    heading = f"{size} of {examples.text}{' (from the cache)' if examples.cached else ''}"
    return "\n\n".join([heading, *map(_format_dashboard, examples.features)])


def _format_dashboard(dashboard: FeatureDashboard) -> str:
    mean = "" if dashboard.mean is None else f", {dashboard.mean:.3g} on average there"
    firing = f"fires at {dashboard.density:.2%} of positions{mean}"
    lines = [f"feature {dashboard.feature}: {firing}", *map(_format_example, dashboard.top)]
    for bin in dashboard.bins:
        lines.append(f"  {bin.low:.3g} to {bin.high:.3g}:")
        lines += map(_format_example, bin.examples)
    return "\n".join(lines)


def _format_example(example: ActivatingExample) -> str:
    return f"  {example.value:8.3g}  {' '.join(example.text.split())}"


def _parse_features(name: str, word: str) -> list[int]:
    return [parse_whole_number(0, name, part.strip()) for part in word.split(",")]
