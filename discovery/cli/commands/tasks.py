"""`circuit-scout tasks`: the behaviours that come with their own prompts, and whether a model does a task."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from discovery.cli.arguments import MEMORY, Subparsers
from discovery.cli.console import Console, format_columns
from discovery.cli.model_and_task import (
    add_model_and_task_flags,
    load_request,
    load_requested_model,
    load_requested_task,
)

if TYPE_CHECKING:
    from discovery.methods.behaviour import BehaviourCheck
    from discovery.tasks import Task

_CHECK = """Lint a task against a model's tokenizer, and measure whether the model does it: a circuit can only be found for what is there."""


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the noun and its verbs to the grammar."""
    noun = commands.add_parser(
        "tasks", parents=parents, help="built-in tasks, and whether a model does one"
    )
    noun.add_argument("--json", action="store_true", help="print one JSON document")
    noun.set_defaults(run=print_tasks, parser=noun)
    verbs = noun.add_subparsers(title="verbs", metavar="VERB")
    for name, act, text in (
        ("list", print_tasks, "the built-in tasks"),
        ("check", print_check, "does a model do a task?"),
    ):
        verb = verbs.add_parser(
            name, parents=parents, help=text, description=_CHECK if name == "check" else None
        )
        if name == "check":
            verb.add_argument(
                "task", metavar="TASK", help="a built-in task or the path of a task file"
            )
            add_model_and_task_flags(verb)
        verb.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )
        verb.set_defaults(run=act, parser=verb)


def print_tasks(args: argparse.Namespace, console: Console) -> None:
    """Every built-in task."""
    from discovery.graph.strict_json import dumps
    from discovery.tasks import BUILTIN

    if args.json:
        rows = [
            {
                "name": task.name,
                "summary": task.summary,
                "metric": task.metric,
                "pairs": task.default_pairs,
                "templates": len(task.templates),
            }
            for task in BUILTIN.values()
        ]
        console.write_document(dumps({"tasks": rows}, indent=2) + "\n")
        return
    console.write_result(
        format_columns(
            [
                (task.name, f"{task.summary} ({task.default_pairs} pairs, {task.metric})")
                for task in BUILTIN.values()
            ]
        )
    )


def print_check(args: argparse.Namespace, console: Console) -> None:
    """Lint, then measure on all pairs."""
    load = load_request(args)
    model = load_requested_model(load, console)
    task = load_requested_task(load, model, args.seed or 0, console)
    from discovery.graph.strict_json import dumps
    from discovery.methods.behaviour import check_task

    found = check_task(
        model,
        task,
        metric=args.metric,
        memory=MEMORY.resolve_value(args),
        progress=console.progress,
    )
    if args.json:
        console.write_document(
            dumps({"model": model.info.name, **check_facts(task, found)}, indent=2) + "\n"
        )
    else:
        console.write_result(f"{task.name} in {model.info.name}\n{_format_check(task, found)}")


def check_facts(task: Task, found: BehaviourCheck) -> dict[str, Any]:
    """What was found, as JSON data."""
    gap = {"mean": found.gap.mean, "low": found.gap.low, "high": found.gap.high}
    return {
        "task": task.name,
        "fingerprint": task.fingerprint,
        "behaviour": found.is_present,
        "reasons": list(found.reasons),
        "lint": {"warnings": list(task.warnings)},
        "n": found.n,
        "n_discovery": len(task.discovery),
        "n_heldout": len(task.heldout),
        "split": task.split_method,
        "metric": found.metric,
        "metric_clean": found.metric_clean,
        "metric_corrupted": found.metric_corrupted,
        "gap": gap,
        "accuracy": found.accuracy,
        "accuracy_low": found.accuracy_low,
        "best_constant": found.best_constant,
        "top1": found.top1,
        "cost": {
            "forward_equivalents": found.cost.forward_equivalents,
            "seconds": found.cost.seconds,
        },
    }


def _format_check(task: Task, found: BehaviourCheck) -> str:
    verdict = "The model does the task." if found.is_present else "The model does not do the task:"
    rows = [
        (
            "pairs",
            f"{found.n}: {len(task.discovery)} to find a circuit, {len(task.heldout)} to judge it; {task.split_method}",
        ),
        (
            "accuracy",
            f"{found.accuracy:.1%} (95% lower bound {found.accuracy_low:.1%}; best constant answer {found.best_constant:.1%}, chance 50%)",
        ),
        ("top-1", f"{found.top1:.1%}"),
        (
            found.metric.replace("_", " "),
            f"{found.metric_clean:.3f} on clean prompts, {found.metric_corrupted:.3f} on corrupted ones",
        ),
        ("gap", f"{found.gap.mean:.3f} [{found.gap.low:.3f}, {found.gap.high:.3f}]"),
        (
            "cost",
            f"{found.cost.forward_equivalents:,.0f} forward-pass equivalents, {found.cost.seconds:.1f} s",
        ),
    ]
    return "\n".join(
        [verdict, *(f"  - {reason}" for reason in found.reasons), "", format_columns(rows)]
    )
