"""What of a record is content, and what is only when and under which name it was made.

The same seed, machine and versions give the same circuit.json but for times and ids. Left out therefore:
`run_id`, `cost.seconds`, `cost.peak_memory_bytes`, `provenance.created`, and `provenance.command`, which
spells out run ids and folders. Result ids are renamed by the order in which they first appear, so that
which results support which node still counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def content(record: Mapping[str, Any]) -> dict[str, Any]:
    """The node-link data `record` without times and ids."""
    facts: dict[str, Any] = {name: value for name, value in record["graph"].items() if name != "run_id"}
    facts["cost"] = _without(facts["cost"], "seconds", "peak_memory_bytes")
    facts["provenance"] = _without(facts["provenance"], "created", "command")
    names: dict[str, str] = {}
    nodes, edges = ([_renamed(part, names) for part in record[parts]] for parts in ("nodes", "edges"))
    return {"graph": facts, "nodes": nodes, "edges": edges}


def _without(facts: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in fields}


def _renamed(part: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """`part` with its result ids replaced; `names` grows with each new one."""
    results: Iterable[str] = part["evidence"]
    return {**part, "evidence": [names.setdefault(result, f"result-{len(names)}") for result in results]}
