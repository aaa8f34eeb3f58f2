"""`circuit-scout sae examples`: where in a text features fire most."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from discovery.cli.arguments import LOADING, RUNS_DIR, Commands, UsageError, any_text, flag, whereabouts, whole
from discovery.cli.console import Console
from discovery.cli.model_and_task import add_place_flags, add_sae_flag, loading, open_model
from discovery.tasks import BUILTIN

if TYPE_CHECKING:
    from discovery.methods.features import Examples
    from discovery.methods.features.examples.dashboards import Card

_ABOUT = """Read a text once and show the contexts in which features fire most, and contexts of lesser activation by quantile. A line is a
document; JSON Lines (.jsonl) have {"text": …}, another --field, {"tokens": [ids]}, or a task's pairs. The name of a built-in task stands
for its prompts. What was found is kept and given again at once."""
_NUMBERS = {  # flag -> (least, what the settings call it, help)
    "--top": (1, "k", "strongest contexts of each (default 10)"),
    "--bins": (0, "bins", "quantile bins (default 4)"),
    "--window": (2, "window", "tokens of a pass (default 128)"),
    "--around": (0, "around", "tokens shown on either side of a peak (default 10)"),
    "--positions": (1, "most", "positions to read at most (default: all)"),
    "--seed": (0, "seed", "draws what the bins show (default 0)"),
}


def add_verb(verbs: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Add `examples` to the verbs of `sae`."""
    verb = verbs.add_parser("examples", parents=parents, help="where in a text features fire most", description=_ABOUT)
    for setting in LOADING:
        setting.add(verb)
    add_place_flags(verb)
    add_sae_flag(verb)
    RUNS_DIR.add(verb)
    flag(verb, "--text", "FILE", any_text, "what is read: a file, or a built-in task", required=True)
    flag(verb, "--features", "LIST", _numbers, "their numbers, as in 12,345", required=True)
    flag(verb, "--field", "NAME", any_text, "the field of JSON Lines that holds the text (default text)")
    for name, (least, _, text) in _NUMBERS.items():
        flag(verb, name, "N", partial(whole, least), text)
    verb.add_argument("--no-cache", action="store_true", help="keep nothing, and look nothing up")
    verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    verb.set_defaults(run=examples, parser=verb)


def examples(args: argparse.Namespace, console: Console) -> None:
    """Look for features in a text."""
    from discovery.graph.strict_json import dumps

    text = args.text if args.text in BUILTIN else whereabouts(args.text)
    if isinstance(text, Path) and not text.is_file():
        cure = f"Give a text with one document a line, JSON Lines, or a built-in task: {', '.join(BUILTIN)}."
        raise UsageError(f"--text is {args.text!r}, and there is no such file.", cure)
    model = open_model(loading(args), console)
    from discovery.features import open_sae
    from discovery.methods.features import Sampling, feature_examples

    given = {name: getattr(args, key[2:]) for key, (_, name, _) in _NUMBERS.items()}
    how = Sampling(**{name: value for name, value in given.items() if value is not None})
    found = feature_examples(
        model,
        open_sae(args.sae, model, RUNS_DIR.value(args)),
        text,
        args.features,
        field=args.field or "text",
        sampling=how,
        cache=not args.no_cache,
        progress=console.progress,
    )
    for warning in found.warnings:
        console.note(f"warning: {warning}")
    if getattr(args, "json", False):
        console.write(dumps(dataclasses.asdict(found), indent=2) + "\n")
    else:
        console.say(_told(found))


def _told(found: Examples) -> str:
    heading = f"{found.positions:,} positions of {found.documents:,} documents of {found.text}{' (found before)' if found.cached else ''}"
    return "\n\n".join([heading, *(_card(card) for card in found.features)])


def _card(card: Card) -> str:
    mean = "" if card.mean is None else f", {card.mean:.3g} on average there"
    lines = [f"feature {card.feature}: fires at {card.density:.2%} of positions{mean}"]
    lines += [f"  {example.value:8.3g}  {_line(example.text)}" for example in card.top]
    for part in card.bins:
        lines.append(f"  {part.low:.3g} to {part.high:.3g}:")
        lines += [f"  {example.value:8.3g}  {_line(example.text)}" for example in part.examples]
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _numbers(name: str, word: str) -> list[int]:
    return [whole(0, name, part.strip()) for part in word.split(",")]
