"""`circuit-scout discover`: find the circuit behind a behaviour, judge it, and keep the run."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from discovery.cli.arguments import MEMORY, RUNS_DIR, Commands, UsageError, any_text, flag, one_of, positive
from discovery.cli.console import Console
from discovery.cli.model_and_task import TASK, add_subject_flags, loading, open_model, open_task
from discovery.sites import Universe

if TYPE_CHECKING:
    from discovery.agent import Discovered, Estimate

_OWN = ("resume", "runs_dir", "json", "verbose", "quiet", "run", "parser", "command")
_ABOUT = """Find the circuit behind a behaviour and judge it on held-out prompts. Without arguments: the task ioi in the bundled model.
The run is kept in a folder of its own as it goes; interrupted, it is resumed with --resume."""


def register(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the grammar."""
    parser = commands.add_parser("discover", parents=parents, help="find a circuit and judge it", description=_ABOUT)
    parser.add_argument(
        "task", metavar="TASK", nargs="?", help=f"a built-in task (see `circuit-scout tasks`) or the path of a task file; default {TASK}"
    )
    add_subject_flags(parser)
    flag(
        parser,
        "--universe",
        "all|heads",
        partial(one_of, get_args(Universe)),
        "what may be ablated: heads and MLPs (all, the default), or heads",
    )
    flag(parser, "--budget", "F", positive, "the most work to do, in forward-pass equivalents summed over prompts")
    parser.add_argument(
        "--exhaustive", action="store_true", help="never screen a sweep that is dear for the budget by gradients: measure every cell"
    )
    parser.add_argument("--dry-run", action="store_true", help="only estimate what the run would cost")
    RUNS_DIR.add(parser)
    parser.add_argument("--json", action="store_true", help="print circuit.json instead of a summary")
    flag(parser, "--resume", "RUN_ID", any_text, "go on with an interrupted run, with the settings that it began with")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Discover, resume or estimate."""
    if args.resume is not None:
        _tell(args, console, _resumed(args, console))
        return
    load, options = loading(args), _options(args)
    model = open_model(load, console)
    task = open_task(load, model, args.seed or 0, console)
    _warn_of_too_few(len(task.heldout), console)
    if args.dry_run:
        from discovery.agent import estimate

        _tell_estimate(args, console, estimate(model, task, **options))
        return
    from discovery.agent import discover

    seeded: dict[str, Any] = {"seed": args.seed or 0, "runs_dir": RUNS_DIR.value(args), "command": args.command, "load": load}
    _tell(args, console, discover(model, task, **options, **seeded, progress=console.progress, on_event=console.event))


def _warn_of_too_few(heldout: int, console: Console) -> None:
    from discovery.evaluation.thresholds import MIN_HELDOUT

    if heldout < MIN_HELDOUT:
        console.note(f"warning: {heldout} held-out pairs: the verdict will be inconclusive, for it needs {MIN_HELDOUT}. Give more pairs.")


def _resumed(args: argparse.Namespace, console: Console) -> Discovered:
    given = [name for name, value in vars(args).items() if name not in _OWN and value is not None and value is not False]
    if given:
        words = ", ".join("TASK" if name == "task" else f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"--resume {args.resume} was given with {words}.", "Leave them out: a run goes on with the settings that it began with."
        )
    from discovery.agent import resume

    return resume(args.resume, runs_dir=RUNS_DIR.value(args), progress=console.progress, on_event=console.event)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "metric": args.metric,
        "universe": args.universe or "all",
        "budget": args.budget,
        "memory": MEMORY.value(args),
        "exhaustive": args.exhaustive,
    }


def _tell(args: argparse.Namespace, console: Console, found: Discovered) -> None:
    from discovery.cli.summary import describe

    if args.json:
        console.write(found.circuit.to_json())
    else:
        console.say(describe(found.circuit, found.path))


def _tell_estimate(args: argparse.Namespace, console: Console, estimate: Estimate) -> None:
    from discovery.graph.strict_json import dumps

    if args.json:
        console.write(dumps(estimate.to_json(), indent=2) + "\n")
        return
    width = max((len(stage) for stage in estimate.stages), default=0)
    lines = [f"  {stage:<{width}}  {work:>12,.0f}" for stage, work in estimate.stages.items()]
    total = f"About {estimate.forward_equivalents:,.0f} forward-pass equivalents, summed over prompts:"
    console.say("\n".join([total, *lines, *([estimate.note] if estimate.note else [])]))
