"""`circuit-scout look lens`: at which layer the answer appears (the logit lens)."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from discovery.cli.arguments import Subparsers, add_flag, parse_positions, parse_whole_number
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
    from discovery.methods.readout import LensReading, LogitLens

_ABOUT = """Read the residual stream at each layer as if the model stopped there: its last norm and
its unembedding are applied to the stream. Shows the metric, the probability and the rank of the
answer, and the most likely tokens."""


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the technique to the command `look`."""
    parser = add_technique(
        verbs,
        parents,
        "lens",
        help="at which layer the answer appears (logit lens)",
        about=_ABOUT,
        run=print_lens,
    )
    positions_help = "positions or labels, as in S2,-1 (default -1, the answer position)"
    add_flag(parser, "--positions", "LIST", parse_positions, positions_help)
    top_help = "the number of tokens to show for each layer (default 5)"
    add_flag(parser, "--top", "N", partial(parse_whole_number, 1), top_help, default=5)


def print_lens(args: argparse.Namespace, console: Console) -> None:
    """Print what the lens reads at each layer."""
    subject = load_subject(args, console)
    from discovery.methods.readout import logit_lens
    from discovery.report.techniques import draw_lens

    lens = logit_lens(
        subject.model, subject.task, positions=args.positions, top=args.top, **subject.options()
    )
    write(
        args,
        console,
        lens,
        facts={**to_json(lens), "answer_layer": lens.answer_layer},
        text=_format_lens(lens),
        picture=lambda: draw_lens(lens.at(lens.positions[-1]), lens.metric, title="logit lens"),
    )


def _format_lens(lens: LogitLens) -> str:
    heading = f"Logit lens on {format_subject(lens)}; layer n is read at its input."
    if lens.answer is not None:
        heading += f" Answer {lens.answer!r}, wrong answer {lens.wrong!r}."
    layer = lens.answer_layer
    end = "The answer is not the most likely token at the end."
    if layer is not None:
        end = f"From layer {layer} on, the answer's median rank is 1."
    tables = [_format_position(lens, position) for position in lens.positions]
    return "\n\n".join([heading, *tables, end])


def _format_position(lens: LogitLens, position: int | str) -> str:
    metric = lens.metric.replace("_", " ")
    heading = ("layer", metric, "p(answer)", "rank", "agrees", "most likely")
    rows = [heading, *(_format_reading(reading) for reading in lens.at(position))]
    return f"position {position}\n{format_columns(rows)}"


def _format_reading(reading: LensReading) -> tuple[str, ...]:
    tokens = " ".join(repr(token.text) for token in reading.top)
    return (
        str(reading.layer),
        format_mean(reading.metric),
        f"{reading.probability.mean:.3f}",
        f"{reading.rank:g}",
        f"{reading.agreement:.0%}",
        tokens,
    )
