"""What is found if there is nothing to find?

    python -m benchmarks.circuits.nulls [--each N] [--only TEXT]

There are six kinds of null, and N of each. Five have no behaviour and go through the whole agent:
random weights on the tasks whose answers are swapped (ioi, induction), random weights on the tasks
of two answers (agreement, greater_than), and the bundled model with shuffled answers, with all
answers reversed, and with pairs that differ in a token that does not matter.

The sixth takes the tasks that the bundled model does, and puts random circuits through the
conditions, of the size of the circuit that was found. (f) is about a search and these had none, so
a random circuit counts as `verified` if all other conditions hold. The circuits that were found are
judged in the same way, for comparison.

Prints a Markdown table of how often each verdict is given. `verified` and `partial` are false
discoveries. Their bound is the one-sided 95% bound of Clopper and Pearson.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import binomtest

from benchmarks.output import Output, format_header, format_row, open_output
from discovery import discover, evaluate_circuit, load_model, load_task
from discovery.backends.base import Backend
from discovery.backends.loading.source import locate_model
from discovery.evaluation import CircuitEvaluation
from discovery.graph import CONDITIONS, EVIDENCE_ABLATIONS, VERDICTS
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.tasks import BUNDLED_TASKS
from discovery.tasks.task import EncodedPair, Task

Case = tuple[Backend, Task]
PairChange = Callable[[EncodedPair, random.Random, Sequence[EncodedPair]], EncodedPair]
SWAP_TASKS = ("ioi", "induction")
TWO_ANSWER_TASKS = ("agreement", "greater_than")
WEIGHT_STD = 128**-0.5  # scaled by the fan-in, so that every node moves the logits
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def random_weights(names: Sequence[str], count: int, folder: Path) -> Iterator[Case]:
    """Yield models of the bundled architecture and tokenizer with untrained weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    bundled = locate_model("bundled").directory
    for seed in range(count):
        directory = folder / f"random-{names[0]}-{seed}"
        directory.mkdir()
        for name in TOKENIZER_FILES:
            if (bundled / name).is_file():
                shutil.copy(bundled / name, directory)
        config = GPT2Config.from_pretrained(bundled, initializer_range=WEIGHT_STD)
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(directory)
        model = load_model(directory)
        yield model, load_task(names[seed % len(names)], model, seed=seed)


def changed_tasks(change: PairChange, count: int) -> Iterator[Case]:
    """Yield the bundled model on pairs that are changed so that they show nothing."""
    model = load_model("bundled")
    for seed in range(count):
        task = load_task(BUNDLED_TASKS[seed % len(BUNDLED_TASKS)], model, seed=seed)
        rng = random.Random(seed)
        pairs = list(task.pairs)
        changed = tuple(change(pair, rng, pairs) for pair in pairs)
        # The means are taken over the changed prompts, as in a user's task.
        yield model, replace(task, pairs=changed, reference=None)


def shuffle_answers(
    pair: EncodedPair, rng: random.Random, pairs: Sequence[EncodedPair]
) -> EncodedPair:
    """Exchange answer and wrong answer for every second pair, by chance."""
    return reverse_answers(pair, rng, pairs) if rng.random() < 0.5 else pair


def reverse_answers(
    pair: EncodedPair, rng: random.Random, pairs: Sequence[EncodedPair]
) -> EncodedPair:
    """Exchange answer and wrong answer."""
    return replace(pair, answer=pair.wrong, wrong=pair.answer)


def corrupt_irrelevant_token(
    pair: EncodedPair, rng: random.Random, pairs: Sequence[EncodedPair]
) -> EncodedPair:
    """Corrupt one token on which the behaviour does not depend.

    That is a word without a label, or agreement's distractor noun. The new token is what another
    prompt of the same template has at that position. If no prompt has another one, both sides of
    the pair are the same.
    """
    relevant = {
        position % len(pair.clean)
        for label, position in pair.labels.items()
        if label != "distractor"
    }
    relevant_tokens = {pair.clean[position] for position in relevant}
    excluded = relevant_tokens | set(pair.answer) | set(pair.wrong)
    same_template = [
        other.clean
        for other in pairs
        if (other.template, len(other.clean)) == (pair.template, len(pair.clean))
    ]
    choices = [
        (position, tokens[position])
        for position in range(len(pair.clean))
        if position not in relevant
        for tokens in same_template
        if tokens[position] not in {*excluded, pair.clean[position]}
    ]
    if not choices:
        return replace(pair, corrupted=pair.clean)
    position, token = rng.choice(choices)
    return replace(pair, corrupted=(*pair.clean[:position], token, *pair.clean[position + 1 :]))


