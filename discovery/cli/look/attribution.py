"""`circuit-scout look attribution`: which parts write the answer (direct logit attribution)."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from discovery.cli.arguments import Subparsers, add_flag, parse_whole_number
from discovery.cli.console import Console, format_columns
from discovery.cli.look.frame import (
    add_technique,
    format_mean,
    format_subject,
    load_subject,
    to_json,
    write,
)

if TYPE_CHECKING:
    from discovery.methods.readout import DirectAttribution

_ABOUT = """Write the logit difference of the answer as a sum over the embedding, every head, every
MLP and every bias, with the scale of the last norm frozen. Only what a part writes straight to the
logits counts."""


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the technique to the command `look`."""
    parser = add_technique(
        verbs,
        parents,
        "attribution",
        help="which parts write the answer (direct logit attribution)",
        about=_ABOUT,
        run=print_attribution,
    )
    top_help = "the number of parts to show (default 15)"
    add_flag(parser, "--top", "N", partial(parse_whole_number, 1), top_help, default=15)


def print_attribution(args: argparse.Namespace, console: Console) -> None:
    """Print what each part adds to the logit difference."""
    subject = load_subject(args, console)
    from discovery.methods.readout import direct_logit_attribution
    from discovery.report.techniques import draw_bars

    found = direct_logit_attribution(
        subject.model, subject.task, **subject.options(with_metric=False)
    )
    largest = found.top(args.top)
    write(
        args,
        console,
        found,
        facts=to_json(found),
        text=_format_attribution(found, args.top),
        picture=lambda: draw_bars(
            [part.part for part in largest],
            [part.value for part in largest],
            title="direct logit attribution",
            scale="contribution to the logit difference",
        ),
    )


def _format_attribution(found: DirectAttribution, top: int) -> str:
    heading = f"Direct logit attribution on {format_subject(found)}."
    if found.answer is not None:
        heading += f" Answer {found.answer!r}, wrong answer {found.wrong!r}."
    shown = found.top(top)
    rows = [("part", "contribution"), *((part.part, format_mean(part.value)) for part in shown)]
    rows += [
        (f"{len(found.contributions) - len(shown)} others", f"{_rest(found, top):.3f}"),
        ("sum", format_mean(found.total)),
        ("logit difference", format_mean(found.logit_difference)),
        ("remainder", f"{found.remainder:.1e}"),
    ]
    streams = [("stream at layer", "contribution so far")]
    streams += [(str(layer), format_mean(value)) for layer, value in enumerate(found.accumulated)]
    return f"{heading}\n{format_columns(rows)}\n\n{format_columns(streams)}"


def _rest(found: DirectAttribution, top: int) -> float:
    return found.total.mean - sum(part.value.mean for part in found.top(top))
