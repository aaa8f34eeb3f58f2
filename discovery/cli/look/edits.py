"""`circuit-scout look edits`: what declarative edits of activations do."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from discovery.cli.arguments import (
    Subparsers,
    UsageError,
    absolute_path,
    add_flag,
    parse_choice,
    parse_text,
    parse_whole_number,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.look.frame import (
    Subject,
    add_technique,
    format_mean,
    format_subject,
    load_subject,
    to_json,
    write,
)
from discovery.sites import SITE_NAMES

if TYPE_CHECKING:
    from discovery.methods.edits import EditRun, EditSet

_ABOUT = """Run prompts with the edits of a file, edits.json, and compare with the unedited run.
With --cell, the edits are one cell of a patching sweep instead; --save writes them to a file."""


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the technique to the command `look`."""
    parser = add_technique(
        verbs,
        parents,
        "edits",
        help="what edits of activations do (edits.json)",
        about=_ABOUT,
        run=print_edits,
    )
    add_flag(parser, "--edits", "FILE", parse_text, "the edits, as JSON (--schema prints the form)")
    cell_help = (
        "one cell of a sweep, as in head_out:9.6 or resid_pre:4:S2 (site:layer.head:position)"
    )
    add_flag(parser, "--cell", "CELL", parse_text, cell_help)
    direction_help = "of --cell: denoising or noising (default)"
    directions = ("noising", "denoising")
    add_flag(parser, "--direction", "D", partial(parse_choice, directions), direction_help)
    add_flag(parser, "--save", "FILE", parse_text, "write the edits that were run to a file")
    top_help = "the number of tokens before and after (default 5)"
    add_flag(parser, "--top", "N", partial(parse_whole_number, 1), top_help, default=5)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of edits.json")


def print_edits(args: argparse.Namespace, console: Console) -> None:
    """Print what the edits do, or the schema of their file."""
    from discovery.methods.edits import edits_json_schema

    if args.schema:
        console.write_result(json.dumps(edits_json_schema(), indent=2))
        return
    _require_one_source(args)
    if args.edits is not None:
        _read_edits(args)  # a mistake in the file is reported before the model is loaded
    subject = load_subject(args, console)
    from discovery.methods.edits import run_with_edits
    from discovery.report.techniques import draw_token_changes

    edits = _read_edits(args) if args.edits is not None else _cell_edits(args, subject)
    run = run_with_edits(subject.model, edits, subject.task, top=args.top, **subject.options())
    if args.save is not None:
        edits.save(absolute_path(args.save))
        console.write_note(f"The edits are in {absolute_path(args.save)}.")
    write(
        args,
        console,
        run,
        facts={**to_json(run), "edits": edits.to_json()},
        text=_format_run(run),
        picture=lambda: draw_token_changes(run.tokens, title=f"edits on {format_subject(run)}"),
    )


def _require_one_source(args: argparse.Namespace) -> None:
    if (args.edits is None) == (args.cell is None):
        given = "neither" if args.edits is None else "both"
        raise UsageError(
            f"--edits and --cell: {given} was given.", "Give a file of edits, or one cell."
        )
    if args.direction is not None and args.cell is None:
        raise UsageError("--direction belongs to --cell.", "Leave it out.")


def _read_edits(args: argparse.Namespace) -> EditSet:
    from discovery.methods.edits import EditSet

    return EditSet.of(absolute_path(args.edits))


def _cell_edits(args: argparse.Namespace, subject: Subject) -> EditSet:
    """Return the edits of the cell that --cell names.

    Raises:
        UsageError: if it is no cell.
    """
    from discovery.methods.edits import EditSet

    site, _, rest = args.cell.partition(":")
    place, _, position = rest.partition(":")
    layer, _, head = place.partition(".")
    if site not in SITE_NAMES or not layer.isdigit() or (head and not head.isdigit()):
        raise UsageError(
            f"--cell is {args.cell!r}, and is not a cell of a sweep.",
            f"Write site:layer, site:layer.head or site:layer.head:position; sites are "
            f"{', '.join(SITE_NAMES)}.",
        )
    is_denoising = args.direction == "denoising"
    edit: dict[str, Any] = {
        "operation": "resample",
        "site": "head_out" if site == "head_out_by_position" else site,
        "layer": int(layer),
        "source": "clean" if is_denoising else "corrupted",
    }
    if head:
        is_shared = bool(subject.model.info.key_value_groups(site))
        edit["kv_head" if is_shared else "head"] = int(head)
    if position:
        number = position.removeprefix("-")
        edit["positions"] = [int(position) if number.isdigit() else position]
    return EditSet.of(
        {
            "description": f"{args.direction or 'noising'} of {args.cell}",
            "model": subject.model.info.name,
            "side": "corrupted" if is_denoising else "clean",
            "edits": [edit],
        }
    )


def _format_run(run: EditRun) -> str:
    metric = run.metric.replace("_", " ")
    count = len(run.edits.edits)
    heading = f"{count} edit{'s' * (count > 1)} on the {run.side} side of {format_subject(run)}."
    rows = [
        (f"{metric} before", format_mean(run.before)),
        (f"{metric} after", format_mean(run.after)),
        ("change", format_mean(run.change)),
    ]
    if run.effect is not None:
        name = "restored" if run.side == "corrupted" else "lost"
        rows.append((f"share {name}", f"{run.effect:.3f}"))
    tokens = [("token", "before", "after")]
    tokens += [
        (repr(token.text), f"{token.before:.3f}", f"{token.after:.3f}") for token in run.tokens
    ]
    return "\n\n".join([heading, format_columns(rows), format_columns(tokens)])