def discover_verdicts(cases: Iterator[Case], runs_dir: Path) -> Iterator[str]:
    """Yield the verdict of a discovery on each case."""
    for model, task in cases:
        yield str(discover(model, task, runs_dir=runs_dir).circuit.verdict)


def judge_random_circuits(count: int, runs_dir: Path, true_verdicts: list[str]) -> Iterator[str]:
    """Yield verdicts on random sets with as many heads and MLPs as the circuit that was found.

    Args:
        count: how many sets to judge, over all tasks.
        runs_dir: the discoveries are kept here.
        true_verdicts: gets the verdicts on the circuits that were found.
    """
    model = load_model("bundled")
    for number, name in enumerate(BUNDLED_TASKS):
        task = load_task(name, model)
        circuit = frozenset(discover(model, task, runs_dir=runs_dir).circuit.members)
        evaluation = evaluate_circuit(model, task, sorted(circuit), final=True)
        true_verdicts.append(verdict_without_f(evaluation))
        for seed in range(number, count, len(BUNDLED_TASKS)):
            nodes = sorted(draw_other_set(model.info.nodes(), circuit, random.Random(seed)))
            yield verdict_without_f(evaluate_circuit(model, task, nodes, final=True, seed=seed))


def draw_other_set(nodes: Sequence[Node], circuit: NodeSet, rng: random.Random) -> NodeSet:
    """Draw another set with as many heads and MLPs as the circuit."""
    heads = [node for node in nodes if node.head is not None]
    mlps = [node for node in nodes if node.head is None]
    while True:
        drawn = frozenset(
            node for kind in (heads, mlps) for node in rng.sample(kind, len(circuit & set(kind)))
        )
        if drawn != circuit:
            return drawn


def verdict_without_f(evaluation: CircuitEvaluation) -> str:
    """Return the verdict that would be given if (f) held.

    (f) asks whether a search is stable, so it does not apply to a set that no search found.
    """
    conditions = evaluation.evaluation.conditions
    outcomes = {
        conditions.under(name, ablation)
        for name in CONDITIONS
        if name != "f"
        for ablation in EVIDENCE_ABLATIONS
    }
    if outcomes == {"holds"} and evaluation.verdict == "partial":
        return "verified"
    return evaluation.verdict


def format_kind(kind: str, verdicts: Counter[str]) -> str:
    """Return the row of one kind of null."""
    n_false = verdicts["verified"] + verdicts["partial"]
    test = binomtest(n_false, verdicts.total(), alternative="less")
    return format_row(
        kind,
        verdicts.total(),
        *(verdicts[verdict] for verdict in VERDICTS),
        f"{n_false / verdicts.total():.1%}",
        f"{test.proportion_ci(0.95, 'exact').high:.1%}",
    )


def print_table(output: Output, count: int, only: str) -> None:
    """Print the rows whose kind contains `only`."""
    folder = output.folder
    runs_dir = folder / "runs"
    cases = {
        "random weights, swap tasks": random_weights(SWAP_TASKS, count, folder),
        "random weights, two-answer tasks": random_weights(TWO_ANSWER_TASKS, count, folder),
        "shuffled answers": changed_tasks(shuffle_answers, count),
        "all answers reversed": changed_tasks(reverse_answers, count),
        "an irrelevant token": changed_tasks(corrupt_irrelevant_token, count),
    }
    true_verdicts: list[str] = []
    verdicts = {kind: discover_verdicts(nulls, runs_dir) for kind, nulls in cases.items()}
    verdicts["random circuits, tasks that it does"] = judge_random_circuits(
        count, runs_dir, true_verdicts
    )
    output.write(format_header("null", "n", *VERDICTS, "false discoveries", "at most"))
    for kind, verdicts_of_kind in verdicts.items():
        if only in kind:
            output.write(format_kind(kind, Counter(verdicts_of_kind)))
    if true_verdicts:
        verdict_list = ", ".join(true_verdicts)
        output.write(
            f"\nThe circuits that were found, judged as the random ones: {verdict_list}.\n"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--each",
        type=int,
        default=60,
        help="how many of each kind; with 59 and no false discovery, at most 5 percent are false"
        " at 95 percent confidence",
    )
    parser.add_argument("--only", default="", help="the kinds whose name contains this")
    arguments = parser.parse_args()
    with open_output() as output:
        print_table(output, arguments.each, arguments.only)


if __name__ == "__main__":
    main()
