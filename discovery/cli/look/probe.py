"""`circuit-scout look probe`: where a label can be read, and whether the model uses it."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, get_args

from discovery.cli.arguments import (
    MEMORY,
    Subparsers,
    UsageError,
    absolute_path,
    add_flag,
    parse_choice,
    parse_positions,
    parse_text,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.look.frame import (
    add_technique,
    format_mean,
    load_subject,
    parse_token_ids,
    to_json,
    write,
)
from discovery.cli.model_and_task import load_request, load_requested_model
from discovery.sites import FeatureSite

if TYPE_CHECKING:
    from discovery.methods.probes import DirectionRemoval, ProbeCell, ProbeResult

DEFAULT_PROBE_PAIRS = 120

_SITES = tuple(site for site in get_args(FeatureSite) if site != "z")
_ABOUT = """Train a linear probe for a label at each layer and position, test it on other
templates, and compare with shuffled labels, the token alone and the largest class. With two
classes, the probe's direction is then removed, beside 20 random ones that change as much."""


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the technique to the command `look`."""
    parser = add_technique(
        verbs,
        parents,
        "probe",
        help="where a label can be read, and whether it is used",
        about=_ABOUT,
        run=print_probe,
        takes_prompt=False,
    )
    label_help = "side (default), answer, token:NAME, or before:NAME,NAME"
    add_flag(parser, "--label", "LABEL", parse_text, label_help)
    examples_help = "labelled prompts (JSON Lines: prompt, label, template), instead of a task"
    add_flag(parser, "--examples", "FILE", parse_text, examples_help)
    site_help = f"{', '.join(_SITES)} (default resid_pre)"
    add_flag(parser, "--site", "SITE", partial(parse_choice, _SITES), site_help)
    add_flag(parser, "--layers", "LIST", parse_token_ids, "layers, as in 0,4,8 (default all)")
    positions_help = "positions or labels, as in S2,-1 (default -1, the answer position)"
    add_flag(parser, "--positions", "LIST", parse_positions, positions_help)
    parser.add_argument(
        "--no-removal", action="store_true", help="do not remove the direction of the best probe"
    )


def print_probe(args: argparse.Namespace, console: Console) -> None:
    """Print how well each probe reads the label, and what is lost without its direction."""
    if args.examples is not None and (args.task is not None or args.label is not None):
        raise UsageError(
            "--examples was given with a task or --label.",
            "Labelled prompts have their own labels: leave out the others.",
        )
    if args.pairs is None:
        args.pairs = DEFAULT_PROBE_PAIRS
    task = examples = None
    if args.examples is None:
        subject = load_subject(args, console)
        model, task = subject.model, subject.task
    else:
        model = load_requested_model(load_request(args), console)
        examples = absolute_path(args.examples)
    from discovery.methods.probes import probe
    from discovery.report.techniques import draw_probe

    result = probe(
        model,
        task,
        examples=examples,
        label=args.label or "side",
        site=args.site or "resid_pre",
        layers=args.layers,
        positions=args.positions or (-1,),
        removal=not args.no_removal,
        metric=args.metric,
        seed=args.seed or 0,
        memory=MEMORY.resolve_value(args),
        progress=console.progress,
    )
    write(
        args,
        console,
        result,
        facts={**to_json(result), "best": to_json(result.best)},
        text=_format_probe(result),
        picture=lambda: draw_probe(result.cells, title=f"{result.label} in {result.task}"),
    )


def _format_probe(result: ProbeResult) -> str:
    classes = ", ".join(f"{name} ({count})" for name, count in result.classes.items())
    heading = f"Probes of {result.site} for {result.label} in {result.task}: {classes}."
    head = ("layer", "position", "accuracy", "shuffled", "selectivity", "token", "majority", "p")
    parts = [heading, format_columns([head, *map(_format_cell, result.cells)])]
    if result.removal is not None:
        parts.append(_format_removal(result.removal))
    return "\n\n".join(parts)


def _format_cell(cell: ProbeCell) -> tuple[str, ...]:
    return (
        str(cell.layer),
        str(cell.position),
        format_mean(cell.accuracy),
        f"{cell.shuffled:.3f}",
        f"{cell.selectivity:+.3f}",
        f"{cell.token:.3f}",
        f"{cell.majority:.3f}",
        f"{cell.p:.2g}",
    )


def _format_removal(removal: DirectionRemoval) -> str:
    share = "" if removal.effect is None else f" ({removal.effect:.1%} of clean − corrupted)"
    largest = max(removal.random, key=abs)
    verdict = "used" if removal.is_used else "not shown to be used"
    return (
        f"Without the direction at layer {removal.layer}, position {removal.position}, the metric "
        f"of {removal.n} other pairs falls by {format_mean(removal.change)}{share}.\n"
        f"{len(removal.random)} random directions of {removal.control}: mean "
        f"{sum(removal.random) / len(removal.random):.3f}, largest {largest:.3f}; "
        f"p = {removal.p:.3f}. The direction is {verdict}."
    )
