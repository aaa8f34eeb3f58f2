"""Trains the bundled model from nothing: `python -m training.train_bundled`, about a quarter of an hour on a quiet core.

A GPT-2 of four layers and four heads learns next-word prediction on the sentences of `corpus`, one sentence a row. Half
of the rows start at position 0, as prompts do; the others anywhere in the context, so that no head can rely on
where in the row a word stands. Every random choice follows from --seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training import vocabulary
from training.corpus import sentences

LOG = logging.getLogger("train_bundled")
BUNDLED = Path(__file__).resolve().parent.parent / "discovery" / "backends" / "bundled"
RECORD = "training.json"


@dataclass(frozen=True)
class ModelRecipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 5000
    rows: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 200
    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    sparsity: float = 0.003


PaddedBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Tokens, positions and targets, each [row pos]; a target is -100 where there is nothing to predict."""


def batches(tokenizer: PreTrainedTokenizerFast, recipe: ModelRecipe) -> Iterator[list[PaddedBatch]]:
    """Endless batches, each in two halves, the shorter sentences and the longer, so that less is padding."""
    stream, rng = sentences(recipe.seed), random.Random(recipe.seed + 1)
    while True:
        encoded = tokenizer(list(islice(stream, recipe.rows)))["input_ids"]
        rows = sorted(([*ids, tokenizer.eos_token_id] for ids in encoded), key=len)
        half = len(rows) // 2
        yield [
            _pad_rows(part, tokenizer.eos_token_id, recipe.context, rng)
            for part in (rows[:half], rows[half:])
        ]


def _pad_rows(rows: list[list[int]], filler: int, context: int, rng: random.Random) -> PaddedBatch:
    """Sentences as tensors; half of them start at position 0, the others anywhere."""
    length = len(rows[-1])
    tokens, targets = torch.full((len(rows), length), filler), torch.full((len(rows), length), -100)
    for at, row in enumerate(rows):
        tokens[at, : len(row)] = torch.tensor(row)
        targets[at, : len(row) - 1] = torch.tensor(row[1:])
    starts = [rng.choice((0, rng.randrange(context - length + 1))) for _ in rows]
    return tokens, torch.tensor(starts)[:, None] + torch.arange(length), targets


def learning_rate_factor(step: int, recipe: ModelRecipe) -> float:
    """The learning rate's factor: linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup)))


def untrained_model(tokenizer: PreTrainedTokenizerFast, recipe: ModelRecipe) -> GPT2LMHeadModel:
    """The untrained model."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=recipe.context, n_embd=recipe.width, n_layer=recipe.layers, n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


class NodeNorms:
    """Sums the norms of what each head and MLP writes, so that training can keep idle ones silent (a group lasso)."""

    def __init__(self, model: GPT2LMHeadModel, heads: int) -> None:
        self.total = torch.zeros(())
        self.heads = heads
        for block in model.transformer.h:
            block.attn.c_proj.register_forward_pre_hook(self._attention)
            block.mlp.register_forward_hook(self._mlp)

    def pop_total(self) -> torch.Tensor:
        """The sum since the last call: per node the mean over rows and positions."""
        total, self.total = self.total, torch.zeros(())
        return total

    def _attention(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        z = inputs[0].unflatten(-1, (self.heads, -1))  # [row pos head d_head]
        weight = module.get_parameter("weight").unflatten(
            0, (self.heads, -1)
        )  # [head d_head d_model]
        gram = weight @ weight.transpose(
            1, 2
        )  # [head d_head d_head]: the norm of z W_O without forming it
        squared = torch.einsum("rphd,hde,rphe->rph", z, gram, z)
        self.total = self.total + (squared.clamp_min(0) + 1e-6).sqrt().mean((0, 1)).sum()

    def _mlp(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        self.total = self.total + (output.square().sum(-1) + 1e-6).sqrt().mean()


def train(tokenizer: PreTrainedTokenizerFast, recipe: ModelRecipe) -> tuple[GPT2LMHeadModel, float]:
    """The trained model and its mean loss (nats a token) over the last hundred steps."""
    model = untrained_model(tokenizer, recipe)
    norms = NodeNorms(model, recipe.heads) if recipe.sparsity else None
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, recipe)
    )
    losses: list[float] = []
    norm = 0.0
    begun = time.monotonic()
    for step, parts in enumerate(islice(batches(tokenizer, recipe), recipe.steps)):
        optimizer.zero_grad()
        predicted = sum(int((targets >= 0).sum()) for _, _, targets in parts)
        losses.append(0.0)
        for tokens, positions, targets in parts:
            logits = model(
                input_ids=tokens, position_ids=positions, use_cache=False
            ).logits  # [row pos d_vocab]
            loss = (
                cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
                )
                / predicted
            )
            losses[-1] += loss.item()
            if norms is not None:
                taken = norms.pop_total() / len(parts)
                norm = taken.item() * len(parts)
                loss = loss + recipe.sparsity * taken
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            LOG.info(
                "step %d  loss %.4f  norms %.2f  %.0f s",
                step + 1,
                sum(losses[-100:]) / 100,
                norm,
                time.monotonic() - begun,
            )
    model.config.activation_function = (
        "gelu_new"  # GPT-2's name for the same function, slower to train with
    )
    return model.eval(), sum(losses[-100:]) / len(losses[-100:])


def main() -> None:
    """Trains and writes the Hugging Face directory, with what was done in training.json beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="the bundled weights were made with 1; another number rounds otherwise",
    )
    for name, value in asdict(ModelRecipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    out: Path = given.pop("out")
    torch.set_num_threads(given.pop("threads"))
    recipe = ModelRecipe(**given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    begun = time.monotonic()
    tokenizer = vocabulary.build_word_tokenizer(recipe.seed, recipe.context)
    model, loss = train(tokenizer, recipe)
    out.mkdir(parents=True, exist_ok=True)
    vocabulary.save_tokenizer(tokenizer, out)
    model.save_pretrained(out)
    record = {
        "recipe": asdict(recipe),
        "loss": round(loss, 4),
        "seconds": round(time.monotonic() - begun),
        "threads": torch.get_num_threads(),
    }
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    LOG.info("%s", json.dumps(record))


if __name__ == "__main__":
    main()
