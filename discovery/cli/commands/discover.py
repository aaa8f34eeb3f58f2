"""`circuit-scout discover`: find the circuit behind a behaviour, test it, and keep the run."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from discovery.cli.arguments import (
    MEMORY,
    RUNS_DIR,
    Subparsers,
    add_flag,
    parse_choice,
    parse_positive_number,
    parse_text,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.model_and_task import (
    DEFAULT_TASK,
    add_model_and_task_flags,
    load_request,
    load_requested_model,
    load_requested_task,
    require_no_settings,
)
from discovery.sites import Universe

if TYPE_CHECKING:
    from discovery.agent import CostEstimate, DiscoveryResult

_ABOUT = """Find the circuit behind a behaviour, and test it on held-out prompts. Without
arguments, this is the task ioi in the bundled model. The run is written to a folder of its own
as it goes. If it is interrupted, --resume continues it."""


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "discover", parents=parents, help="find a circuit and test it", description=_ABOUT
    )
    parser.add_argument(
        "task",
        metavar="TASK",
        nargs="?",
        help="a built-in task (see `circuit-scout tasks`) or the path of a task file; "
        f"default {DEFAULT_TASK}",
    )
    add_model_and_task_flags(parser)
    universe_help = "what may be ablated: heads and MLPs (all, the default), or heads"
    parse_universe = partial(parse_choice, get_args(Universe))
    add_flag(parser, "--universe", "all|heads", parse_universe, universe_help)
    budget_help = (
        "the most work to do, in forward-pass equivalents summed over prompts; it is divided over "
        "the stages first, see --dry-run"
    )
    add_flag(parser, "--budget", "F", parse_positive_number, budget_help)
    parser.add_argument(
        "--exhaustive",
        action="store_true",
        help="measure every cell, also if that is expensive; never screen a sweep by gradients",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only estimate what the run would cost, in work and in time",
    )
    RUNS_DIR.add_to(parser)
    parser.add_argument(
        "--json", action="store_true", help="print circuit.json instead of a summary"
    )
    resume_help = (
        "continue an interrupted run, with the settings that it began with; with a larger --budget "
        "also one whose budget ended"
    )
    add_flag(parser, "--resume", "RUN_ID", parse_text, resume_help)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Start a run, resume one, or only estimate its cost."""
    if args.resume is not None:
        _write_result(args, console, _resume_run(args, console))
        return
    load = load_request(args)
    options = _options(args)
    model = load_requested_model(load, console)
    task = load_requested_task(load, model, args.seed or 0, console)
    _warn_of_few_pairs(len(task.heldout), console)
    if args.dry_run:
        from discovery.agent import estimate_cost

        estimate = estimate_cost(model, task, **options, seed=args.seed or 0)
        _write_estimate(args, console, estimate)
        return
    from discovery.agent import discover

    result = discover(
        model,
        task,
        **options,
        seed=args.seed or 0,
        runs_dir=RUNS_DIR.resolve_value(args),
        command=args.command,
        load=load,
        progress=console.progress,
        on_event=console.report_event,
        on_outlook=console.report_outlook,
    )
    _write_result(args, console, result)


def _warn_of_few_pairs(heldout: int, console: Console) -> None:
    from discovery.evaluation.thresholds import MIN_HELDOUT

    if heldout < MIN_HELDOUT:
        console.write_note(
            f"warning: {heldout} held-out pairs: the verdict will be inconclusive, because it "
            f"needs {MIN_HELDOUT}. Give more pairs."
        )


def _resume_run(args: argparse.Namespace, console: Console) -> DiscoveryResult:
    require_no_settings(args, "run", allowed=("budget",), positional="task")
    from discovery.agent import resume

    return resume(
        args.resume,
        budget=args.budget,
        runs_dir=RUNS_DIR.resolve_value(args),
        progress=console.progress,
        on_event=console.report_event,
        on_outlook=console.report_outlook,
    )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "metric": args.metric,
        "universe": args.universe or "all",
        "budget": args.budget,
        "memory": MEMORY.resolve_value(args),
        "exhaustive": args.exhaustive,
    }


def _write_result(args: argparse.Namespace, console: Console, result: DiscoveryResult) -> None:
    from discovery.cli.summary import describe_circuit

    if args.json:
        console.write_document(result.circuit.to_json())
    else:
        console.write_result(describe_circuit(result.circuit, result.path))


def _write_estimate(args: argparse.Namespace, console: Console, estimate: CostEstimate) -> None:
    from discovery.report.formatting import format_duration

    if args.json:
        console.write_json(estimate.to_dict())
        return
    total = f"{estimate.forward_equivalents:,.0f} forward-pass equivalents"
    duration = format_duration(estimate.seconds)
    rows = [("stage", "equivalents", "seconds", "")]
    for stage, work in estimate.stages.items():
        seconds = f"{work / estimate.rate:,.0f}"
        rows.append((stage, f"{work:,.0f}", seconds, _describe_share(estimate, stage)))
    lines = [
        f"About {total}, summed over prompts, or {duration} at {estimate.rate:,.0f} a second:",
        format_columns(rows),
    ]
    if estimate.note:
        lines.append(estimate.note)
    console.write_result("\n".join(lines))


def _describe_share(estimate: CostEstimate, stage: str) -> str:
    """Say what a stage gets of the budget, if that is less than it is estimated to take."""
    plan = estimate.plan
    if plan is None or stage not in (*plan.left_out, *plan.shortened):
        return ""
    share = plan.shares[stage]
    return f"gets {share:,.0f} of the budget" if share else "left out"
