"""`circuit-scout runs`: list runs, show one, verify it, export it, or add SAE features to it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from discovery.cli.arguments import (
    MEMORY,
    RUNS_DIR,
    Subparsers,
    UsageError,
    add_flag,
    add_json_flag,
    parse_choice,
    parse_positions,
    parse_whole_number,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.exit_status import EXIT_COMPLETED, EXIT_DOES_NOT_HOLD
from discovery.cli.model_and_task import add_sae_flag
from discovery.cli.suggested_commands import DISCOVER_COMMAND, TRAIN_COMMAND, format_resume_command

if TYPE_CHECKING:
    from discovery.store import Run

FORMATS = ("json", "graphml", "dot", "mermaid")

_MAX_RANKED = 12
"""How many nodes of a ranking are shown."""

Command = Callable[[argparse.Namespace, Console], int | None]
"""The function of a verb. It returns an exit status, or None for "completed"."""

_VERIFY = """Measure the circuit of a run again, and compare. The exit status is 0 if the record
holds and 3 if it does not."""
_FEATURES = """Find features by attribution, verify them by exact ablation on held-out pairs, and
write those that hold into the record, with their edges. The verdict does not change."""


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs to the parser."""
    parser = commands.add_parser(
        "runs", parents=parents, help="the runs: list, show, verify, export, features"
    )
    RUNS_DIR.add_to(parser)
    add_json_flag(parser)
    parser.set_defaults(run=print_runs, parser=parser)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    def add_verb(
        name: str, run: Command, text: str, description: str | None = None
    ) -> argparse.ArgumentParser:
        verb: argparse.ArgumentParser = verbs.add_parser(
            name, parents=parents, help=text, description=description
        )
        RUNS_DIR.add_to(verb, default=argparse.SUPPRESS)
        add_json_flag(verb, is_verb=True)
        verb.set_defaults(run=run, parser=verb)
        if name != "list":
            id_help = "the id of a run, as `circuit-scout runs list` shows it"
            verb.add_argument("id", metavar="ID", help=id_help)
        return verb

    add_verb("list", print_runs, "list every run, the newest first")
    add_verb("show", print_run, "show what a run found")
    add_verb("verify", verify_circuit, "measure the circuit of a run again", _VERIFY)
    export_verb = add_verb("export", export_circuit, "print the circuit in another format")
    format_help = "default json; json and graphml can be read back"
    parse_format = partial(parse_choice, FORMATS)
    add_flag(export_verb, "--format", "|".join(FORMATS), parse_format, format_help)
    _add_feature_flags(
        add_verb("features", attach_features, "add features of an SAE to a circuit", _FEATURES)
    )


def _add_feature_flags(verb: argparse.ArgumentParser) -> None:
    add_sae_flag(verb)
    positions_help = "the positions, as in end,S2,-1 (default: all)"
    add_flag(verb, "--positions", "LIST", parse_positions, positions_help)
    add_flag(
        verb,
        "--candidates",
        "N",
        partial(parse_whole_number, 1),
        "the number of features to try (default 16)",
    )
    MEMORY.add_to(verb)


def print_runs(args: argparse.Namespace, console: Console) -> None:
    """Print every run."""
    from discovery.store import default_runs_dir, list_runs

    folder = RUNS_DIR.resolve_value(args) or default_runs_dir()
    runs = list_runs(folder)
    if args.json:
        facts = [dataclasses.asdict(run) for run in runs]
        console.write_json({"runs_dir": str(folder), "runs": facts})
    elif not runs:
        console.write_note(f"There are no runs in {folder}; `circuit-scout discover` makes one.")
    else:
        rows = [("run", "status", "verdict", "task", "model", "")]
        rows += [
            (
                run.id,
                run.status,
                run.verdict or "",
                run.task or "",
                run.model or "",
                run.problem or "",
            )
            for run in runs
        ]
        console.write_result(format_columns(rows, indent=0))


def print_run(args: argparse.Namespace, console: Console) -> None:
    """Print what a run found, or how far it is."""
    from discovery.cli.summary import describe_circuit
    from discovery.evaluation.verdict import find_contradictions
    from discovery.store import open_run, read_ranking

    run = open_run(RUNS_DIR.resolve_value(args), args.id)
    circuit = run.load_circuit() if (run.path / "circuit.json").exists() else None
    contradictions = find_contradictions(circuit) if circuit else ()
    if args.json:
        record = run.record.model_dump(mode="json", by_alias=True)
        record.update(
            status=run.status,
            path=str(run.path),
            circuit=circuit.to_node_link() if circuit else None,
            contradictions=list(contradictions),
            ranking=[
                {
                    "node": str(ranked.node),
                    "denoising": ranked.denoising,
                    "noising": ranked.noising,
                }
                for ranked in read_ranking(run.events())
            ],
        )
        console.write_json(record)
    elif circuit and run.status == "completed":
        sections = [*_format_contradictions(contradictions), describe_circuit(circuit, run.path)]
        if not circuit.size and circuit.verdict != "no_behaviour":
            sections += _format_unjudged(run)
        console.write_result("\n".join(sections))
    else:
        console.write_result(_format_journal(run))


