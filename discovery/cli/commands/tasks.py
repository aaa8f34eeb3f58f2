"""`circuit-scout tasks`: list the built-in tasks, and check whether a model does a task."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from discovery.cli.arguments import (
    MEMORY,
    MODEL,
    Subparsers,
    absolute_path,
    add_flag,
    add_json_flag,
    parse_text,
)
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

_CHECK = """Check the prompts of a task with a model's tokenizer, and measure whether the model
does the task. Only then can there be a circuit for it."""


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs to the parser."""
    parser = commands.add_parser(
        "tasks", parents=parents, help="list the built-in tasks, or check a task with a model"
    )
    add_json_flag(parser)
    parser.set_defaults(run=print_tasks, parser=parser)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    list_verb = verbs.add_parser(
        "list",
        parents=parents,
        help="list the built-in tasks; with --model, say which of them suit its tokenizer",
    )
    add_flag(list_verb, "--model", "M", parse_text, MODEL.help)
    check_verb = verbs.add_parser(
        "check", parents=parents, help="check whether a model does a task", description=_CHECK
    )
    check_verb.add_argument(
        "task", metavar="TASK", help="a built-in task or the path of a task file"
    )
    add_model_and_task_flags(check_verb)
    for verb, run in ((list_verb, print_tasks), (check_verb, print_check)):
        add_json_flag(verb, is_verb=True)
        verb.set_defaults(run=run, parser=verb)


def print_tasks(args: argparse.Namespace, console: Console) -> None:
    """Print every built-in task, and for a model whether its tokenizer has the words."""
    from discovery.tasks import BUILTIN

    name = getattr(args, "model", None)
    misfits = _find_misfits(name) if name else {}
    if args.json:
        facts = [
            {
                "name": task.name,
                "summary": task.summary,
                "metric": task.metric,
                "pairs": task.default_pairs,
                "templates": len(task.templates),
                **({"fits": not misfits[task.name], "misfit": misfits[task.name]} if name else {}),
            }
            for task in BUILTIN.values()
        ]
        console.write_json({"model": name, "tasks": facts} if name else {"tasks": facts})
        return
    rows = [
        (task.name, f"{task.summary} ({task.default_pairs} pairs, {task.metric})")
        for task in BUILTIN.values()
    ]
    if name:
        rows = [(task, misfits[task] or f"fits. {text}") for task, text in rows]
    console.write_result(format_columns(rows))


def _find_misfits(model: str) -> dict[str, str | None]:
    """Return for each built-in task why it does not suit a model's tokenizer, or None."""
    from discovery.backends.loading.tokenizer import load_tokenizer
    from discovery.tasks import find_misfits

    path = absolute_path(model)
    return find_misfits(load_tokenizer(path if model != MODEL.default and path.exists() else model))


def print_check(args: argparse.Namespace, console: Console) -> None:
    """Check the prompts of a task, then measure it on all pairs."""
    load = load_request(args)
    model = load_requested_model(load, console)
    task = load_requested_task(load, model, args.seed or 0, console)
    from discovery.methods.behaviour import check_task

    check = check_task(
        model,
        task,
        metric=args.metric,
        memory=MEMORY.resolve_value(args),
        progress=console.progress,
    )
    if args.json:
        console.write_json({"model": model.info.name, **check_facts(task, check)})
    else:
        console.write_result(f"{task.name} in {model.info.name}\n{_format_check(task, check)}")


def check_facts(task: Task, check: BehaviourCheck) -> dict[str, Any]:
    """Return the outcome of a check as JSON data."""
    gap = {"mean": check.gap.mean, "low": check.gap.low, "high": check.gap.high}
    return {
        "task": task.name,
        "fingerprint": task.fingerprint,
        "behaviour": check.is_present,
        "reasons": list(check.reasons),
        "lint": {"warnings": list(task.warnings)},
        "n": check.n,
        "n_discovery": len(task.discovery),
        "n_heldout": len(task.heldout),
        "split": task.split_method,
        "metric": check.metric,
        "metric_clean": check.metric_clean,
        "metric_corrupted": check.metric_corrupted,
        "gap": gap,
        "accuracy": check.accuracy,
        "accuracy_low": check.accuracy_low,
        "best_constant": check.best_constant,
        "top1": check.top1,
        "cost": {
            "forward_equivalents": check.cost.forward_equivalents,
            "seconds": check.cost.seconds,
        },
    }


def _format_check(task: Task, check: BehaviourCheck) -> str:
    verdict = "The model does the task." if check.is_present else "The model does not do the task:"
    pairs = f"{len(task.discovery)} to find a circuit, {len(task.heldout)} to test it"
    bounds = f"95% lower bound {check.accuracy_low:.1%}"
    chance = f"best constant answer {check.best_constant:.1%}, chance 50%"
    clean = f"{check.metric_clean:.3f} on clean prompts"
    corrupted = f"{check.metric_corrupted:.3f} on corrupted ones"
    work = f"{check.cost.forward_equivalents:,.0f} forward-pass equivalents"
    rows = [
        ("pairs", f"{check.n}: {pairs}; {task.split_method}"),
        ("accuracy", f"{check.accuracy:.1%} ({bounds}; {chance})"),
        ("top-1", f"{check.top1:.1%}"),
        (check.metric.replace("_", " "), f"{clean}, {corrupted}"),
        ("gap", f"{check.gap.mean:.3f} [{check.gap.low:.3f}, {check.gap.high:.3f}]"),
        ("cost", f"{work}, {check.cost.seconds:.1f} s"),
    ]
    reasons = [f"  - {reason}" for reason in check.reasons]
    return "\n".join([verdict, *reasons, "", format_columns(rows)])
