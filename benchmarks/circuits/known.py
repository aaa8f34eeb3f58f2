"""The hand-built models, whose circuits are known: does the agent find them?

    python -m benchmarks.circuits.known

The truth is found by brute force over all subsets (`benchmarks/known_circuits/truth.py`). Prints a
Markdown table: whether the truth is found, with what verdict and at what cost.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.truth import load_truth
from benchmarks.output import format_header, format_row, open_output
from discovery import discover

PAIRS = 240
COLUMNS = (
    "model",
    "nodes in the truth, of all",
    "found",
    "verdict",
    "forward-pass equivalents",
    "seconds",
)


def format_model(name: str, folder: Path) -> str:
    """Return one model's row."""
    model, task = build_known_circuit(name).load(folder / name, PAIRS)
    circuit = discover(model, task, runs_dir=folder / "runs").circuit
    nodes = {str(node) for node in circuit.members}
    truth = set(load_truth(name, "resample").nodes)
    outcome = "exactly"
    if nodes != truth:
        outcome = f"missing {sorted(truth - nodes)}, beside it {sorted(nodes - truth)}"
    return format_row(
        name,
        f"{len(truth)} of {len(model.info.nodes())}",
        outcome,
        f"**{circuit.verdict}**",
        f"{circuit.cost.forward_equivalents:,.0f}",
        f"{circuit.cost.seconds:.0f}",
    )


def main() -> None:
    """Print the table."""
    with open_output() as output:
        output.write(format_header(*COLUMNS))
        for name in sorted(KNOWN_CIRCUITS):
            output.write(format_model(name, output.folder))


if __name__ == "__main__":
    main()
