"""Roles of nodes: are they what the nodes of known models were built for?

    python -m benchmarks.circuits.roles [--programs N]

The first table gives every node of the circuits that the agent finds in the hand-built models, with
its measured role. The second counts over random programs, without a run: the roles are measured
for every head and MLP at once, so that nodes with random weights can be named falsely, too. A role
is *right* if one of its parts is what the construction says (`EXPECTED`), *other* if none is.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.random_programs import Program, load_programs
from benchmarks.output import Output, format_header, format_row, open_output
from discovery import discover
from discovery.graph import CircuitNode
from discovery.methods.roles import MOVER, NEGATIVE_MOVER, WRITER, measure_roles

PAIRS = 240
PROGRAM_PAIRS = 16
N_PROGRAMS = 40
READERS = ("induction head", MOVER)
# What a node was built for -> the parts of a role that say so, by how they begin.
EXPECTED: Mapping[str, tuple[str, ...]] = {
    "previous-token": ("previous-token head",),
    "token before the previous": ("feeds the keys of",),
    "induction": READERS,
    "reader": READERS,
    "second reader": READERS,
    "slight": READERS,
    "twin": (MOVER, NEGATIVE_MOVER),
    "opposing": (NEGATIVE_MOVER, "opposing"),
    "backup": ("redundant with", "copying head", *READERS),
    "cue mover": ("feeds the queries of",),
    "saturating MLP (OR)": (WRITER,),
    "AND MLP": (WRITER,),
    "feature: after A": ("induction head",),
    "feature: two after X": ("induction head",),
}


def judge_role(built_as: str, role: str | None) -> str:
    """Return "right", "other" or "none" for the measured role of a node."""
    if role is None:
        return "none"
    expected = EXPECTED.get(built_as, ())
    parts = role.split("; ")
    return "right" if any(part.startswith(expected) for part in parts if expected) else "other"


def write_known(output: Output) -> None:
    """Print each node that the agent finds in the hand-built models."""
    output.write(format_header("model", "node", "built as", "measured role", "rests on", ""))
    for name in sorted(KNOWN_CIRCUITS):
        known = build_known_circuit(name)
        model, task = known.load(output.folder / name, PAIRS)
        circuit = discover(model, task, runs_dir=output.folder / "runs").circuit
        for node in circuit.nodes:
            if node.id in known.roles:
                built_as = known.roles[node.id]
                judged = judge_role(built_as, node.role)
                role = "; ".join(part.partition(":")[0] for part in (node.role or "").split("; "))
                numbers = _format_measurements(node)
                output.write(format_row(name, node.id, built_as, role or "—", numbers, judged))


def _format_measurements(node: CircuitNode) -> str:
    """Return the measured values, beside what they are by chance."""
    texts = []
    for item in node.role_measurements:
        if item.mean is not None:
            chance = "" if not item.chance else f" (chance {item.chance:.2f})"
            texts.append(f"{item.mean:.2f}{chance}")
    return ", ".join(texts) or "—"


def count_program(program: Program, folder: Path) -> dict[str, Counter[str]]:
    """Return for each construction how the roles of a program's nodes were judged.

    A distractor has random weights, so every role of one counts as "other".
    """
    known = program.known_circuit
    model, task = known.load(folder / known.name, PROGRAM_PAIRS)
    report = measure_roles(model, task, known.universe)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in known.universe:
        built_as = known.roles[node]
        judged = judge_role(built_as, report.role(node))
        if built_as == "distractor":
            built_as, judged = "distractor", "none" if judged == "none" else "other"
        counts[built_as][judged] += 1
    return counts


def write_programs(output: Output, n_programs: int) -> None:
    """Print how often the roles of the nodes of random programs are right."""
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for program in islice(load_programs(), n_programs):
        for built_as, counts in count_program(program, output.folder).items():
            totals[built_as].update(counts)
    output.write(format_header("built as", "nodes", "right", "other", "no role"))
    for built_as, counts in sorted(totals.items(), key=lambda item: -item[1].total()):
        output.write(
            format_row(built_as, counts.total(), counts["right"], counts["other"], counts["none"])
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--programs", type=int, default=N_PROGRAMS, help="random programs")
    n_programs = parser.parse_args().programs
    with open_output() as output:
        write_known(output)
        output.write("\n")
        write_programs(output, n_programs)


if __name__ == "__main__":
    main()
