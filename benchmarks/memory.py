"""Is the memory that a model is said to need what it then takes? `python -m benchmarks.memory`

Random models of 60 to 90 million parameters, on both backends, in the dtype that they were saved in and in another, each in a process of
its own (Linux: the high-water mark of /proc, over what the process held with all libraries loaded). Prints Markdown: what `models info`
says that loading and a sweep take, and what they took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import format_header
from benchmarks.sweeps import random_pairs
from discovery import load_model, patch_sweep
from discovery.backends.hardware.memory import release_memory
from discovery.backends.loading.backend_choice import choose_backend
from discovery.backends.loading.outline import BACKEND_LABELS, read_outline
from discovery.engine import MemoryNeed

SHARED_CONFIG = {
    "hidden_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "vocab_size": 8000,
}
MODEL_CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_layer": 8, "n_embd": 768, "n_head": 12, "vocab_size": 8000},
    "Llama": SHARED_CONFIG | {"intermediate_size": 2048, "num_key_value_heads": 4},
    "GPTNeoX": SHARED_CONFIG | {"intermediate_size": 3072},
    "OPT": SHARED_CONFIG | {"ffn_dim": 3072, "word_embed_proj_dim": 768},
    "Mixtral": SHARED_CONFIG
    | {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_local_experts": 8,
    },
}
SWEEPS = ((1, 32), (8, 32), (2, 64))


def read_resident_bytes(key: str) -> int:
    """Bytes, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def reset_high_water_mark() -> int:
    """Let the high-water mark start anew; what is held now."""
    release_memory()
    Path("/proc/self/clear_refs").write_text("5")
    return read_resident_bytes("VmRSS")


def measure(place: str, backend: str, dtype: str) -> dict[str, Any]:
    """In a process of its own."""
    load_model("bundled", backend=backend)  # type: ignore[arg-type]  # one of the two
    said = choose_backend(read_outline(place, dtype=dtype), backend, 10**15).outline  # type: ignore[arg-type]
    before = reset_high_water_mark()
    model = load_model(place, backend=backend, dtype=dtype)  # type: ignore[arg-type]
    found: dict[str, Any] = {
        "parameters": said.n_params,
        "said": said.loading_bytes,
        "took": read_resident_bytes("VmHWM") - before,
        "sweeps": [],
    }
    for pairs, tokens in SWEEPS if dtype == "float32" else ():
        need, task = MemoryNeed.of(said, tokens, pairs), random_pairs(model, pairs, tokens)
        patch_sweep(
            model, random_pairs(model, min(pairs, 2), tokens), memory=need.limit
        )  # libraries' own buffers are there from now on
        before = reset_high_water_mark()
        patch_sweep(model, task, memory=need.limit)
        found["sweeps"].append(
            [pairs, tokens, need.limit, need.sweep, read_resident_bytes("VmHWM") - before]
        )
    return found


def save_random_model(name: str, folder: Path) -> Path:
    """A model with seeded random weights."""
    import transformers

    torch.manual_seed(0)
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    getattr(transformers, kind)(
        getattr(transformers, f"{name}Config")(**MODEL_CONFIGS[name])
    ).save_pretrained(folder / name)
    return folder / name


def format_difference(said: int, took: int) -> str:
    """Two sizes and how far what was said is from what it took."""
    return f"{said / 1e6:,.0f} MB | {took / 1e6:,.0f} MB | {said / took - 1:+.0%}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument(
        "--only", nargs="*", choices=tuple(MODEL_CONFIGS), help="some of the models"
    )
    chosen, out = parser.parse_args(), sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        if chosen.one is not None:
            out.write(json.dumps(measure(*chosen.one)))
            return
        loads = format_header("model", "parameters", "backend", "dtype", "said", "took", "apart")
        sweeps = format_header(
            "model", "backend", "pairs × tokens", "limit", "said", "took", "apart"
        )
        for name in chosen.only or MODEL_CONFIGS:
            place = save_random_model(name, Path(folder))
            for backend, dtype in product(BACKEND_LABELS, ("float32", "bfloat16")):
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.memory",
                    "--one",
                    str(place),
                    backend,
                    dtype,
                ]
                done = subprocess.run(
                    command,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found = json.loads(done.stdout)
                loads += f"| {name} | {found['parameters']:,} | {backend} | {dtype} | {format_difference(found['said'], found['took'])} |\n"
                for pairs, tokens, limit, need, took in found["sweeps"]:
                    sweeps += f"| {name} | {backend} | {pairs} × {tokens} | {limit / 1e6:,.0f} MB | {format_difference(need, took)} |\n"
                print(name, backend, dtype, file=sys.stderr, flush=True)
        out.write(f"{loads}\n{sweeps}")


if __name__ == "__main__":
    main()
