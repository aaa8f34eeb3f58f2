"""The hand-built models, whose circuits are known: is the truth found, with what verdict, at what cost? `python -m benchmarks.known`

Truth is by brute force over all subsets (`tests/handbuilt`). Prints Markdown.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.truth import load_truth
from discovery import discover, load_model, load_task

PAIRS = 240


def format_row(name: str, folder: Path) -> str:
    """One model's line."""
    model = load_model(build_known_circuit(name).save(folder / name))
    circuit = discover(
        model, load_task(folder / name / "task.jsonl", model, pairs=PAIRS), runs_dir=folder / "runs"
    ).circuit
    found, truth = {str(node) for node in circuit.members}, set(load_truth(name, "resample").nodes)
    same = (
        "exactly"
        if found == truth
        else f"missing {sorted(truth - found)}, beside it {sorted(found - truth)}"
    )
    cost = f"{circuit.cost.forward_equivalents:,.0f} | {circuit.cost.seconds:.0f}"
    return f"| {name} | {len(truth)} of {len(model.info.nodes())} | {same} | **{circuit.verdict}** | {cost} |"


def main() -> None:
    """Every case."""
    out = sys.stdout
    out.write(
        "| model | nodes in the truth, of all | found | verdict | forward-pass equivalents | seconds |\n|---|---|---|---|---|---|\n"
    )
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        for name in sorted(KNOWN_CIRCUITS):
            out.write(format_row(name, Path(folder)) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
