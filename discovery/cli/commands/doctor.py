"""`circuit-scout doctor`: is everything here that is needed, and does it work?"""

from __future__ import annotations

import argparse
import dataclasses

from discovery.cli.arguments import RUNS_DIR, Commands
from discovery.cli.console import Console

_MARKS = {"ok": "ok", "warning": "!", "failed": "FAILED"}


def register(commands: Commands, parents: list[argparse.ArgumentParser]) -> None:
    """Add the noun to the grammar."""
    noun = commands.add_parser("doctor", parents=parents, help="check the installation, and say what to do where something is wrong")
    noun.add_argument("--json", action="store_true", help="print one JSON document")
    RUNS_DIR.add(noun)
    noun.set_defaults(run=examine, parser=noun)


def examine(args: argparse.Namespace, console: Console) -> None:
    """Try everything, and say what was found. It completes with status 0 whatever that is: `ok` in the JSON says which."""
    from discovery.cli.installation import every
    from discovery.graph.strict_json import dumps

    findings = []
    for finding in every(RUNS_DIR.value(args)):
        findings.append(finding)
        if not args.json:
            console.say(f"{_MARKS[finding.status]:7} {finding.check:16} {finding.found}")
            if finding.cure:
                console.say(f"{'':24} {finding.cure}")
    failed = [finding.check for finding in findings if finding.status == "failed"]
    if args.json:
        console.write(dumps({"ok": not failed, "checks": [dataclasses.asdict(finding) for finding in findings]}, indent=2) + "\n")
    else:
        console.say(f"\n{'Failed: ' + ', '.join(failed) if failed else 'Everything that is needed works'}.")
