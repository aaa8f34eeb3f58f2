"""The stored lines of the benchmark: one JSON object for each case, in the order of their runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale.cases import UNTRAINED, CaseKey, CaseKind, SeedSet

RESULTS_FILE = "results.jsonl"
CHECKS_FILE = "checks.jsonl"


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What discovery found on one case.

    Attributes:
        kind, n_nodes, seed, seed_set: the case.
        truth, found: the nodes.
        verdict, reasons: of the record.
        forward_equivalents, seconds: of the whole run.
        refused: why the truth did not pass its check. Such a case is not run.
    """

    kind: CaseKind
    n_nodes: int
    seed: int
    seed_set: SeedSet
    truth: tuple[str, ...]
    found: tuple[str, ...] = ()
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    forward_equivalents: float = 0.0
    seconds: float = 0.0
    refused: tuple[str, ...] = ()

    @property
    def key(self) -> CaseKey:
        """What identifies the case."""
        return CaseKey(kind=self.kind, n_nodes=self.n_nodes, seed=self.seed)

    @property
    def missing(self) -> list[str]:
        """The true nodes that were not found."""
        return sorted(set(self.truth) - set(self.found))

    @property
    def extra(self) -> list[str]:
        """The nodes that were found and are not true."""
        return sorted(set(self.found) - set(self.truth))

    @property
    def is_exact(self) -> bool:
        """Whether the found nodes are the true ones.

        On an untrained twin nothing must be claimed, so any verdict but `verified` and `partial`
        counts as right, whatever the record holds.
        """
        if self.kind == UNTRAINED:
            return self.verdict not in ("verified", "partial")
        return not self.missing and not self.extra

    def record(self) -> dict[str, Any]:
        """Return the line of the results file."""
        derived = {"exact": self.is_exact, "missing": self.missing, "extra": self.extra}
        return asdict(self) | derived


def load_results(folder: Path) -> list[CaseResult]:
    """Load the results in a folder. A line that was cut off by an interruption is left out."""
    names = CaseResult.__dataclass_fields__
    results = []
    for line in read_lines(folder / RESULTS_FILE):
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in line.items()
            if name in names
        }
        results.append(CaseResult(**fields))
    return results


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file, or nothing if there is no such file.

    Raises:
        json.JSONDecodeError: if a line other than the last is damaged.
    """
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):
                raise


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append an object to a JSON Lines file, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):  # an interruption cut the last line off
        text = text[: text.rfind("\n") + 1]
        path.write_text(text)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
