"""Do other pairs give the same circuit? Full re-runs over ten seeds: `python -m benchmarks.stability [--seeds N]`

Each seed draws other pairs, another split and other random choices. Prints Markdown: verdicts, the mean Jaccard between the seeds'
circuits, how often each node is in them, and what the runs that were not verified say.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections import Counter
from itertools import combinations
from statistics import mean

from benchmarks.output import format_header
from discovery import discover, load_model, load_task
from discovery.tasks import BUILTIN


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    out = sys.stdout
    reasons: list[str] = []
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as runs:
        model = load_model("bundled")
        out.write(
            format_header(
                "task", "verdicts", "mean Jaccard between seeds", "sizes", "inclusion of each node"
            )
        )
        for name in BUILTIN:
            made = [
                discover(model, load_task(name, model, seed=seed), seed=seed, runs_dir=runs).circuit
                for seed in seeds
            ]
            circuits = [frozenset(circuit.members) for circuit in made]
            verdicts = ", ".join(
                f"{count} {verdict}"
                for verdict, count in Counter(circuit.verdict for circuit in made).most_common()
            )
            jaccard = mean(len(a & b) / len(a | b) for a, b in combinations(circuits, 2) if a | b)
            often = Counter(node for circuit in circuits for node in circuit)
            shown = ", ".join(
                f"{node.label} {count / len(made):.0%}"
                for node, count in sorted(often.items(), key=lambda pair: -pair[1])
            )
            sizes = [len(circuit) for circuit in circuits]
            out.write(
                f"| {name} | {verdicts} | {jaccard:.2f} | {min(sizes)}–{max(sizes)} | {shown} |\n"
            )
            out.flush()
            for seed, circuit in zip(seeds, made, strict=True):
                if circuit.verdict != "verified":
                    reasons += [
                        f"- {name}, seed {seed}, {circuit.verdict}: {reason}\n"
                        for reason in circuit.reasons
                    ]
        out.write("\n" + "".join(reasons))


if __name__ == "__main__":
    main()
