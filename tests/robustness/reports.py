"""What the scripts print."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field

MAX_FAULTS = 20  # after which a script stops


@dataclass(kw_only=True)
class RobustnessReport:
    """What a script measured; each script adds its own numbers.

    Attributes:
        faults: what went wrong; empty if nothing did.
        seconds: how long it took.
    """

    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def print_report(report: RobustnessReport) -> int:
    """Print a report as one line of JSON, and return the exit status: 1 if there are faults."""
    sys.stdout.write(json.dumps(dataclasses.asdict(report)) + "\n")
    return 1 if report.faults else 0
