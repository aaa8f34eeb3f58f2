"""`circuit-scout look heads`: which kinds of heads a model has."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from discovery.cli.arguments import (
    MEMORY,
    Subparsers,
    add_flag,
    add_json_flag,
    parse_text,
    parse_whole_number,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.look.frame import (
    add_load_flags,
    format_mean,
    parse_figure_path,
    to_json,
    write,
)
from discovery.cli.model_and_task import load_request, load_requested_model

if TYPE_CHECKING:
    from discovery.methods.heads import AblationCheck, HeadKind, HeadKinds

_ABOUT = """Name the heads that look at the previous token, at the first one, at the last few, at an
earlier copy of the current token or at what followed it (induction), and those that copy what they
read, on repeated random tokens. A head is named only beyond chance, corrected for the number of
heads and kinds, and above a minimum effect. What is lost without the named heads stands beside
what is lost without random ones."""


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the technique to the command `look`."""
    parser = verbs.add_parser(
        "heads", parents=parents, help="which kinds of heads the model has", description=_ABOUT
    )
    add_load_flags(parser)
    task_help = "also find name movers on this task, whose pairs label IO and S2, such as ioi"
    add_flag(parser, "--task", "TASK", parse_text, task_help)
    whole = partial(parse_whole_number, 4)
    add_flag(parser, "--sequences", "N", whole, "sequences of repeated tokens (default 24)")
    controls_help = "random sets of heads for each causal check (default 10; 0 for no checks)"
    add_flag(parser, "--controls", "N", partial(parse_whole_number, 0), controls_help)
    add_flag(parser, "--seed", "S", partial(parse_whole_number, 0), "the seed (default 0)")
    add_flag(parser, "--figure", "FILE", parse_figure_path, "save a picture as PNG")
    add_json_flag(parser)
    parser.set_defaults(run=print_heads, parser=parser)


def print_heads(args: argparse.Namespace, console: Console) -> None:
    """Print the kinds of heads of a model."""
    model = load_requested_model(load_request(args), console)
    from discovery.methods.heads import head_kinds
    from discovery.report.techniques import draw_head_kinds

    chosen = {
        "sequences": args.sequences,
        "controls": args.controls,
        "seed": args.seed,
        "task": args.task,
    }
    kinds = head_kinds(
        model,
        memory=MEMORY.resolve_value(args),
        progress=console.progress,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    write(
        args,
        console,
        kinds,
        facts=to_json(kinds),
        text=_format_kinds(kinds),
        picture=lambda: draw_head_kinds(
            {name: scores.numpy() for name, scores in kinds.scores.items()}
        ),
    )


def _format_kinds(kinds: HeadKinds) -> str:
    heading = (
        f"{kinds.n_heads} heads, {kinds.n_sequences} sequences of 2 × {kinds.half} random tokens; "
        "p is corrected for all heads and kinds."
    )
    return "\n\n".join([heading, *map(_format_kind, kinds.kinds)])


def _format_kind(kind: HeadKind) -> str:
    title = f"{kind.kind} (named from {kind.minimum_effect:g} above chance on)"
    rows = [
        (score.node, format_mean(score.score, 2), f"chance {score.chance:.2f}", f"p {score.p:.1e}")
        for score in kind.heads
    ]
    lines = [title, format_columns(rows) if rows else "  no head"]
    if kind.check is not None:
        lines.append(f"  {_format_check(kind.check)}")
    if kind.runners_up:
        others = (f"{score.node} {score.score.mean:.2f}" for score in kind.runners_up)
        lines.append(f"  not named: {', '.join(others)}")
    return "\n".join(lines)


def _format_check(check: AblationCheck) -> str:
    controls = "no random sets"
    if check.controls:
        lowest, highest = min(check.controls), max(check.controls)
        controls = f"{len(check.controls)} random sets {lowest:.2f} to {highest:.2f}"
    change = format_mean(check.change, 2)
    measure = check.measure.replace("_", " ")
    return f"without them the {measure} changes by {change} from {check.intact:.2f}; " + (
        f"{controls}, p {check.p:.2f}"
    )
