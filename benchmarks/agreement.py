"""Do the two backends agree? `python -m benchmarks.agreement [--shared DIR]`

Every architecture that both know, small, with seeded random weights; every sweep both ways, on pairs whose answers are chosen so that the
corruption removes much. Prints Markdown: the largest difference of any cell of any pair, over the mean of m(clean) − m(corrupted). With
`--shared`, models of stories in that folder are put through
`discover` on both backends: she was and they were (verbs), a name goes on as before (names).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from benchmarks.output import format_header
from benchmarks.random_models.tiny_models import (
    ARCHITECTURES,
    OTHER_ARCHITECTURES,
    TinyModels,
    as_task,
    random_pairs,
)
from discovery import discover, load_model, load_task, patch_sweep
from discovery.backends.base import Backend, Batch
from discovery.backends.loading.outline import BACKEND_LABELS, read_outline
from discovery.errors import SiteError
from discovery.sites import Direction, SiteName
from discovery.tasks.pairs import Tokenizer
from discovery.tasks.task import EncodedPair, Task

VERB_OPENINGS = (
    "Once upon a {a} day, ",
    "The {a} dog ran away. ",
    "There was a {a} park. ",
    "Lily had a {a} ball. ",
)
ADJECTIVES = (
    "little",
    "big",
    "small",
    "happy",
    "nice",
    "brave",
    "old",
    "kind",
    "sad",
    "good",
    "young",
    "funny",
    "red",
    "new",
)
SUBJECTS = (
    ("she", "they"),
    ("he", "they"),
    ("he", "we"),
    ("the boy", "the kids"),
    ("the dog", "the dogs"),
    ("the cat", "the cats"),
    ("it", "they"),
)
NAME_TEMPLATES = (
    "{n} was happy. Then {p}",
    "{n} had a ball. One day, {p}",
    "The dog saw {n}. The dog liked {p}",
    "{n} went to the park. The cat saw {n}. {p}",
    'Mom said to {n}, "I love you, {p}',
)
PAIRS_OF_NAMES = "Tim/Tom Ben/Bob Sam/Sue Max/Mia Lily/Lucy Jack/Jill Mom/Max Lily/Lola Ken/Kim Dan/Dot Ron/Ray Fred/Fran Pam/Pip"
NAMES = tuple(tuple(pair.split("/")) for pair in PAIRS_OF_NAMES.split())
SITES: tuple[SiteName, ...] = (
    "resid_pre",
    "resid_mid",
    "attn_out",
    "mlp_out",
    "head_out",
    "head_out_by_position",
    "q",
    "k",
    "v",
    "pattern",
)
DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
PROMPT_LENGTHS = (9, 9, 7, 9)


def choose_answers(model: Backend, pairs: Iterable[EncodedPair]) -> Task:
    """The pairs with the answers that the corruption costs most."""
    told = []
    for pair in pairs:
        rows, last = (
            torch.tensor([pair.clean, pair.corrupted]),
            torch.full((2,), len(pair.clean) - 1),
        )
        logits = model.run(Batch(rows, last)).logits
        assert logits is not None
        lost = logits[0] - logits[1]
        told.append(replace(pair, answer=(int(lost.argmax()),), wrong=(int(lost.argmin()),)))
    return as_task(told)


def largest_difference(ours: Backend, theirs: Backend, task: Task, site: SiteName) -> float | None:
    """The largest of both directions, over the gap; None where the architecture has no such site."""
    worst = 0.0
    for direction in DIRECTIONS:
        try:
            a, b = (patch_sweep(model, task, site, direction=direction) for model in (ours, theirs))
        except SiteError:
            return None
        gap = float((a.metric_clean - a.metric_corrupted).mean())
        apart = (a.per_pair - b.per_pair).abs()
        worst = max(worst, float(apart[~apart.isnan()].max()) / gap)
    return worst


def architectures_table(folder: Path) -> str:
    """The first table."""
    text, tiny_models = format_header("architecture", *SITES), TinyModels(folder)
    for name in (*ARCHITECTURES, *OTHER_ARCHITECTURES, "native", "attn_only"):
        if read_outline(tiny_models.path(name)).backends != tuple(BACKEND_LABELS):
            continue
        ours, theirs = (
            load_model(tiny_models.path(name), device="cpu", backend=engine)
            for engine in BACKEND_LABELS
        )
        task = choose_answers(ours, random_pairs(PROMPT_LENGTHS))
        found = [largest_difference(ours, theirs, task, site) for site in SITES]
        text += (
            f"| {ours.info.architecture} ({name}) | "
            + " | ".join("–" if value is None else f"{value:.0e}" for value in found)
            + " |\n"
        )
        print(name, file=sys.stderr, flush=True)
    return text


def verbs_task(model: Backend) -> Task:
    """She was, they were: pairs that differ in who it is about, where both have as many tokens."""
    tokenizer, made = model.tokenizer, []
    assert tokenizer is not None
    for (template, text), adjective, both in product(
        enumerate(VERB_OPENINGS), ADJECTIVES, SUBJECTS
    ):
        prompts = [
            text.format(a=adjective) + (who if text.endswith(", ") else who.capitalize())
            for who in both
        ]
        (one, was, were), (other, _, _) = (_split_endings(tokenizer, prompt) for prompt in prompts)
        if len(one) == len(other):
            shared = {"template": str(template)}
            made.append({"clean": one, "corrupted": other, "answer": was, "wrong": were} | shared)
            made.append({"clean": other, "corrupted": one, "answer": were, "wrong": was} | shared)
    return load_task(made, model)


def _split_endings(tokenizer: Tokenizer, prompt: str) -> tuple[list[int], int, int]:
    """A prompt up to where its two endings differ, and the token that each then has."""
    was, were = (tokenizer.encode(prompt + ending) for ending in (" was", " were"))
    first = next(place for place, (a, b) in enumerate(zip(was, were, strict=False)) if a != b)
    return was[:first], was[first], were[first]


def names_task(model: Backend) -> Task:
    """A name goes on as it did before: pairs that differ in it behind its first letter."""
    tokenizer, made = model.tokenizer, []
    assert tokenizer is not None
    for (template, text), (name, other) in product(enumerate(NAME_TEMPLATES), NAMES):
        same = next(place for place, (a, b) in enumerate(zip(name, other, strict=True)) if a != b)
        clean, corrupted = (
            tokenizer.encode(text.format(n=word, p=name[:same])) for word in (name, other)
        )
        answer, wrong = (
            tokenizer.encode(text.format(n=name, p=word[: same + 1])) for word in (name, other)
        )
        if len(clean) == len(corrupted) and answer[:-1] == wrong[:-1] == clean:
            made.append(
                {
                    "clean": clean,
                    "corrupted": corrupted,
                    "answer": answer[-1],
                    "wrong": wrong[-1],
                    "template": str(template),
                }
            )
    return load_task(made, model)


def circuits_table(shared: Path) -> str:
    """The second table: a whole discovery on both."""
    text = format_header(
        "model",
        "task",
        "backend",
        "verdict",
        "circuit",
        "f(C) on held-out pairs: resample, mean",
        "forward-pass equivalents",
    )
    for place in sorted(shared.glob("*/hf")):
        for task, engine in product((verbs_task, names_task), BACKEND_LABELS):
            model = load_model(place, backend=engine)
            with tempfile.TemporaryDirectory() as runs:
                made = discover(model, task(model), runs_dir=runs).circuit
            held = made.evaluation.heldout.ablations if made.evaluation.heldout else None
            values = (
                []
                if held is None
                else [
                    kind.faithfulness.value
                    for kind in (held.resample, held.mean)
                    if kind and kind.faithfulness
                ]
            )
            told = ", ".join(f"{value:.4f}" for value in values if value is not None) or "–"
            nodes, cost = (
                ", ".join(node.label for node in made.members) or "none",
                made.cost.forward_equivalents or 0.0,
            )
            text += f"| {place.parent.name} | {task.__name__} | {engine} | {made.verdict} | {nodes} | {told} | {cost:,.0f} |\n"
            print(place, task.__name__, engine, file=sys.stderr, flush=True)
    return text


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, help="a folder of NAME/hf model directories")
    chosen = parser.parse_args()
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        out.write(architectures_table(Path(folder)))
        out.flush()
        if chosen.shared is not None:
            out.write("\n" + circuits_table(chosen.shared))


if __name__ == "__main__":
    main()
