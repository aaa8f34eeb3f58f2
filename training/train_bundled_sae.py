"""Trains the bundled model's sparse autoencoder, in about ten minutes on a quiet core.

    python -m training.train_bundled_sae

The text is of the kind on which the bundled model was trained (`corpus`, but other sentences), each
sentence a document. The trainer is `train_sae`, which every user has. The site is the residual
stream in front of layer 2; the card says why.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from discovery import load_model, train_sae
from discovery.features.directory import copy_sae
from training.corpus import sentences

LOG = logging.getLogger("train_bundled_sae")
BUNDLED = Path(__file__).resolve().parent.parent / "discovery" / "features" / "bundled"
SITE = "resid_pre.2"
N_FEATURES = 1024
K = 16
N_TOKENS = 3_000_000
BATCH_SIZE = 1024
N_SENTENCES = 200_000
TEXT_SEED = 1  # another seed than that of the model's own sentences
RECORD = "training.json"


def write_text(path: Path, count: int) -> None:
    """Write one sentence a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{sentence}\n" for sentence in islice(sentences(TEXT_SEED), count))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument(
        "--runs-dir", type=Path, help="where to keep the run; without it the run is deleted"
    )
    parser.add_argument("--site", default=SITE)
    parser.add_argument("--features", type=int, default=N_FEATURES)
    parser.add_argument("--k", type=int, default=K)
    parser.add_argument("--tokens", type=int, default=N_TOKENS)
    parser.add_argument("--sentences", type=int, default=N_SENTENCES)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="the bundled autoencoder was made with 1; another number rounds differently",
    )
    return parser.parse_args()


def train_on_corpus(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, copy the autoencoder to its place, and return the record of the training."""
    text = folder / "sentences.txt"
    write_text(text, arguments.sentences)
    run = train_sae(
        load_model("bundled"),
        text,
        arguments.site,
        d_sae=arguments.features,
        k=arguments.k,
        tokens=arguments.tokens,
        batch=BATCH_SIZE,
        runs_dir=arguments.runs_dir or folder / "runs",
        on_event=lambda event: LOG.info("%s: %s", event["stage"], event["concluded"]),
    )
    copy_sae(run.directory, arguments.out)
    lines = (run.path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    seconds = json.loads((run.path / "run.json").read_text())["cost"]["seconds"]
    return {
        "recipe": run.recipe.model_dump(),
        "scores": run.scores.model_dump(),
        "seconds": round(seconds),
        "curve": [
            {name: event["measured"][name] for name in ("step", "heldout")}
            for event in events
            if event["stage"] == "train"
        ],
    }


def main() -> None:
    """Train, and write the autoencoder with a record of the training beside it."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        record = train_on_corpus(arguments, Path(folder))
    (arguments.out / RECORD).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
