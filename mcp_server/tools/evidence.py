"""The evaluation of a circuit as an assistant reads it: the `evaluation` block of circuit.json, its bulk left out unless asked for."""

from __future__ import annotations

import json
from typing import Any

from discovery.graph import CONDITIONS, Evaluation
from mcp_server.tools.result import numbers

MEANING = {
    "a": "sufficient",
    "b": "necessary",
    "c": "complete",
    "d": "minimal",
    "e": "better than alternatives",
    "f": "stable",
}


def evaluation_block(evaluation: Evaluation, *, detailed: bool) -> dict[str, Any]:
    """`evaluation` as in circuit.json; concise leaves out minimality rows, thresholds and the curve's node lists."""
    block: dict[str, Any] = numbers(evaluation.model_dump(mode="json", by_alias=True), 4)
    block["meaning"] = {name: MEANING[name] for name in CONDITIONS}
    if detailed:
        return block
    block.pop("thresholds", None)
    block["curve"] = [{k: point[k] for k in ("ablation", "size", "faithfulness")} for point in block.get("curve", [])][:40]
    for split in ("discovery", "heldout"):
        for found in ((block.get(split) or {}).get("ablations") or {}).values():
            if found:
                found.pop("reference", None)
                rows = found.pop("minimality", None)
                if rows:
                    found["minimality_smallest_drops"] = sorted(rows, key=lambda row: row["drop"] or 0.0)[:3]
    return block


def squeezed(block: dict[str, Any], limit: int) -> dict[str, Any]:
    """The block within so many characters: first the curve goes, then the discovery split's evidence."""
    for cut in ("curve", "discovery", "tests", "heldout"):
        if len(json.dumps(block)) <= limit:
            break
        if cut in ("discovery", "heldout") and block.get(cut):
            block = {**block, cut: {key: value for key, value in block[cut].items() if key != "ablations"}}
        else:
            block = {key: value for key, value in block.items() if key != cut}
    return block
