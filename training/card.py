"""Writes the bundled model's card from the records of training and evaluation.

python -m training.card [--model DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from discovery.tasks.builtin import BUNDLED_TASKS
from training.corpus import SHARES
from training.heldout import HELDOUT_TEMPLATES
from training.train_bundled import BUNDLED, RECORD

EVALUATION = "evaluation.json"
_TITLES = {
    "ioi": "indirect object",
    "induction": "induction",
    "greater_than": "greater-than",
    "agreement": "agreement",
}

_INTRODUCTION = """# Model card: the bundled model

A GPT-2 of {layers} layers x {heads} heads, width {width}, context {context}, {parameters:,}
parameters (float32, input and output embeddings tied), with a word-level tokenizer of {vocabulary}
tokens. It was trained from nothing, on sentences that exercise four behaviours, so that circuits
can be studied on any laptop in seconds. It is no general language model: any other text is outside
what it has seen, and a word outside its vocabulary becomes `<unk>`. Licence: that of the
repository. No text, name list or weight of another project went into it.

## Data

Sentences made by `training/corpus.py` from the templates and word lists of the built-in tasks
(`discovery/tasks/builtin`), one sentence a row: {shares}. Half of the rows begin at position 0, the
others anywhere in the context. Never in training: the templates {templates}; and, by a hash of the
words, one in ten of the name pairs, of the neighbours in a list, of the first years, and of the
noun pairs (`training/heldout.py`).

## Training

`python -m training.train_bundled` with seed {seed}: {steps} steps of {rows} sentences, AdamW,
learning rate {learning_rate} after {warmup} steps of warm-up, then half a cosine to zero, weight
decay {weight_decay}. {sparsity} Final loss {loss} nats a token (most of it is the free choice of
names, nouns and years). {seconds} seconds with {threads} thread(s) on a shared machine.

## Accuracy

Share of clean prompts on which the answer beats the wrong answer (sets: their summed probability);
top-1 in brackets. 500 prompts each, except the last column: the 240 pairs of the built-in task,
seed 0, with the mean metric on clean and on corrupted prompts.

| behaviour | held-out combinations | held-out templates and combinations | built-in task \
| metric clean / corrupted |
|---|---|---|---|---|
"""

_CIRCUITS = """
Indirect object against every name in the prompt, not the subject alone: {names}.

## Circuits

Found by greedy ablation on 160 pairs (`training/circuits.py`) and measured here on 240 fresh ones,
over the universe of {nodes} nodes (every head and every MLP, all positions). f is 1 for the whole
model and 0 for none of it. Columns give resample / mean ablation; `in` and `out` are the larger of
the two completeness gaps. The last column is the best that any head alone reaches: no behaviour is
one head. A circuit found this way is a candidate with numbers, not a verdict; `circuit-scout
discover` gives that.

| behaviour | nodes | f(circuit) | f(rest) | in | out | best single head |
|---|---|---|---|---|---|---|
"""
_PENALTY = (
    "A penalty of {sparsity} times the norm of what each head and MLP writes (mean over rows and"
    " positions, summed over nodes; a group lasso) was added to the loss, which keeps idle nodes"
    " silent and circuits small."
)
_NO_PENALTY = "There was no penalty but weight decay."


def format_card(folder: Path) -> str:
    """Return the card's text."""
    training = json.loads((folder / RECORD).read_text())
    measured = json.loads((folder / EVALUATION).read_text())
    accuracies = "\n".join(_format_accuracy(name, measured[name]) for name in BUNDLED_TASKS)
    circuits = "\n".join(_format_circuit(name, measured[name]) for name in BUNDLED_TASKS)
    return (
        _format_introduction(folder, training, measured["parameters"])
        + f"{accuracies}\n"
        + _format_circuits_heading(training["recipe"], measured["ioi"])
        + f"{circuits}\n\n"
        + _format_files(folder)
    )


def _format_introduction(folder: Path, training: dict[str, Any], n_parameters: int) -> str:
    recipe = training["recipe"]
    config = json.loads((folder / "config.json").read_text())
    templates = [template for name in BUNDLED_TASKS for template in sorted(HELDOUT_TEMPLATES[name])]
    penalty = _PENALTY.format(sparsity=recipe["sparsity"]) if recipe["sparsity"] else _NO_PENALTY
    fields = {
        **recipe,
        "sparsity": penalty,
        "loss": training["loss"],
        "seconds": training["seconds"],
        "threads": training["threads"],
        "vocabulary": config["vocab_size"],
        "parameters": n_parameters,
        "shares": ", ".join(f"{_TITLES[name]} {share:.0%}" for name, share in SHARES.items()),
        "templates": ", ".join(f"`{template}`" for template in templates),
    }
    return _INTRODUCTION.format(**fields)


def _format_circuits_heading(recipe: dict[str, Any], ioi: dict[str, Any]) -> str:
    shares = (
        ("new combinations", ioi["new_combinations"]["beats_every_name"]),
        ("new templates", ioi["new_wordings"]["beats_every_name"]),
    )
    names = ", ".join(f"{share:.1%} ({label})" for label, share in shares)
    return _CIRCUITS.format(names=names, nodes=recipe["layers"] * (recipe["heads"] + 1))


def _format_accuracy(name: str, measured: dict[str, Any]) -> str:
    """Return one row of the accuracy table."""
    cells = [
        f"{measured[key]['accuracy']:.1%} ({measured[key]['top1']:.1%})"
        for key in ("new_combinations", "new_wordings", "task")
    ]
    task = measured["task"]
    metrics = f"{task['metric_clean']:.2f} / {task['metric_corrupted']:.2f}"
    return f"| {' | '.join((_TITLES[name], *cells, metrics))} |"


def _format_circuit(name: str, measured: dict[str, Any]) -> str:
    """Return one row of the circuit table."""
    fresh = measured["fresh_pairs"]
    best_f, best_head = measured["alone"]
    cells = (
        _TITLES[name],
        f"{len(measured['circuit'])}: {' '.join(measured['circuit'])}",
        " / ".join(f"{value:.2f}" for value in fresh["faithfulness"].values()),
        " / ".join(f"{value:.2f}" for value in fresh["knockout"].values()),
        f"{fresh['completeness_in']:.2f}",
        f"{fresh['completeness_out']:.2f}",
        f"{best_head}: {best_f:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _format_files(folder: Path) -> str:
    """Return the table of the files that the card is about."""
    table = "## Files\n\n| file | bytes | sha256 |\n|---|---|---|\n"
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            table += f"| {path.name} | {path.stat().st_size:,} | `{digest}` |\n"
    return table


def main() -> None:
    """Write MODEL_CARD.md beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    folder = parser.parse_args().model
    (folder / "MODEL_CARD.md").write_text(format_card(folder))


if __name__ == "__main__":
    main()
