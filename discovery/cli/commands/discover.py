"""`circuit-scout discover`: find the circuit behind a behaviour, judge it, and keep the run."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from discovery.cli.arguments import (
    MEMORY,
    RUNS_DIR,
    Subparsers,
    UsageError,
    add_flag,
    parse_choice,
    parse_positive_number,
    parse_text,
)
from discovery.cli.console import Console
from discovery.cli.model_and_task import (
    DEFAULT_TASK,
    add_model_and_task_flags,
    load_request,
    load_requested_model,
    load_requested_task,
)
from discovery.sites import Universe

if TYPE_CHECKING:
    from discovery.agent import CostEstimate, DiscoveryResult

_NOT_SETTINGS = ("resume", "runs_dir", "json", "verbose", "quiet", "run", "parser", "command")
_ABOUT = """Find the circuit behind a behaviour and judge it on held-out prompts. Without arguments: the task ioi in the bundled model.
The run is kept in a folder of its own as it goes; interrupted, it is resumed with --resume."""


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the grammar."""
    parser = commands.add_parser(
        "discover", parents=parents, help="find a circuit and judge it", description=_ABOUT
    )
    parser.add_argument(
        "task",
        metavar="TASK",
        nargs="?",
        help=f"a built-in task (see `circuit-scout tasks`) or the path of a task file; default {DEFAULT_TASK}",
    )
    add_model_and_task_flags(parser)
    add_flag(
        parser,
        "--universe",
        "all|heads",
        partial(parse_choice, get_args(Universe)),
        "what may be ablated: heads and MLPs (all, the default), or heads",
    )
    add_flag(
        parser,
        "--budget",
        "F",
        parse_positive_number,
        "the most work to do, in forward-pass equivalents summed over prompts",
    )
    parser.add_argument(
        "--exhaustive",
        action="store_true",
        help="never screen a sweep that is dear for the budget by gradients: measure every cell",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only estimate what the run would cost"
    )
    RUNS_DIR.add_to(parser)
    parser.add_argument(
        "--json", action="store_true", help="print circuit.json instead of a summary"
    )
    add_flag(
        parser,
        "--resume",
        "RUN_ID",
        parse_text,
        "go on with an interrupted run, with the settings that it began with",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Discover, resume or estimate."""
    if args.resume is not None:
        _write_result(args, console, _resume_run(args, console))
        return
    load, options = load_request(args), _options(args)
    model = load_requested_model(load, console)
    task = load_requested_task(load, model, args.seed or 0, console)
    _warn_of_few_pairs(len(task.heldout), console)
    if args.dry_run:
        from discovery.agent import estimate_cost

        _write_estimate(args, console, estimate_cost(model, task, **options))
        return
    from discovery.agent import discover

    seeded: dict[str, Any] = {
        "seed": args.seed or 0,
        "runs_dir": RUNS_DIR.resolve_value(args),
        "command": args.command,
        "load": load,
    }
    _write_result(
        args,
        console,
        discover(
            model,
            task,
            **options,
            **seeded,
            progress=console.progress,
            on_event=console.report_event,
        ),
    )


def _warn_of_few_pairs(heldout: int, console: Console) -> None:
    from discovery.evaluation.thresholds import MIN_HELDOUT

    if heldout < MIN_HELDOUT:
        console.write_note(
            f"warning: {heldout} held-out pairs: the verdict will be inconclusive, for it needs {MIN_HELDOUT}. Give more pairs."
        )


def _resume_run(args: argparse.Namespace, console: Console) -> DiscoveryResult:
    given = [
        name
        for name, value in vars(args).items()
        if name not in _NOT_SETTINGS and value is not None and value is not False
    ]
    if given:
        words = ", ".join(
            "TASK" if name == "task" else f"--{name.replace('_', '-')}" for name in given
        )
        raise UsageError(
            f"--resume {args.resume} was given with {words}.",
            "Leave them out: a run goes on with the settings that it began with.",
        )
    from discovery.agent import resume

    return resume(
        args.resume,
        runs_dir=RUNS_DIR.resolve_value(args),
        progress=console.progress,
        on_event=console.report_event,
    )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "metric": args.metric,
        "universe": args.universe or "all",
        "budget": args.budget,
        "memory": MEMORY.resolve_value(args),
        "exhaustive": args.exhaustive,
    }


def _write_result(args: argparse.Namespace, console: Console, found: DiscoveryResult) -> None:
    from discovery.cli.summary import describe_circuit

    if args.json:
        console.write_document(found.circuit.to_json())
    else:
        console.write_result(describe_circuit(found.circuit, found.path))


def _write_estimate(args: argparse.Namespace, console: Console, estimate: CostEstimate) -> None:
    from discovery.graph.strict_json import dumps

    if args.json:
        console.write_document(dumps(estimate.to_dict(), indent=2) + "\n")
        return
    width = max((len(stage) for stage in estimate.stages), default=0)
    lines = [f"  {stage:<{width}}  {work:>12,.0f}" for stage, work in estimate.stages.items()]
    total = (
        f"About {estimate.forward_equivalents:,.0f} forward-pass equivalents, summed over prompts:"
    )
    console.write_result("\n".join([total, *lines, *([estimate.note] if estimate.note else [])]))
