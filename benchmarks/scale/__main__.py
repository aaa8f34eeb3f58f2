"""Known circuits among 156 to 1,056 nodes: are they found, and what does it cost?

    python -m benchmarks.scale check [--nodes 156] [--kinds chain or] [--seeds dev] [--limit N]
    python -m benchmarks.scale run [--nodes 156] [--kinds chain or] [--seeds dev] [--limit N]
    python -m benchmarks.scale table [--seeds dev]

`check` measures that each truth is what its construction says, and prints what fails. `run` does
the same first, and then runs the agent. One line of JSON is stored for each case, so that a run
goes on where it was interrupted. `table` prints the tables and draws the cost. Report seeds are for
the final report only: do not run them while the search is being written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

import torch

from benchmarks.output import format_header, format_row, open_output
from benchmarks.scale.cases import (
    CASE_KINDS,
    LARGE_SIZES,
    N_CASES,
    SEED_SETS,
    list_cases,
)
from benchmarks.scale.results import load_results
from benchmarks.scale.running import check_cases, run_cases
from benchmarks.scale.tables import draw_costs, format_costs, format_recovery

DEFAULT_FOLDER = Path("runs/scale")
PLOT_FILE = "cost.svg"
CHECK_COLUMNS = (
    "kind",
    "nodes",
    "cases",
    "that hold",
    "weakest drop",
    "largest bystander",
    "median of the largest",
    "joint",
)


def print_checks(arguments: argparse.Namespace) -> None:
    """Check the truths, and print the worst numbers by kind and size."""
    groups: dict[tuple[str, int], list[dict[str, float]]] = {}
    failures = []
    keys = list_cases(arguments.seeds, arguments.kinds, arguments.nodes, arguments.limit)
    with open_output() as output:
        for key, record in check_cases(keys, arguments.out):
            groups.setdefault((key.kind, key.n_nodes), []).append(record)
            failures += [f"{key}: {failure}" for failure in record["failures"]]
        output.write(format_header(*CHECK_COLUMNS))
        for (kind, n_nodes), records in groups.items():
            largest = [record["bystander"] for record in records]
            output.write(
                format_row(
                    kind,
                    n_nodes,
                    len(records),
                    sum(not record["failures"] for record in records),
                    f"{min(record['weakest_drop'] for record in records):.2f}",
                    f"{max(largest):.4f}",
                    f"{median(largest):.4f}",
                    f"{max(record['joint'] for record in records):.3f}",
                )
            )
        output.write("".join(f"\n- {failure}" for failure in failures) + "\n" * bool(failures))


def print_tables(arguments: argparse.Namespace) -> None:
    """Print the tables of what is stored, and draw the plot."""
    results = [
        result for result in load_results(arguments.out) if result.seed_set == arguments.seeds
    ]
    if not results:
        sys.exit(
            f"{arguments.out} holds no results of {arguments.seeds} seeds. Make them with"
            f" python -m benchmarks.scale run --seeds {arguments.seeds} --out {arguments.out}."
        )
    large = [result for result in results if result.n_nodes in LARGE_SIZES]
    with open_output() as output:
        for line in (*format_recovery(large), "\n", *format_costs(results)):
            output.write(line)
    draw_costs(results, arguments.plot or arguments.out / PLOT_FILE)


def main(words: list[str] | None = None) -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "run", "table"):
        command = commands.add_parser(name)
        command.add_argument("--seeds", choices=SEED_SETS, default="dev")
        command.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="the results")
        if name == "table":
            command.add_argument("--plot", type=Path, help=f"the plot; {PLOT_FILE} in the results")
            continue
        command.add_argument(
            "--nodes", type=int, nargs="+", choices=[*N_CASES], default=[*LARGE_SIZES]
        )
        command.add_argument("--kinds", nargs="+", choices=CASE_KINDS, default=[*CASE_KINDS])
        command.add_argument("--limit", type=int, help="cases of each kind and size")
        if name == "run":
            command.add_argument("--keep-runs", action="store_true", help="keep the run folders")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    if arguments.command == "table":
        print_tables(arguments)
    elif arguments.command == "check":
        print_checks(arguments)
    else:
        keys = list_cases(arguments.seeds, arguments.kinds, arguments.nodes, arguments.limit)
        run_cases(keys, arguments.out, keep_runs=arguments.keep_runs)


if __name__ == "__main__":
    main()
