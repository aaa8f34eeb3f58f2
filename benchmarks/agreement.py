"""Do the two backends agree?

    python -m benchmarks.agreement [--shared DIR]

The first table takes every architecture that both backends support, as a tiny model with seeded
random weights, and runs every sweep in both directions. The answers of the pairs are chosen so that
the corruption costs much of the metric. Prints Markdown: the largest difference of any cell of any
pair, divided by the mean of m(clean) − m(corrupted).

With `--shared`, a second table runs a whole discovery on both backends for each model of stories in
that folder (NAME/hf), on two tasks. In the first, "she" is followed by "was" and "they" by "were".
In the second, a name is repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import format_header, format_row, open_output, print_progress
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
from discovery.graph import EVIDENCE_ABLATIONS, CircuitGraph
from discovery.sites import Direction, SiteName
from discovery.tasks.pairs import Tokenizer
from discovery.tasks.task import EncodedPair, Task

VERB_OPENINGS = (
    "Once upon a {a} day, ",
    "The {a} dog ran away. ",
    "There was a {a} park. ",
    "Lily had a {a} ball. ",
)
ADJECTIVES = "little big small happy nice brave old kind sad good young funny red new".split()
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
NAMES = [
    ("Tim", "Tom"),
    ("Ben", "Bob"),
    ("Sam", "Sue"),
    ("Max", "Mia"),
    ("Lily", "Lucy"),
    ("Jack", "Jill"),
    ("Mom", "Max"),
    ("Lily", "Lola"),
    ("Ken", "Kim"),
    ("Dan", "Dot"),
    ("Ron", "Ray"),
    ("Fred", "Fran"),
    ("Pam", "Pip"),
]
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
DISCOVERY_COLUMNS = (
    "model",
    "task",
    "backend",
    "verdict",
    "circuit",
    "f(C) on held-out pairs: resample, mean",
    "forward-pass equivalents",
)


def choose_answers(model: Backend, pairs: Iterable[EncodedPair]) -> Task:
    """Give each pair the answers whose logit difference the corruption lowers most."""
    pairs_with_answers = []
    for pair in pairs:
        batch = Batch(
            tokens=torch.tensor([pair.clean, pair.corrupted]),
            answer_position=torch.full((2,), len(pair.clean) - 1),
        )
        logits = model.run(batch).logits
        assert logits is not None
        change = logits[0] - logits[1]
        answer = (int(change.argmax()),)
        wrong = (int(change.argmin()),)
        pairs_with_answers.append(replace(pair, answer=answer, wrong=wrong))
    return as_task(pairs_with_answers)


def largest_difference(first: Backend, second: Backend, task: Task, site: SiteName) -> float | None:
    """Return the largest difference in both directions, divided by the gap of the metric.

    It is None if the architecture has no such site.
    """
    largest = 0.0
    for direction in DIRECTIONS:
        try:
            grids = [
                patch_sweep(model, task, site, direction=direction) for model in (first, second)
            ]
        except SiteError:
            return None
        gap = float((grids[0].metric_clean - grids[0].metric_corrupted).mean())
        difference = (grids[0].per_pair - grids[1].per_pair).abs()
        largest = max(largest, float(difference[~difference.isnan()].max()) / gap)
    return largest


def architectures_table(folder: Path) -> str:
    """Return the table of tiny models."""
    table = format_header("architecture", *SITES)
    tiny_models = TinyModels(folder)
    for name in (*ARCHITECTURES, *OTHER_ARCHITECTURES, "native", "attn_only"):
        path = tiny_models.path(name)
        if read_outline(path).backends != tuple(BACKEND_LABELS):
            continue
        models = [load_model(path, device="cpu", backend=backend) for backend in BACKEND_LABELS]
        first, second = models
        task = choose_answers(first, random_pairs(PROMPT_LENGTHS))
        differences = [largest_difference(first, second, task, site) for site in SITES]
        cells = ["–" if value is None else f"{value:.0e}" for value in differences]
        table += format_row(f"{first.info.architecture} ({name})", *cells)
        print_progress(name)
    return table


def verbs_task(model: Backend) -> Task:
    """Make pairs like "she" and "they", which are continued by "was" and by "were".

    Only pairs whose two sides have the same number of tokens are used.
    """
    tokenizer = require_tokenizer(model)
    pairs: list[dict[str, Any]] = []
    for (template, opening), adjective, subjects in product(
        enumerate(VERB_OPENINGS), ADJECTIVES, SUBJECTS
    ):
        prompts = [
            opening.format(a=adjective)
            + (subject if opening.endswith(", ") else subject.capitalize())
            for subject in subjects
        ]
        singular, plural = prompts
        clean, was, were = _split_endings(tokenizer, singular)
        corrupted, _, _ = _split_endings(tokenizer, plural)
        if len(clean) == len(corrupted):
            label = str(template)
            pairs.append(_make_pair(clean, corrupted, answer=was, wrong=were, template=label))
            pairs.append(_make_pair(corrupted, clean, answer=were, wrong=was, template=label))
    return load_task(pairs, model)


def names_task(model: Backend) -> Task:
    """Make pairs that differ in a name that the prompt starts to repeat.

    The two names of a pair begin with the same letters, which are what the prompt repeats.
    """
    tokenizer = require_tokenizer(model)
    pairs: list[dict[str, Any]] = []
    for (template, text), (name, other_name) in product(enumerate(NAME_TEMPLATES), NAMES):
        n_shared = first_difference(name, other_name)
        clean, corrupted = (
            tokenizer.encode(text.format(n=word, p=name[:n_shared])) for word in (name, other_name)
        )
        answer, wrong = (
            tokenizer.encode(text.format(n=name, p=word[: n_shared + 1]))
            for word in (name, other_name)
        )
        if len(clean) == len(corrupted) and answer[:-1] == wrong[:-1] == clean:
            pair = _make_pair(
                clean, corrupted, answer=answer[-1], wrong=wrong[-1], template=str(template)
            )
            pairs.append(pair)
    return load_task(pairs, model)


def require_tokenizer(model: Backend) -> Tokenizer:
    """Return the model's tokenizer, which these tasks need."""
    assert model.tokenizer is not None
    return model.tokenizer


