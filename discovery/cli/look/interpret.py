"""`circuit-scout look interpret`: what one head does."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from discovery.cli.arguments import Subparsers, add_flag, parse_text, parse_whole_number
from discovery.cli.console import Console
from discovery.cli.look.frame import add_technique, load_subject, to_json, write

if TYPE_CHECKING:
    from discovery.methods.heads import HeadInterpretation

_ABOUT = """Measure what one head does on a task: its kinds, where it looks, what it matches and
writes, and whether it is needed, beside random heads. Only what is beyond chance after correction
is stated; the rest is listed as not known. The default head of the bundled model is a2.h0."""


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the technique to the command `look`."""
    parser = add_technique(
        verbs,
        parents,
        "interpret",
        help="what one head does",
        about=_ABOUT,
        run=print_interpretation,
        takes_prompt=False,
    )
    add_flag(parser, "--node", "HEAD", parse_text, "the head, as in a9.h6", default="a2.h0")
    controls_help = "random heads that its losses are compared with (default 19)"
    add_flag(parser, "--controls", "N", partial(parse_whole_number, 1), controls_help, default=19)


def print_interpretation(args: argparse.Namespace, console: Console) -> None:
    """Print what a head does, as far as it is known."""
    subject = load_subject(args, console)
    from discovery.methods.heads import interpret_head
    from discovery.report.techniques import draw_bar_panels

    assert subject.task is not None
    found = interpret_head(
        subject.model,
        args.node,
        subject.task,
        metric=subject.metric,
        controls=args.controls,
        seed=subject.seed,
        memory=subject.memory,
        progress=subject.progress,
    )
    title = f"{found.node} on {found.task}"
    write(
        args,
        console,
        found,
        facts=to_json(found),
        text=_format(found),
        picture=lambda: draw_bar_panels(found.panels(), title=title),
    )


def _format(found: HeadInterpretation) -> str:
    parts = [found.summary]
    if found.not_known:
        lines = (f"  {statement.aspect}: {statement}" for statement in found.not_known)
        parts.append("\n".join(["Not known:", *lines]))
    weights = found.weights
    details = {
        "writes (OV)": weights.ov.largest,
        "matches (QK)": () if weights.qk is None else weights.qk.largest,
        "reads": weights.reads_from,
        "is read by": weights.writes_to,
    }
    parts += [
        "\n".join([title, *(f"  {entry}" for entry in entries)])
        for title, entries in details.items()
        if entries
    ]
    return "\n\n".join(parts)
