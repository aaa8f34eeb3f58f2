"""The memory limit holds, measured from outside; and the cost is linear in pairs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from discovery.engine import Engine
from discovery.methods.patching import patch_sweep
from discovery.sites import SiteName
from tests.discovery.tiny import Shelf, as_task, random_pairs

ROOT = Path(__file__).resolve().parents[3]
MIB = 2**20

MEASURE = """
import gc, json, random, sys, torch
from transformers import GPT2Config, GPT2LMHeadModel
from discovery import ablate_heads, evaluate_circuit, load_model, load_task, patch_sweep

def resident(key):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key))) * 1024

torch.manual_seed(0)
GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=256, n_head=8, vocab_size=2000, n_positions=256)).save_pretrained(sys.argv[1])
model = load_model(sys.argv[1], device="cpu")

def task(pairs, tokens):
    rng = random.Random(pairs)
    made = []
    for _ in range(pairs):
        clean = [rng.randrange(2000) for _ in range(tokens)]
        corrupted = clean[:5] + [rng.randrange(2000) for _ in range(tokens - 6)] + clean[-1:]
        answer, wrong = rng.sample(range(2000), 2)
        made.append({"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong})
    return load_task(made, model)

found = {}
for name, pairs, tokens, limit, measure in (
    ("resid_pre", 48, 32, 48, lambda t, m: patch_sweep(model, t, "resid_pre", memory=m)),
    ("head_out", 48, 64, 64, lambda t, m: patch_sweep(model, t, "head_out", memory=m)),
    ("pattern", 48, 64, 64, lambda t, m: patch_sweep(model, t, "pattern", memory=m)),
    ("screen", 24, 64, 96, lambda t, m: patch_sweep(model, t, "resid_pre", screen=True, memory=m)),
    ("ablate", 96, 64, 96, lambda t, m: ablate_heads(model, t, ["a1.h2", "m3"], ablation="mean", memory=m)),
    ("evaluate", 96, 12, 96, lambda t, m: evaluate_circuit(model, t, ["a1.h2", "m3"], memory=m)),
    ("long pattern", 8, 250, 128, lambda t, m: patch_sweep(model, t, "pattern", memory=m)),
    ("keys", 48, 64, 64, lambda t, m: patch_sweep(model, t, "k", memory=m)),
):
    big, memory = task(pairs, tokens), limit * 2**20
    measure(task(4, tokens), memory)  # libraries' own buffers are there from now on
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    measure(big, memory)
    found[name] = [resident("VmHWM") - before, memory]
GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50257, n_positions=16)).save_pretrained(sys.argv[1] + "/wide")
model = load_model(sys.argv[1] + "/wide", device="cpu")
patch_sweep(model, task(4, 8), "resid_pre", metric="kl_divergence", memory=200 * 2**20)
gc.collect()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before, big = resident("VmRSS"), task(400, 8)
patch_sweep(model, big, "resid_pre", metric="kl_divergence", memory=200 * 2**20)
found["divergence over a large vocabulary"] = [resident("VmHWM") - before, 200 * 2**20]
json.dump(found, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_grows_by_no_more_than_the_limit(tmp_path: Path) -> None:
    """Every kind of measurement, on more pairs than the limit holds at once."""
    command, alone = [sys.executable, "-c", MEASURE, str(tmp_path)], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout.splitlines()[-1])
    assert len(grown) == 9
    assert {name: (peak // MIB, limit // MIB) for name, (peak, limit) in grown.items() if peak > limit} == {}


@pytest.mark.parametrize("site", ["resid_pre", "head_out", "mlp_out"])
def test_cost_is_linear_in_pairs_however_they_are_cut(shelf: Shelf, site: SiteName) -> None:
    """Two halves cost about what the whole costs, and so do the blocks of a small limit: only how rows share windows differs."""
    model, pairs = shelf.load("gpt2"), random_pairs((9,) * 12)
    engine = Engine(model, as_task(pairs))
    whole = patch_sweep(model, engine.task, site, engine=engine).cost.forward_equivalents
    half = sum(patch_sweep(model, as_task(part), site).cost.forward_equivalents for part in (pairs[:6], pairs[6:]))
    assert half == pytest.approx(whole, rel=0.15)
    limited = Engine(model, as_task(pairs), memory=150_000)
    assert len(list(limited.blocks())) > 2
    assert patch_sweep(model, limited.task, site, engine=limited).cost.forward_equivalents == pytest.approx(whole, rel=0.15)