def first_difference(first: Iterable[object], second: Iterable[object]) -> int:
    """Return the first index at which two sequences differ."""
    items = enumerate(zip(first, second, strict=False))
    return next(index for index, (a, b) in items if a != b)


def _split_endings(tokenizer: Tokenizer, prompt: str) -> tuple[list[int], int, int]:
    """Return the tokens of a prompt, and the tokens of " was" and " were" behind it.

    The prompt ends at the first token in which the two continuations differ.
    """
    was, were = (tokenizer.encode(prompt + ending) for ending in (" was", " were"))
    length = first_difference(was, were)
    return was[:length], was[length], were[length]


def _make_pair(
    clean: list[int], corrupted: list[int], *, answer: int, wrong: int, template: str
) -> dict[str, Any]:
    return {
        "clean": clean,
        "corrupted": corrupted,
        "answer": answer,
        "wrong": wrong,
        "template": template,
    }


STORY_TASKS: dict[str, Callable[[Backend], Task]] = {"verbs": verbs_task, "names": names_task}


def circuits_table(shared: Path, runs_dir: Path) -> str:
    """Return the table of whole discoveries on both backends."""
    table = format_header(*DISCOVERY_COLUMNS)
    for directory in sorted(shared.glob("*/hf")):
        for (task_name, make_task), backend in product(STORY_TASKS.items(), BACKEND_LABELS):
            model = load_model(directory, backend=backend)
            name = directory.parent.name
            own_runs = runs_dir / f"{name}-{task_name}-{backend}"
            circuit = discover(model, make_task(model), runs_dir=own_runs).circuit
            table += format_discovery(name, task_name, backend, circuit)
            print_progress(directory, task_name, backend)
    return table


def format_discovery(name: str, task_name: str, backend: str, circuit: CircuitGraph) -> str:
    """Return the row of one discovery."""
    heldout = circuit.evaluation.heldout
    values = []
    for ablation in EVIDENCE_ABLATIONS if heldout else ():
        evidence = heldout.ablations.under(ablation) if heldout else None
        if evidence and evidence.faithfulness and evidence.faithfulness.value is not None:
            values.append(f"{evidence.faithfulness.value:.4f}")
    return format_row(
        name,
        task_name,
        backend,
        circuit.verdict,
        ", ".join(node.label for node in circuit.members) or "none",
        ", ".join(values) or "–",
        f"{circuit.cost.forward_equivalents or 0.0:,.0f}",
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, help="a folder of NAME/hf model directories")
    arguments = parser.parse_args()
    with open_output() as output:
        output.write(architectures_table(output.folder / "models"))
        if arguments.shared is not None:
            output.write("\n" + circuits_table(arguments.shared, output.folder / "runs"))


if __name__ == "__main__":
    main()
