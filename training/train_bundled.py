"""Trains the bundled model from nothing, in about a quarter of an hour on a quiet core.

    python -m training.train_bundled

A GPT-2 of four layers and four heads learns next-word prediction on the sentences of `corpus`, one
sentence a row. Half of the rows start at position 0, as prompts do. The others start anywhere in
the context, so that no head can rely on the position of a word. Every random choice follows from
--seed.
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
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training import vocabulary
from training.corpus import sentences

LOG = logging.getLogger("train_bundled")
BUNDLED = Path(__file__).resolve().parent.parent / "discovery" / "backends" / "bundled"
RECORD = "training.json"
NO_TARGET = -100  # PyTorch's mark for a position at which there is nothing to predict


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Everything that decides the weights.

    Attributes:
        seed: decides every random choice.
        steps: the number of optimizer steps.
        rows: the number of sentences in a step.
        learning_rate: the largest learning rate.
        weight_decay: of the weight matrices; vectors have none.
        warmup: the number of steps over which the learning rate rises.
        layers, heads, width, context: the shape of the GPT-2.
        sparsity: the weight of the penalty on what the nodes write (`NodeNorms`).
    """

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


PaddedBatch = tuple[Tensor, Tensor, Tensor]
"""Tokens, positions and targets, each [row pos]."""


def batches(tokenizer: PreTrainedTokenizerFast, recipe: ModelRecipe) -> Iterator[list[PaddedBatch]]:
    """Yield endless batches, each in two halves.

    The shorter sentences are in the first half and the longer ones in the second, so that there is
    less padding.
    """
    stream = sentences(recipe.seed)
    rng = random.Random(recipe.seed + 1)
    while True:
        encoded = tokenizer(list(islice(stream, recipe.rows)))["input_ids"]
        rows = sorted(([*ids, tokenizer.eos_token_id] for ids in encoded), key=len)
        half = len(rows) // 2
        yield [
            _pad_rows(part, tokenizer.eos_token_id, recipe.context, rng)
            for part in (rows[:half], rows[half:])
        ]


def _pad_rows(rows: list[list[int]], filler: int, context: int, rng: random.Random) -> PaddedBatch:
    """Return sentences as tensors. Half of them start at position 0, the others anywhere."""
    length = len(rows[-1])
    tokens = torch.full((len(rows), length), filler)
    targets = torch.full((len(rows), length), NO_TARGET)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        targets[index, : len(row) - 1] = torch.tensor(row[1:])
    starts = [rng.choice((0, rng.randrange(context - length + 1))) for _ in rows]
    return tokens, torch.tensor(starts)[:, None] + torch.arange(length), targets


def learning_rate_factor(step: int, recipe: ModelRecipe) -> float:
    """Return the learning rate's factor: a linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup)))


def untrained_model(tokenizer: PreTrainedTokenizerFast, recipe: ModelRecipe) -> GPT2LMHeadModel:
    """Return the model before training, with weights that follow from the seed."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


class NodeNorms:
    """Sums the norms of what each head and MLP writes.

    Training adds the sum to the loss, so that idle nodes stay silent (a group lasso).
    """

    def __init__(self, model: GPT2LMHeadModel, heads: int) -> None:
        self.total = torch.zeros(())
        self.heads = heads
        for block in model.transformer.h:
            block.attn.c_proj.register_forward_pre_hook(self._add_attention)
            block.mlp.register_forward_hook(self._add_mlp)

    def pop_total(self) -> Tensor:
        """Return the sum since the last call: for each node the mean over rows and positions."""
        total = self.total
        self.total = torch.zeros(())
        return total

    def _add_attention(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        z = inputs[0].unflatten(-1, (self.heads, -1))  # [row pos head d_head]
        weight = module.get_parameter("weight")
        weight = weight.unflatten(0, (self.heads, -1))  # [head d_head d_model]
        # [head d_head d_head]; it gives the norm of z·W_O without computing z·W_O.
        gram = weight @ weight.transpose(1, 2)
        squared = torch.einsum("rphd,hde,rphe->rph", z, gram, z)
        self.total = self.total + (squared.clamp_min(0) + 1e-6).sqrt().mean((0, 1)).sum()

    def _add_mlp(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.total = self.total + (output.square().sum(-1) + 1e-6).sqrt().mean()


def make_optimizer(
    model: GPT2LMHeadModel, recipe: ModelRecipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW with the recipe's weight decay and learning rate."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, recipe)
    )
    return optimizer, schedule


def accumulate_gradients(
    model: GPT2LMHeadModel, parts: list[PaddedBatch], norms: NodeNorms | None, sparsity: float
) -> tuple[float, float]:
    """Run the parts of a batch forwards and backwards.

    Returns:
        the loss in nats a token, and the sum of the norms of the last part.
    """
    n_predicted = sum(int((targets >= 0).sum()) for _, _, targets in parts)
    batch_loss = 0.0
    norm = 0.0
    for tokens, positions, targets in parts:
        output = model(input_ids=tokens, position_ids=positions, use_cache=False)
        logits = output.logits.flatten(0, 1)  # [row*pos d_vocab]
        loss_sum = cross_entropy(logits, targets.flatten(), ignore_index=NO_TARGET, reduction="sum")
        loss = loss_sum / n_predicted
        batch_loss += loss.item()
        if norms is not None:
            penalty = norms.pop_total() / len(parts)
            norm = penalty.item() * len(parts)
            loss = loss + sparsity * penalty
        loss.backward()
    return batch_loss, norm


def train(tokenizer: PreTrainedTokenizerFast, recipe: ModelRecipe) -> tuple[GPT2LMHeadModel, float]:
    """Train a model.

    Returns:
        the model, and its mean loss (nats a token) over the last hundred steps.
    """
    model = untrained_model(tokenizer, recipe)
    norms = NodeNorms(model, recipe.heads) if recipe.sparsity else None
    optimizer, schedule = make_optimizer(model, recipe)
    losses: list[float] = []
    start = time.monotonic()
    for step, parts in enumerate(islice(batches(tokenizer, recipe), recipe.steps), start=1):
        optimizer.zero_grad()
        loss, norm = accumulate_gradients(model, parts, norms, recipe.sparsity)
        losses.append(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            recent = sum(losses[-100:]) / 100
            seconds = time.monotonic() - start
            LOG.info("step %d  loss %.4f  norms %.2f  %.0f s", step, recent, norm, seconds)
    # This is GPT-2's name for the same function, which is slower to train with.
    model.config.activation_function = "gelu_new"
    return model.eval(), sum(losses[-100:]) / len(losses[-100:])


def main() -> None:
    """Train, and write the Hugging Face directory with a record of the training beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="the bundled weights were made with 1; another number rounds differently",
    )
    for name, value in asdict(ModelRecipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    out: Path = arguments.pop("out")
    torch.set_num_threads(arguments.pop("threads"))
    recipe = ModelRecipe(**arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.monotonic()
    tokenizer = vocabulary.build_word_tokenizer(recipe.seed, recipe.context)
    model, loss = train(tokenizer, recipe)
    out.mkdir(parents=True, exist_ok=True)
    vocabulary.save_tokenizer(tokenizer, out)
    model.save_pretrained(out)
    record = {
        "recipe": asdict(recipe),
        "loss": round(loss, 4),
        "seconds": round(time.monotonic() - start),
        "threads": torch.get_num_threads(),
    }
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    LOG.info("%s", json.dumps(record))


if __name__ == "__main__":
    main()
