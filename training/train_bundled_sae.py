"""Trains the bundled model's dictionary: `python -m training.train_bundled_sae`, about ten minutes on a quiet core.

The text is what the bundled model was trained on (`corpus`, other sentences), each sentence a document; the trainer is `train_sae`,
which anyone has. The site is the residual stream in front of layer 2: see the card for why.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from itertools import islice
from pathlib import Path

import torch

from discovery import load_model, train_sae
from discovery.features.directory import copy_sae
from training.corpus import sentences

LOG = logging.getLogger("train_bundled_sae")
BUNDLED = Path(__file__).resolve().parent.parent / "discovery" / "features" / "bundled"
SITE, FEATURES, K, TOKENS, BATCH = "resid_pre.2", 1024, 16, 3_000_000, 1024
SENTENCES, TEXT_SEED = 200_000, 1  # another seed than the model's own sentences
RECORD = "training.json"


def write_text(path: Path, count: int) -> None:
    """A sentence a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{sentence}\n" for sentence in islice(sentences(TEXT_SEED), count))


def main() -> None:
    """Trains, and writes the dictionary with a record of the training beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument(
        "--runs-dir", type=Path, help="where the run is kept; thrown away where it is left out"
    )
    parser.add_argument("--site", default=SITE)
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--k", type=int, default=K)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="the bundled dictionary was made with 1; another number rounds otherwise",
    )
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "sentences.txt")
        write_text(text, given.sentences)
        trained = train_sae(
            load_model("bundled"),
            text,
            given.site,
            d_sae=given.features,
            k=given.k,
            tokens=given.tokens,
            batch=BATCH,
            runs_dir=given.runs_dir or Path(folder, "runs"),
            on_event=lambda event: LOG.info("%s: %s", event["stage"], event["concluded"]),
        )
        copy_sae(trained.directory, given.out)
        journal = [
            json.loads(line) for line in (trained.path / "events.jsonl").read_text().splitlines()
        ]
        seconds = json.loads((trained.path / "run.json").read_text())["cost"]["seconds"]
    curve = [
        {name: event["measured"][name] for name in ("step", "heldout")}
        for event in journal
        if event["stage"] == "train"
    ]
    record = {
        "recipe": trained.recipe.model_dump(),
        "scores": trained.scores.model_dump(),
        "seconds": round(seconds),
        "curve": curve,
    }
    (given.out / RECORD).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
