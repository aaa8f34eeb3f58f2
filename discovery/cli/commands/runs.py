"""`circuit-scout runs`: the runs that are kept: list, show, measure again, put features beside the circuit, export."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from discovery.cli.arguments import (
    MEMORY,
    RUNS_DIR,
    Subparsers,
    UsageError,
    add_flag,
    parse_choice,
    parse_positions,
    parse_whole_number,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.model_and_task import add_sae_flag
from discovery.cli.suggested_commands import DISCOVER_COMMAND, TRAIN_COMMAND, format_resume_command

if TYPE_CHECKING:
    from discovery.store import Run

FORMATS = ("json", "graphml", "dot", "mermaid")
_ABOUT = {
    "verify": "Measure a run's circuit again and compare. The exit status is 0 whether it holds or not: `holds` in the JSON says which.",
    "features": "Find features by attribution, verify them by exact ablation on held-out pairs, and write those that hold into the record, "
    "with their edges. The verdict stays as it is.",
}


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the noun and its verbs to the grammar."""
    noun = commands.add_parser(
        "runs", parents=parents, help="kept runs: list, show, verify, export, features"
    )
    _add_shared_flags(noun)
    noun.set_defaults(run=print_runs, parser=noun)
    verbs = noun.add_subparsers(title="verbs", metavar="VERB")
    kinds = {
        "list": (print_runs, "every run, the newest first"),
        "show": (show, "what a run found"),
        "verify": (verify, "measure a circuit again"),
    }
    others = {
        "export": (export, "the circuit in another format"),
        "features": (attach_features, "put the features of an SAE beside a circuit"),
    }
    for name, (act, text) in {**kinds, **others}.items():
        verb = verbs.add_parser(name, parents=parents, help=text, description=_ABOUT.get(name))
        _add_shared_flags(verb, default=argparse.SUPPRESS)
        verb.set_defaults(run=act, parser=verb)
        if name != "list":
            verb.add_argument(
                "id", metavar="ID", help="of a run, as `circuit-scout runs list` shows it"
            )
        if name == "features":
            add_sae_flag(verb)
            add_flag(
                verb,
                "--positions",
                "LIST",
                parse_positions,
                "which positions, as in end,S2,-1 (default: all)",
            )
            add_flag(
                verb,
                "--candidates",
                "N",
                partial(parse_whole_number, 1),
                "how many features are tried (default 16)",
            )
            MEMORY.add_to(verb)
        if name == "export":
            add_flag(
                verb,
                "--format",
                "|".join(FORMATS),
                partial(parse_choice, FORMATS),
                "default json; json and graphml can be read back",
            )


def _add_shared_flags(parser: argparse.ArgumentParser, **more: Any) -> None:
    RUNS_DIR.add_to(parser, **more)
    parser.add_argument("--json", action="store_true", help="print one JSON document", **more)


def print_runs(args: argparse.Namespace, console: Console) -> None:
    """Every run."""
    from discovery.graph.strict_json import dumps
    from discovery.store import default_runs_dir, list_runs

    place = RUNS_DIR.resolve_value(args) or default_runs_dir()
    found = list_runs(place)
    if args.json:
        console.write_document(
            dumps(
                {"runs_dir": str(place), "runs": [dataclasses.asdict(run) for run in found]},
                indent=2,
            )
            + "\n"
        )
    elif not found:
        console.write_note(f"There are no runs in {place}; `circuit-scout discover` makes one.")
    else:
        rows = [
            (
                run.id,
                run.status,
                run.verdict or "",
                run.task or "",
                run.model or "",
                run.problem or "",
            )
            for run in found
        ]
        console.write_result(
            format_columns([("run", "status", "verdict", "task", "model", ""), *rows], indent=0)
        )


def show(args: argparse.Namespace, console: Console) -> None:
    """One run: what it found, or how far it is."""
    from discovery.cli.summary import describe_circuit
    from discovery.graph.strict_json import dumps
    from discovery.store import open_run

    run = open_run(RUNS_DIR.resolve_value(args), args.id)
    circuit = run.load_circuit() if (run.path / "circuit.json").exists() else None
    if args.json:
        record = run.record.model_dump(mode="json", by_alias=True)
        found = circuit.to_node_link() if circuit else None
        console.write_document(
            dumps(
                {**record, "status": run.status, "path": str(run.path), "circuit": found}, indent=2
            )
            + "\n"
        )
    else:
        console.write_result(
            describe_circuit(circuit, run.path)
            if circuit and run.status == "completed"
            else _format_journal(run)
        )


def _format_journal(run: Run) -> str:
    record, status = run.record, run.status
    lines = [f"{run.id}: {status}, begun {record.created}, last written {record.updated}"]
    if record.problem:
        lines.append(f"  {record.problem}")
    lines += [
        f"  {event.get('stage')}: {event.get('concluded', '')}"
        for event in run.events()
        if "stage" in event
    ]
    if status == "completed":
        lines.append(f"  the dictionary: {run.path / 'sae'}")
    elif status != "running":
        command = TRAIN_COMMAND if record.kind == "sae" else DISCOVER_COMMAND
        lines += ["go on with:", f"  {format_resume_command(run.id, run.path.parent, command)}"]
    return "\n".join(lines)


def verify(args: argparse.Namespace, console: Console) -> None:
    """Measure a run's circuit again."""
    from discovery.agent import verify_run as measure_again
    from discovery.graph.strict_json import dumps

    found = measure_again(args.id, runs_dir=RUNS_DIR.resolve_value(args), progress=console.progress)
    if args.json:
        console.write_document(dumps(dataclasses.asdict(found), indent=2) + "\n")
        return
    verdict = (
        "holds: its evaluation, measured again, is the same"
        if found.holds
        else "does not hold: its evaluation, measured again, differs"
    )
    heading = f"{found.run_id} {verdict} ({found.checked} numbers, {found.forward_equivalents:,.0f} forward-pass equivalents)."
    left = "Not measured again: the curve, the stability of the selection (f), effects of single nodes, edges, and the words of the reasons."
    console.write_result(
        "\n".join([heading, *(f"  - {difference}" for difference in found.differences), left])
    )


def attach_features(args: argparse.Namespace, console: Console) -> None:
    """Put an SAE's features beside a run's circuit."""
    from discovery.agent import add_features_to_run
    from discovery.cli.summary import describe_features as described
    from discovery.graph.strict_json import dumps

    found = add_features_to_run(
        args.id,
        args.sae,
        positions=args.positions,
        k=args.candidates or 16,
        runs_dir=RUNS_DIR.resolve_value(args),
        memory=MEMORY.resolve_value(args),
        progress=console.progress,
    )
    if args.json:
        candidates = [
            {**dataclasses.asdict(one), "node": str(one.node)} for one in found.candidates
        ]
        console.write_document(
            dumps({"circuit": found.circuit.to_node_link(), "candidates": candidates}, indent=2)
            + "\n"
        )
        return
    lacking = [f"  {one.node.label} does not: {one.why}" for one in found.candidates if one.why]
    console.write_result("\n".join([described(found.circuit), *lacking]))


def export(args: argparse.Namespace, console: Console) -> None:
    """A run's circuit as text."""
    from discovery.store import open_run

    if args.json and args.format not in (None, "json"):
        raise UsageError(f"--json was given with --format {args.format}.", "Give one of them.")
    console.write_document(
        open_run(RUNS_DIR.resolve_value(args), args.id).load_circuit().export(args.format or "json")
    )
