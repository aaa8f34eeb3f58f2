"""Measures the bundled model for its card: `python -m training.evaluate_bundled [--model DIR] [--json FILE]`.

Accuracy is the share of clean prompts on which the answer beats the wrong answer (sets: their summed probability), on
combinations of words and on whole wordings that are in no training sentence. Circuits are searched for by ablation.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from discovery.tasks.builtin import BUILTIN, generate
from discovery.tasks.builtin.tokenizer_filter import TokenizerFilter
from discovery.tasks.builtin.words import NAMES
from discovery.tasks.pairs import MarkedPair, PromptPair
from training.circuits import ABLATIONS, HookedAblation, find_best_set, measure_conditions
from training.corpus import make_samplers
from training.heldout import HELDOUT_TEMPLATES, is_held_out
from training.train_bundled import BUNDLED

LOG = logging.getLogger("evaluate_bundled")
_SEED = 20_000


def sample_unseen(
    name: str, sieve: TokenizerFilter, pairs: int, wordings: list[str], only_held_out: bool
) -> tuple[PromptPair, ...]:
    """Pairs in the given wordings; with `combinations`, only of held-out words."""
    rng, draw = random.Random(_SEED), make_samplers()[name]

    def propose(place: int) -> MarkedPair:
        while True:
            pair = draw(rng, wordings[place % len(wordings)])
            if not only_held_out or is_held_out(name, pair):
                return pair

    return sieve.collect_pairs(propose, pairs)


def measure_accuracy(bench: HookedAblation) -> dict[str, float]:
    """Accuracy, and how often the most probable token is an answer."""
    logits = bench.logits()
    chances = logits.softmax(-1)
    right, wrong = ((chances * members).sum(-1) for members in bench.sets)
    top = bench.sets[0].gather(1, logits.argmax(-1, keepdim=True)).float().mean()
    return {
        "accuracy": round(float((right > wrong).float().mean()), 4),
        "top1": round(float(top), 4),
    }


def accuracy_against_names(bench: HookedAblation, names: set[int]) -> float:
    """Indirect objects: how often the answer beats every other name of the prompt."""
    logits, won = bench.logits(), 0
    for at, row in enumerate(bench.clean):
        present = sorted(names & set(row.tolist()))
        won += bool(bench.sets[0][at, max(present, key=lambda token: float(logits[at, token]))])
    return round(won / len(logits), 4)


def measure_behaviour(
    name: str,
    make: Callable[[tuple[PromptPair, ...]], HookedAblation],
    sieve: TokenizerFilter,
    search_circuits: bool,
) -> dict[str, object]:
    """Everything the card says of one behaviour."""
    known = [
        wording for wording in BUILTIN[name].templates if wording not in HELDOUT_TEMPLATES[name]
    ]
    sets = {
        "new_combinations": sample_unseen(name, sieve, 500, known, True),
        "new_wordings": sample_unseen(name, sieve, 500, sorted(HELDOUT_TEMPLATES[name]), True),
    }
    out: dict[str, object] = {}
    for label, pairs in sets.items():
        bench = make(pairs)
        out[label] = measure_accuracy(bench)
        if name == "ioi":
            ids = {sieve.tokenizer.encode(f"The {first}")[-1] for first in NAMES}
            out[label] = {
                **measure_accuracy(bench),
                "beats_every_name": accuracy_against_names(bench, ids),
            }
        bench.close()
    bench = make(generate(name, sieve.tokenizer, 240, 0))
    clean, corrupted = bench.score(bench.logits()), bench.score(bench.logits(corrupted=True))
    out["task"] = {
        **measure_accuracy(bench),
        "metric_clean": float(clean.mean()),
        "metric_corrupted": float(corrupted.mean()),
    }
    out["alone"] = max(
        (min(bench.f(frozenset({node}), a) for a in ABLATIONS), node)
        for node in sorted(bench.universe)
        if node[0] == "a"
    )
    bench.close()
    if search_circuits:
        out.update(measure_circuits(name, make, sieve))
    return out


def measure_circuits(
    name: str, make: Callable[[tuple[PromptPair, ...]], HookedAblation], sieve: TokenizerFilter
) -> dict[str, object]:
    """The circuit found on 160 pairs, measured there and on 240 fresh ones."""
    bench = make(generate(name, sieve.tokenizer, 160, 0))
    nodes = find_best_set(bench).nodes
    bench.close()
    out: dict[str, object] = {"circuit": sorted(nodes)}
    for label, pairs, seed in (("sought_on", 160, 0), ("fresh_pairs", 240, 1)):
        bench = make(generate(name, sieve.tokenizer, pairs, seed))
        found = measure_conditions(bench, nodes)
        out[label] = {
            "faithfulness": found.faithfulness, "knockout": found.knockout, "completeness_in": found.gap_inside,
            "completeness_out": found.gap_outside, "least_effect": found.least_effect, "excess": found.excess,
        }  # fmt: skip
        bench.close()
    return out


def main() -> None:
    """Logs one JSON line a behaviour and writes them together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-circuits", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model).eval()
    result: dict[str, object] = {"parameters": model.num_parameters()}
    for name, task in BUILTIN.items():
        make = partial(HookedAblation, model, tokenizer, task.metric == "probability_difference")
        result[name] = measure_behaviour(
            name, make, TokenizerFilter(tokenizer, name), not given.no_circuits
        )
        LOG.info("%s %s", name, json.dumps(result[name], indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
