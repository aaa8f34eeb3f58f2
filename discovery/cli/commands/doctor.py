"""`circuit-scout doctor`: is everything here that is needed, and does it work?"""

from __future__ import annotations

import argparse
import dataclasses

from discovery.cli.arguments import RUNS_DIR, Subparsers
from discovery.cli.console import Console

_MARKS = {"ok": "ok", "warning": "!", "failed": "FAILED"}


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the noun to the grammar."""
    noun = commands.add_parser(
        "doctor",
        parents=parents,
        help="check the installation, and say what to do where something is wrong",
    )
    noun.add_argument("--json", action="store_true", help="print one JSON document")
    RUNS_DIR.add_to(noun)
    noun.set_defaults(run=print_findings, parser=noun)


def print_findings(args: argparse.Namespace, console: Console) -> None:
    """Try everything, and say what was found. It completes with status 0 whatever that is: `ok` in the JSON says which."""
    from discovery.cli.installation import run_checks
    from discovery.graph.strict_json import dumps

    findings = []
    for finding in run_checks(RUNS_DIR.resolve_value(args)):
        findings.append(finding)
        if not args.json:
            console.write_result(f"{_MARKS[finding.status]:7} {finding.check:16} {finding.found}")
            if finding.cure:
                console.write_result(f"{'':24} {finding.cure}")
    failed = [finding.check for finding in findings if finding.status == "failed"]
    if args.json:
        console.write_document(
            dumps(
                {"ok": not failed, "checks": [dataclasses.asdict(finding) for finding in findings]},
                indent=2,
            )
            + "\n"
        )
    else:
        console.write_result(
            f"\n{'Failed: ' + ', '.join(failed) if failed else 'Everything that is needed works'}."
        )
