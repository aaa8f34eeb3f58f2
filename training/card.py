"""Writes the bundled model's card from what training and evaluation recorded: `python -m training.card`."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from discovery.tasks.builtin import BUILTIN
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

_HEAD = """# Model card: the bundled model

A GPT-2 of {layers} layers x {heads} heads, width {width}, context {context}, {parameters:,} parameters (float32,
input and output embeddings tied), with a word-level tokenizer of {vocabulary} tokens. It was trained from nothing, on
sentences that exercise four behaviours, so that circuits can be studied on any laptop in seconds. It is no general
language model: any other text is outside what it has seen, and a word outside its vocabulary becomes `<unk>`.
Licence: that of the repository. No text, name list or weight of another project went into it.

## Data

Sentences made by `training/corpus.py` from the wordings and word lists of the built-in tasks
(`discovery/tasks/builtin`), one sentence a row: {shares}. Half of the rows begin at position 0, the others anywhere
in the context. Never in training: the wordings {wordings}; and, by a hash of the words, one in ten of the name pairs,
of the neighbours in a list, of the first years, and of the noun pairs (`training/heldout.py`).

## Training

`python -m training.train_bundled` with seed {seed}: {steps} steps of {rows} sentences, AdamW, learning rate
{learning_rate} after {warmup} steps of warm-up, then half a cosine to zero, weight decay {weight_decay}. {sparsity}
Final loss {loss} nats a token (most of it is the free choice of names, nouns and years). {seconds} seconds with
{threads} thread(s) on a shared machine.

## Accuracy

Share of clean prompts on which the answer beats the wrong answer (sets: their summed probability); top-1 in brackets.
500 prompts each, except the last column: the 240 pairs of the built-in task, seed 0, with the mean metric on clean
and on corrupted prompts.

| behaviour | held-out combinations | held-out wordings and combinations | built-in task | metric clean / corrupted |
|---|---|---|---|---|
"""

_CIRCUITS = """
Indirect object against every name in the prompt, not the subject alone: {names}.

## Circuits

Found by greedy ablation on 160 pairs (`training/circuits.py`) and measured here on 240 fresh ones, over the universe
of {nodes} nodes (every head and every MLP, all positions). f is 1 for the whole model and 0 for none of it. Columns
give resample / mean ablation; `in` and `out` are the larger of the two completeness gaps. The last column is the best
that any head alone reaches: no behaviour is one head. A circuit found this way is a candidate with numbers, not a
verdict; `circuit-scout discover` gives that.

| behaviour | nodes | f(circuit) | f(rest) | in | out | best single head |
|---|---|---|---|---|---|---|
"""


def format_card(folder: Path) -> str:
    """The card's text."""
    record, measured = (json.loads((folder / name).read_text()) for name in (RECORD, EVALUATION))
    config = json.loads((folder / "config.json").read_text())
    recipe = record["recipe"]
    sparsity = (
        f"A penalty of {recipe['sparsity']} times the norm of what each head and MLP writes (mean over rows and positions, "
        "summed over nodes; a group lasso) was added to the loss, which keeps idle nodes silent and circuits small."
        if recipe["sparsity"]
        else "No penalty but weight decay."
    )
    text = _HEAD.format(
        **{**recipe, "sparsity": sparsity}, loss=record["loss"], seconds=record["seconds"], threads=record["threads"],
        vocabulary=config["vocab_size"], parameters=measured["parameters"],
        shares=", ".join(f"{_TITLES[name]} {share:.0%}" for name, share in SHARES.items()),
        wordings=", ".join(f"`{wording}`" for name in BUILTIN for wording in sorted(HELDOUT_TEMPLATES[name])),
    )  # fmt: skip
    text += "\n".join(_accuracy(name, measured[name]) for name in BUILTIN)
    names = ", ".join(
        f"{measured['ioi'][key]['beats_every_name']:.1%} ({key.replace('_', ' ')})"
        for key in ("new_combinations", "new_wordings")
    )
    text += "\n" + _CIRCUITS.format(names=names, nodes=recipe["layers"] * (recipe["heads"] + 1))
    text += "\n".join(_circuit(name, measured[name]) for name in BUILTIN)
    files = "\n".join(
        f"| {path.name} | {path.stat().st_size:,} | `{_sha256(path)}` |" for path in _files(folder)
    )
    return f"{text}\n\n## Files\n\n| file | bytes | sha256 |\n|---|---|---|\n{files}\n"


def _accuracy(name: str, measured: dict[str, Any]) -> str:
    """One row of the accuracy table."""
    cells = [
        f"{measured[key]['accuracy']:.1%} ({measured[key]['top1']:.1%})"
        for key in ("new_combinations", "new_wordings", "task")
    ]
    task = measured["task"]
    return f"| {_TITLES[name]} | {' | '.join(cells)} | {task['metric_clean']:.2f} / {task['metric_corrupted']:.2f} |"


def _circuit(name: str, measured: dict[str, Any]) -> str:
    """One row of the circuit table."""
    fresh = measured["fresh_pairs"]
    both = [
        " / ".join(f"{value:.2f}" for value in fresh[key].values())
        for key in ("faithfulness", "knockout")
    ]
    gaps = f"{fresh['completeness_in']:.2f} | {fresh['completeness_out']:.2f}"
    alone, head = measured["alone"]
    nodes = f"{len(measured['circuit'])}: {' '.join(measured['circuit'])}"
    return f"| {_TITLES[name]} | {nodes} | {' | '.join(both)} | {gaps} | {head}: {alone:.2f} |"


def _files(folder: Path) -> list[Path]:
    """What the card vouches for."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Writes MODEL_CARD.md beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=BUNDLED)
    folder = parser.parse_args().model
    (folder / "MODEL_CARD.md").write_text(format_card(folder))


if __name__ == "__main__":
    main()
