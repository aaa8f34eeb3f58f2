"""`circuit-scout sae examples`: where in a text features fire most."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from discovery.cli.arguments import (
    LOAD_SETTINGS,
    RUNS_DIR,
    Subparsers,
    UsageError,
    absolute_path,
    add_flag,
    parse_text,
    parse_whole_number,
)
from discovery.cli.console import Console
from discovery.cli.model_and_task import (
    add_placement_flags,
    add_sae_flag,
    load_request,
    load_requested_model,
)
from discovery.tasks import BUILTIN

if TYPE_CHECKING:
    from discovery.methods.features import FeatureExamples
    from discovery.methods.features.examples.dashboards import FeatureDashboard

_ABOUT = """Read a text once and show the contexts in which features fire most, and contexts of lesser activation by quantile. A line is a
document; JSON Lines (.jsonl) have {"text": …}, another --field, {"tokens": [ids]}, or a task's pairs. The name of a built-in task stands
for its prompts. What was found is kept and given again at once."""
_SAMPLING_FLAGS = {  # flag -> (least, what the settings call it, help)
    "--top": (1, "k", "strongest contexts of each (default 10)"),
    "--bins": (0, "bins", "quantile bins (default 4)"),
    "--window": (2, "window", "tokens of a pass (default 128)"),
    "--around": (0, "around", "tokens shown on either side of a peak (default 10)"),
    "--positions": (1, "most", "positions to read at most (default: all)"),
    "--seed": (0, "seed", "draws what the bins show (default 0)"),
}


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add `examples` to the verbs of `sae`."""
    verb = verbs.add_parser(
        "examples", parents=parents, help="where in a text features fire most", description=_ABOUT
    )
    for setting in LOAD_SETTINGS:
        setting.add_to(verb)
    add_placement_flags(verb)
    add_sae_flag(verb)
    RUNS_DIR.add_to(verb)
    add_flag(
        verb,
        "--text",
        "FILE",
        parse_text,
        "what is read: a file, or a built-in task",
        required=True,
    )
    add_flag(
        verb, "--features", "LIST", _parse_features, "their numbers, as in 12,345", required=True
    )
    add_flag(
        verb,
        "--field",
        "NAME",
        parse_text,
        "the field of JSON Lines that holds the text (default text)",
    )
    for name, (least, _, text) in _SAMPLING_FLAGS.items():
        add_flag(verb, name, "N", partial(parse_whole_number, least), text)
    verb.add_argument("--no-cache", action="store_true", help="keep nothing, and look nothing up")
    verb.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
    )
    verb.set_defaults(run=print_examples, parser=verb)


def print_examples(args: argparse.Namespace, console: Console) -> None:
    """Look for features in a text."""
    from discovery.graph.strict_json import dumps

    text = args.text if args.text in BUILTIN else absolute_path(args.text)
    if isinstance(text, Path) and not text.is_file():
        cure = f"Give a text with one document a line, JSON Lines, or a built-in task: {', '.join(BUILTIN)}."
        raise UsageError(f"--text is {args.text!r}, and there is no such file.", cure)
    model = load_requested_model(load_request(args), console)
    from discovery.features import open_sae
    from discovery.methods.features import Sampling, feature_examples

    given = {name: getattr(args, key[2:]) for key, (_, name, _) in _SAMPLING_FLAGS.items()}
    how = Sampling(**{name: value for name, value in given.items() if value is not None})
    found = feature_examples(
        model,
        open_sae(args.sae, model, RUNS_DIR.resolve_value(args)),
        text,
        args.features,
        field=args.field or "text",
        sampling=how,
        cache=not args.no_cache,
        progress=console.progress,
    )
    for warning in found.warnings:
        console.write_note(f"warning: {warning}")
    if getattr(args, "json", False):
        console.write_document(dumps(dataclasses.asdict(found), indent=2) + "\n")
    else:
        console.write_result(_format_examples(found))


def _format_examples(found: FeatureExamples) -> str:
    heading = f"{found.positions:,} positions of {found.documents:,} documents of {found.text}{' (found before)' if found.cached else ''}"
    return "\n\n".join([heading, *(_format_card(card) for card in found.features)])


def _format_card(card: FeatureDashboard) -> str:
    mean = "" if card.mean is None else f", {card.mean:.3g} on average there"
    lines = [f"feature {card.feature}: fires at {card.density:.2%} of positions{mean}"]
    lines += [
        f"  {example.value:8.3g}  {_collapse_whitespace(example.text)}" for example in card.top
    ]
    for part in card.bins:
        lines.append(f"  {part.low:.3g} to {part.high:.3g}:")
        lines += [
            f"  {example.value:8.3g}  {_collapse_whitespace(example.text)}"
            for example in part.examples
        ]
    return "\n".join(lines)


def _collapse_whitespace(text: str) -> str:
    return " ".join(text.split())


def _parse_features(name: str, word: str) -> list[int]:
    return [parse_whole_number(0, name, part.strip()) for part in word.split(",")]
