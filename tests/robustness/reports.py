"""What the scripts print."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, Protocol

MAX_FAULTS = 20  # after which a script stops


class Report(Protocol):
    """What a script measured, as a dataclass.

    Attributes:
        faults: what went wrong; empty if nothing did.
    """

    faults: list[str]
    __dataclass_fields__: Any


def print_report(report: Report) -> int:
    """Print a report as one line of JSON, and return the exit status: 1 if there are faults."""
    facts = dataclasses.asdict(report)
    sys.stdout.write(json.dumps(facts) + "\n")
    return 1 if report.faults else 0
