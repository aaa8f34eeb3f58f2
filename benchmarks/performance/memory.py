"""Does a model take the memory that it is said to need?

    python -m benchmarks.performance.memory

Random models of 60 to 90 million parameters are loaded and swept on both backends, in the dtype in
which they were saved and in another one, each in a process of its own. Memory is the high-water
mark of /proc on Linux, less what the process held with all libraries loaded. Prints two Markdown
tables: what `models info` says that loading and a sweep need, and what they took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.output import format_header, format_row, open_output, print_progress
from benchmarks.random_models.timing_models import MODEL_CONFIGS, random_task, save_random_model
from discovery import load_model, patch_sweep
from discovery.backends.hardware.memory import release_memory
from discovery.backends.loading.backend_choice import choose_backend
from discovery.backends.loading.outline import BACKEND_LABELS, read_outline
from discovery.engine import MemoryNeed

SWEEPS = ((1, 32), (8, 32), (2, 64))  # pairs and tokens
LOADING_COLUMNS = ("model", "parameters", "backend", "dtype", "said", "took", "apart")
SWEEP_COLUMNS = ("model", "backend", "pairs × tokens", "limit", "said", "took", "apart")


def read_memory(key: str) -> int:
    """Return one of the kernel's counts of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def reset_high_water_mark() -> int:
    """Start the high-water mark anew, and return the bytes that are held now."""
    release_memory()
    Path("/proc/self/clear_refs").write_text("5")
    return read_memory("VmRSS")


def measure_in_this_process(directory: str, backend: str, dtype: str) -> dict[str, Any]:
    """Measure loading and sweeps. The process must have loaded nothing before."""
    load_model("bundled", backend=backend)  # type: ignore[arg-type]  # loads the libraries
    outline = read_outline(directory, dtype=dtype)
    estimate = choose_backend(outline, backend, 10**15).outline  # type: ignore[arg-type]
    before = reset_high_water_mark()
    model = load_model(directory, backend=backend, dtype=dtype)  # type: ignore[arg-type]
    result: dict[str, Any] = {
        "parameters": estimate.n_params,
        "said": estimate.loading_bytes,
        "took": read_memory("VmHWM") - before,
        "sweeps": [],
    }
    for n_pairs, n_tokens in SWEEPS if dtype == "float32" else ():
        need = MemoryNeed.of(estimate, n_tokens, n_pairs)
        task = random_task(model, n_pairs, n_tokens)
        # A first sweep makes the libraries allocate their own buffers.
        warm_up = random_task(model, min(n_pairs, 2), n_tokens)
        patch_sweep(model, warm_up, memory=need.limit)
        before = reset_high_water_mark()
        patch_sweep(model, task, memory=need.limit)
        result["sweeps"].append(
            {
                "pairs": n_pairs,
                "tokens": n_tokens,
                "limit": need.limit,
                "said": need.sweep,
                "took": read_memory("VmHWM") - before,
            }
        )
    return result


def measure_in_new_process(directory: Path, backend: str, dtype: str) -> dict[str, Any]:
    """Measure loading and sweeps in a process of their own, with one thread."""
    arguments = ["--one", str(directory), backend, dtype]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.performance.memory", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def format_difference(said: int, took: int) -> tuple[str, ...]:
    """Return two sizes, and how far what was said is from what was taken."""
    return f"{said / 1e6:,.0f} MB", f"{took / 1e6:,.0f} MB", f"{said / took - 1:+.0%}"


def make_tables(names: list[str], folder: Path) -> str:
    """Return the table of loading and the table of sweeps."""
    loading = format_header(*LOADING_COLUMNS)
    sweeps = format_header(*SWEEP_COLUMNS)
    for name in names:
        directory = save_random_model(name, folder)
        for backend, dtype in product(BACKEND_LABELS, ("float32", "bfloat16")):
            result = measure_in_new_process(directory, backend, dtype)
            sizes = format_difference(result["said"], result["took"])
            loading += format_row(name, f"{result['parameters']:,}", backend, dtype, *sizes)
            for sweep in result["sweeps"]:
                shape = f"{sweep['pairs']} × {sweep['tokens']}"
                limit = f"{sweep['limit'] / 1e6:,.0f} MB"
                sizes = format_difference(sweep["said"], sweep["took"])
                sweeps += format_row(name, backend, shape, limit, *sizes)
            print_progress(name, backend, dtype)
    return f"{loading}\n{sweeps}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument(
        "--only", nargs="*", choices=tuple(MODEL_CONFIGS), help="measure these models alone"
    )
    arguments = parser.parse_args()
    with open_output() as output:
        if arguments.one is not None:
            output.write(json.dumps(measure_in_this_process(*arguments.one)))
            return
        output.write(make_tables(arguments.only or list(MODEL_CONFIGS), output.folder))


if __name__ == "__main__":
    main()
