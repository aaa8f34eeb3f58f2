"""Do other pairs give the same circuit? Whole runs over ten seeds.

    python -m benchmarks.circuits.stability [--seeds N]

Each seed draws other pairs, another split and other random choices. Prints a Markdown table: the
verdicts, the mean Jaccard index between the circuits of two seeds, and how often each node is in a
circuit. The reasons of the runs that were not verified follow.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import mean

from benchmarks.output import format_header, format_list, format_row, open_output
from discovery import discover, load_model, load_task
from discovery.graph import CircuitGraph
from discovery.tasks import BUNDLED_TASKS

COLUMNS = (
    "task",
    "verdicts",
    "mean Jaccard between seeds",
    "sizes",
    "inclusion of each node",
)


def format_task(name: str, circuits: Sequence[CircuitGraph]) -> str:
    """Return one task's row."""
    node_sets = [frozenset(circuit.members) for circuit in circuits]
    verdicts = Counter(circuit.verdict for circuit in circuits).most_common()
    set_pairs = combinations(node_sets, 2)
    jaccard = mean(len(a & b) / len(a | b) for a, b in set_pairs if a | b)
    n_circuits_with = Counter(node for nodes in node_sets for node in nodes)
    sizes = [len(nodes) for nodes in node_sets]
    return format_row(
        name,
        ", ".join(f"{count} {verdict}" for verdict, count in verdicts),
        f"{jaccard:.2f}",
        f"{min(sizes)}–{max(sizes)}",
        ", ".join(
            f"{node.label} {count / len(circuits):.0%}"
            for node, count in sorted(n_circuits_with.items(), key=lambda item: -item[1])
        ),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    reasons: list[str] = []
    with open_output() as output:
        model = load_model("bundled")
        output.write(format_header(*COLUMNS))
        for name in BUNDLED_TASKS:
            circuits = []
            for seed in seeds:
                task = load_task(name, model, seed=seed)
                circuits.append(discover(model, task, seed=seed, runs_dir=output.folder).circuit)
            output.write(format_task(name, circuits))
            reasons += [
                f"{name}, seed {seed}, {circuit.verdict}: {reason}"
                for seed, circuit in zip(seeds, circuits, strict=True)
                if circuit.verdict != "verified"
                for reason in circuit.reasons
            ]
        output.write("\n" + format_list(reasons))


if __name__ == "__main__":
    main()
