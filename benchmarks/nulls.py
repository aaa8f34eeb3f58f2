"""Where there is nothing to find, what is found? `python -m benchmarks.nulls [--each N] [--only TEXT]`

Six kinds of null, N of each: random weights on tasks whose names swap (ioi, induction), random weights on tasks of two answers
(agreement, greater_than), the bundled model with answers shuffled, with all answers reversed, and with pairs that differ in a token that
does not matter; these have no behaviour, and are put through the whole agent. And on tasks that the bundled model does, random circuits
of the size of the one that was found, put through the conditions: (f) is about a search and these had none, so they count as `verified`
where all the others hold, and so do the circuits that were found, for comparison. Prints Markdown: how often each verdict is given.
`verified` and `partial` are false discoveries; the bound is the one-sided 95% one of Clopper and Pearson.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import binomtest

from benchmarks.output import format_header
from discovery import discover, evaluate_circuit, load_model, load_task
from discovery.backends.base import Backend
from discovery.backends.loading.source import locate_model
from discovery.evaluation import CircuitEvaluation
from discovery.graph import CONDITIONS, EVIDENCE_ABLATIONS, VERDICTS
from discovery.tasks import BUILTIN
from discovery.tasks.task import EncodedPair, Task

SWAP_TASKS, TWO_ANSWER_TASKS = ("ioi", "induction"), ("agreement", "greater_than")
WEIGHT_STD = 128**-0.5  # of the weights: fan-in scaled, so that every node moves the logits


def random_weights(
    names: tuple[str, ...], count: int, folder: Path
) -> Iterator[tuple[Backend, Task]]:
    """The bundled architecture and tokenizer with untrained weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    bundled = locate_model("bundled").directory
    for seed in range(count):
        place = folder / f"random-{names[0]}-{seed}"
        place.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (bundled / name).is_file():
                shutil.copy(bundled / name, place)
        torch.manual_seed(seed)
        GPT2LMHeadModel(
            GPT2Config.from_pretrained(bundled, initializer_range=WEIGHT_STD)
        ).save_pretrained(place)
        model = load_model(place)
        yield model, load_task(names[seed % len(names)], model, seed=seed)


def changed_tasks(
    change: Callable[[EncodedPair, random.Random, list[EncodedPair]], EncodedPair], count: int
) -> Iterator[tuple[Backend, Task]]:
    """The bundled model on pairs that show nothing."""
    model = load_model("bundled")
    for seed in range(count):
        task = load_task(list(BUILTIN)[seed % len(BUILTIN)], model, seed=seed)
        rng, pairs = random.Random(seed), list(task.pairs)
        yield model, replace(task, pairs=tuple(change(pair, rng, pairs) for pair in pairs))


def shuffle_answers(pair: EncodedPair, rng: random.Random, _: list[EncodedPair]) -> EncodedPair:
    """Right and wrong by the toss of a coin."""
    return reverse_answers(pair, rng, _) if rng.random() < 0.5 else pair


def reverse_answers(pair: EncodedPair, _: random.Random, __: list[EncodedPair]) -> EncodedPair:
    """Right is wrong."""
    return replace(pair, answer=pair.wrong, wrong=pair.answer)


def corrupt_irrelevant_token(
    pair: EncodedPair, rng: random.Random, pairs: list[EncodedPair]
) -> EncodedPair:
    """Corrupted in one token that the behaviour does not hang on, by what another prompt of the same wording has there.

    That is a word without a label, or the distractor noun, which agreement is to overlook.
    """
    named = {
        position % len(pair.clean)
        for label, position in pair.labels.items()
        if label != "distractor"
    }
    names = {pair.clean[position] for position in named} | set(pair.answer) | set(pair.wrong)
    alike = [
        p.clean for p in pairs if (p.template, len(p.clean)) == (pair.template, len(pair.clean))
    ]
    choices = [
        (n, tokens[n])
        for n in range(len(pair.clean))
        if n not in named
        for tokens in alike
        if tokens[n] not in {*names, pair.clean[n]}
    ]
    if not choices:
        return replace(pair, corrupted=pair.clean)
    position, token = rng.choice(choices)
    return replace(pair, corrupted=(*pair.clean[:position], token, *pair.clean[position + 1 :]))


def discover_verdicts(cases: Iterator[tuple[Backend, Task]], runs_dir: Path) -> Iterator[str]:
    """The agent's verdicts."""
    for model, task in cases:
        yield str(discover(model, task, runs_dir=runs_dir).circuit.verdict)


def random_circuits(count: int, runs_dir: Path, true: list[str]) -> Iterator[str]:
    """Verdicts on sets of as many heads and MLPs as were found, drawn at random from the others; `true` gets those on what was found."""
    model = load_model("bundled")
    for number, name in enumerate(BUILTIN):
        task = load_task(name, model)
        found = set(discover(model, task, runs_dir=runs_dir).circuit.members)
        true.append(verdict_without_f(evaluate_circuit(model, task, sorted(found), final=True)))
        kinds = [
            [node for node in model.info.nodes() if (node.head is None) is alone]
            for alone in (False, True)
        ]
        for seed in range(number, count, len(BUILTIN)):
            rng = random.Random(seed)
            while True:
                drawn = {
                    node for kind in kinds for node in rng.sample(kind, len(found & set(kind)))
                }
                if drawn != found:
                    break
            yield verdict_without_f(
                evaluate_circuit(model, task, sorted(drawn), final=True, seed=seed)
            )


def verdict_without_f(found: CircuitEvaluation) -> str:
    """The verdict, if (f) held, which a set that was given rather than searched for is not asked."""
    conditions = found.evaluation.conditions
    others = {
        conditions.of(name).under(ablation)
        for name in CONDITIONS
        if name != "f"
        for ablation in EVIDENCE_ABLATIONS
    }
    return "verified" if others == {"holds"} and found.verdict == "partial" else found.verdict


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--each",
        type=int,
        default=60,
        help="with 59 and none found, at most 5 percent can be false, with 95 percent confidence",
    )
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    chosen = parser.parse_args()
    count = chosen.each
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        nulls: dict[str, Iterator[tuple[Backend, Task]]] = {
            "random weights, swap tasks": random_weights(SWAP_TASKS, count, folder),
            "random weights, two-answer tasks": random_weights(TWO_ANSWER_TASKS, count, folder),
            "shuffled answers": changed_tasks(shuffle_answers, count),
            "all answers reversed": changed_tasks(reverse_answers, count),
            "an irrelevant token": changed_tasks(corrupt_irrelevant_token, count),
        }
        runs = folder / "runs"
        kinds = {kind: discover_verdicts(cases, runs) for kind, cases in nulls.items()}
        true: list[str] = []
        kinds["random circuits, tasks that it does"] = random_circuits(count, runs, true)
        out.write(format_header("null", "n", *VERDICTS, "false discoveries", "at most"))
        for kind, cases in ((kind, cases) for kind, cases in kinds.items() if chosen.only in kind):
            found = Counter(cases)
            false = found["verified"] + found["partial"]
            bound = (
                binomtest(false, found.total(), alternative="less")
                .proportion_ci(0.95, "exact")
                .high
            )
            told = " | ".join(str(found[verdict]) for verdict in VERDICTS)
            out.write(
                f"| {kind} | {found.total()} | {told} | {false / found.total():.1%} | {bound:.1%} |\n"
            )
            out.flush()
        if true:
            out.write(
                f"\nThe circuits that were found, judged as the random ones: {', '.join(true)}.\n"
            )


if __name__ == "__main__":
    main()