def _format_contradictions(contradictions: Sequence[str]) -> list[str]:
    """Return a warning for a record whose verdict does not follow from its own numbers."""
    if not contradictions:
        return []
    lines = ["This record contradicts itself, so its verdict must not be relied on:"]
    lines += [f"  - {contradiction}" for contradiction in contradictions]
    lines.append("Measure it again with `circuit-scout runs verify`, or start a new run.\n")
    return ["\n".join(lines)]


def _format_journal(run: Run) -> str:
    record = run.record
    status = run.status
    lines = [f"{run.id}: {status}, begun {record.created}, last written {record.updated}"]
    if record.problem:
        lines.append(f"  {record.problem}")
    lines += [
        f"  {event.get('stage')}: {event.get('concluded', '')}"
        for event in run.events()
        if "stage" in event
    ]
    lines += _format_unjudged(run)
    if status == "completed":
        lines.append(f"  the SAE: {run.path / 'sae'}")
    elif status != "running":
        command = TRAIN_COMMAND if record.kind == "sae" else DISCOVER_COMMAND
        resume_command = format_resume_command(run.id, run.path.parent, command)
        lines += ["To resume, run:", f"  {resume_command}"]
    return "\n".join(lines)


def _format_unjudged(run: Run) -> list[str]:
    """Return what a discovery has found by now: the largest single nodes, and its candidate."""
    from discovery.report import formatting
    from discovery.store import read_candidate, read_ranking

    events = run.events()
    lines = []
    if candidate := read_candidate(events):
        names = ", ".join(node.label for node in candidate)
        lines.append(f"The circuit so far, not judged ({len(candidate)} nodes): {names}")
    if ranking := read_ranking(events):
        rows: list[tuple[str, ...]] = [("node", "denoising", "noising")]
        for ranked in ranking[:_MAX_RANKED]:
            effects = (ranked.denoising, ranked.noising)
            rows.append((ranked.node.label, *map(formatting.format_number, effects)))
        lines.append("The largest effects of single nodes, not judged:")
        lines.append(format_columns(rows))
    return lines


def verify_circuit(args: argparse.Namespace, console: Console) -> int:
    """Measure the circuit of a run again, print the differences, and return the exit status."""
    from discovery.agent import verify_run

    verification = verify_run(
        args.id, runs_dir=RUNS_DIR.resolve_value(args), progress=console.progress
    )
    status = EXIT_COMPLETED if verification.holds else EXIT_DOES_NOT_HOLD
    if args.json:
        console.write_json(dataclasses.asdict(verification))
        return status
    if verification.holds:
        outcome = "holds: its evaluation, measured again, is the same"
    else:
        outcome = "does not hold: its evaluation, measured again, differs"
    work = f"{verification.forward_equivalents:,.0f} forward-pass equivalents"
    lines = [f"{verification.run_id} {outcome} ({verification.checked} numbers, {work})."]
    lines += [f"  - {difference}" for difference in verification.differences]
    lines.append(
        "Not measured again: the curve, the stability of the selection (f), effects of single "
        "nodes, edges, and the words of the reasons."
    )
    console.write_result("\n".join(lines))
    return status


def attach_features(args: argparse.Namespace, console: Console) -> None:
    """Add the features of an SAE to the circuit of a run."""
    from discovery.agent import add_features_to_run
    from discovery.cli.summary import describe_features

    result = add_features_to_run(
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
            {**dataclasses.asdict(candidate), "node": str(candidate.node)}
            for candidate in result.candidates
        ]
        console.write_json({"circuit": result.circuit.to_node_link(), "candidates": candidates})
        return
    rejected = [
        f"  {candidate.node.label} does not hold: {candidate.why}"
        for candidate in result.candidates
        if candidate.why
    ]
    console.write_result("\n".join([describe_features(result.circuit), *rejected]))


def export_circuit(args: argparse.Namespace, console: Console) -> None:
    """Print the circuit of a run in another format."""
    from discovery.store import open_run

    if args.json and args.format not in (None, "json"):
        raise UsageError(f"--json was given with --format {args.format}.", "Give one of them.")
    circuit = open_run(RUNS_DIR.resolve_value(args), args.id).load_circuit()
    console.write_document(circuit.export(args.format or "json"))
