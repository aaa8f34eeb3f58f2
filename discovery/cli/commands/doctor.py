"""`circuit-scout doctor`: check the installation and suggest fixes."""

from __future__ import annotations

import argparse

from discovery.cli.arguments import RUNS_DIR, Subparsers, add_json_flag
from discovery.cli.console import Console

_MARKS = {"ok": "ok", "warning": "!", "failed": "FAILED"}


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor", parents=parents, help="check the installation and suggest fixes"
    )
    add_json_flag(parser)
    RUNS_DIR.add_to(parser)
    parser.set_defaults(run=print_findings, parser=parser)


def print_findings(args: argparse.Namespace, console: Console) -> None:
    """Run every check, and print what it found.

    The exit status is 0 whatever the checks find. `ok` in the JSON says whether they all passed.
    """
    from discovery.cli.installation import run_checks

    findings = []
    for finding in run_checks(RUNS_DIR.resolve_value(args)):
        findings.append(finding)
        if not args.json:
            console.write_result(
                f"{_MARKS[finding.status]:7} {finding.check:16} {finding.observation}"
            )
            if finding.cure:
                console.write_result(f"{'':24} {finding.cure}")
    failed = [finding.check for finding in findings if finding.status == "failed"]
    if args.json:
        checks = [
            {
                "check": finding.check,
                "status": finding.status,
                "found": finding.observation,
                "cure": finding.cure,
            }
            for finding in findings
        ]
        console.write_json({"ok": not failed, "checks": checks})
    elif failed:
        console.write_result(f"\nFailed: {', '.join(failed)}.")
    else:
        console.write_result("\nEverything that is needed works.")
