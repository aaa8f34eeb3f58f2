"""Measures the bundled model for its card.

    python -m training.evaluate_bundled [--model DIR] [--json FILE]

Accuracy is the share of clean prompts on which the answer beats the wrong answer (for sets, by
their summed probability), on combinations of words and on whole templates that are in no training
sentence. Circuits are searched for by ablation.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from discovery.backends.loading.huggingface import TextTokenizer
from discovery.tasks.builtin import BUILTIN, BUNDLED_TASKS, generate
from discovery.tasks.builtin.tokenizer_filter import TokenizerFilter
from discovery.tasks.builtin.words import NAMES
from discovery.tasks.pairs import MarkedPair, PromptPair
from training.circuits import ABLATIONS, HookedAblation, find_best_set, measure_conditions
from training.corpus import make_samplers
from training.heldout import HELDOUT_TEMPLATES, is_held_out
from training.train_bundled import BUNDLED

LOG = logging.getLogger("evaluate_bundled")
UNSEEN_PAIRS = 500
_SEED = 20_000
AblationFactory = Callable[[tuple[PromptPair, ...]], HookedAblation]


def sample_unseen(
    name: str,
    tokenizer_filter: TokenizerFilter,
    pairs: int,
    templates: Sequence[str],
    only_held_out: bool,
) -> tuple[PromptPair, ...]:
    """Draw pairs of a behaviour from the given templates.

    Args:
        name: the behaviour.
        tokenizer_filter: converts the pairs for the model's tokenizer.
        pairs: the number of pairs.
        templates: the names of the templates.
        only_held_out: whether to use held-out combinations of words alone.
    """
    rng = random.Random(_SEED)
    sample_pair = make_samplers()[name]

    def propose(index: int) -> MarkedPair:
        while True:
            pair = sample_pair(rng, templates[index % len(templates)])
            if not only_held_out or is_held_out(name, pair):
                return pair

    return tokenizer_filter.collect_pairs(propose, pairs)


def measure_accuracy(model: HookedAblation) -> dict[str, float]:
    """Return the accuracy, and how often the most probable token is an answer."""
    logits = model.logits()
    probabilities = logits.softmax(-1)
    right, wrong = ((probabilities * members).sum(-1) for members in model.answer_sets)
    most_probable = logits.argmax(-1, keepdim=True)
    top1 = model.answer_sets[0].gather(1, most_probable).float().mean()
    return {
        "accuracy": round(float((right > wrong).float().mean()), 4),
        "top1": round(float(top1), 4),
    }


def accuracy_against_names(model: HookedAblation, names: set[int]) -> float:
    """Return how often the indirect object beats every other name in the prompt."""
    logits = model.logits()
    n_right = 0
    for index, tokens in enumerate(model.clean):
        candidates = sorted(names & set(tokens.tolist()))
        row = logits[index].tolist()
        winner = max(candidates, key=lambda token, row=row: row[token])  # type: ignore[misc]
        n_right += bool(model.answer_sets[0][index, winner])
    return round(n_right / len(logits), 4)


def measure_behaviour(
    name: str, make: AblationFactory, tokenizer_filter: TokenizerFilter, search_circuits: bool
) -> dict[str, object]:
    """Measure everything that the card says about one behaviour."""
    heldout = sorted(HELDOUT_TEMPLATES[name])
    trained = [template for template in BUILTIN[name].templates if template not in heldout]
    record: dict[str, object] = {}
    for label, templates in (("new_combinations", trained), ("new_wordings", heldout)):
        model = make(sample_unseen(name, tokenizer_filter, UNSEEN_PAIRS, templates, True))
        scores = measure_accuracy(model)
        if name == "ioi":
            encode = tokenizer_filter.tokenizer.encode
            ids = {encode(f"The {first_name}")[-1] for first_name in NAMES}
            scores["beats_every_name"] = accuracy_against_names(model, ids)
        model.close()
        record[label] = scores
    model = make(generate(name, tokenizer_filter.tokenizer, 240, 0))
    clean = model.score(model.logits())
    corrupted = model.score(model.logits(corrupted=True))
    record["task"] = {
        **measure_accuracy(model),
        "metric_clean": float(clean.mean()),
        "metric_corrupted": float(corrupted.mean()),
    }
    record["alone"] = find_best_single_head(model)
    model.close()
    if search_circuits:
        record.update(measure_circuits(name, make, tokenizer_filter))
    return record


def find_best_single_head(model: HookedAblation) -> tuple[float, str]:
    """Return the largest f of a head alone, the smaller of both ablations', and the head."""
    heads = [node for node in sorted(model.universe) if node.startswith("a")]
    return max(
        (min(model.f(frozenset({head}), ablation) for ablation in ABLATIONS), head)
        for head in heads
    )


def measure_circuits(
    name: str, make: AblationFactory, tokenizer_filter: TokenizerFilter
) -> dict[str, object]:
    """Search for a circuit on 160 pairs, and measure it there and on 240 fresh ones."""
    model = make(generate(name, tokenizer_filter.tokenizer, 160, 0))
    nodes = find_best_set(model).nodes
    model.close()
    record: dict[str, object] = {"circuit": sorted(nodes)}
    for label, pairs, seed in (("sought_on", 160, 0), ("fresh_pairs", 240, 1)):
        model = make(generate(name, tokenizer_filter.tokenizer, pairs, seed))
        gaps = measure_conditions(model, nodes)
        model.close()
        record[label] = {
            "faithfulness": gaps.faithfulness,
            "knockout": gaps.knockout,
            "completeness_in": gaps.gap_inside,
            "completeness_out": gaps.gap_outside,
            "least_effect": gaps.least_effect,
            "excess": gaps.excess,
        }
    return record


def main() -> None:
    """Log one JSON document for each behaviour, and write them together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--json", type=Path, help="the file for all measurements together")
    parser.add_argument("--no-circuits", action="store_true", help="do not search for circuits")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    records: dict[str, object] = {"parameters": model.num_parameters()}
    for name in BUNDLED_TASKS:
        by_probability = BUILTIN[name].metric == "probability_difference"
        make = partial(HookedAblation, model, tokenizer, by_probability)
        tokenizer_filter = TokenizerFilter(TextTokenizer(tokenizer), name)
        records[name] = measure_behaviour(name, make, tokenizer_filter, not arguments.no_circuits)
        LOG.info("%s %s", name, json.dumps(records[name], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
