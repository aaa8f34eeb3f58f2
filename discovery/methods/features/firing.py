"""What a feature fires on: the tokens, and whether it does so on prompts of this kind and not on any.

Consistency is the share of prompts in which the feature is not 0 at one of the chosen positions: the task's clean prompts, their
corrupted sides, and unrelated prompts of the same lengths (random tokens unless others are given). A feature that fires
everywhere says nothing about the behaviour, however large it is.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.engine import Engine, full_work, row_work
from discovery.features import SAE
from discovery.methods.features.splice import codes_that_fit, spliced

UNRELATED = 32
MOST_TOKENS = 8


@dataclass(frozen=True)
class Firing:
    """A token at which a feature fires.

    Attributes:
        largest: activation. fired, seen: at how many of the chosen positions with this token.
    """

    token: int
    text: str | None
    largest: float
    fired: int
    seen: int


@dataclass(frozen=True)
class Consistency:
    """Shares of prompts in which a feature fires; corrupted is None where there is no corrupted side."""

    clean: float
    corrupted: float | None
    unrelated: float


def firing_tokens(
    model: Backend, tokens: Int[Tensor, "pair pos"], where: Bool[Tensor, "pair pos"], activation: Float[Tensor, "pair pos"]
) -> tuple[Firing, ...]:
    """The tokens with the largest activations of one feature."""
    seen: dict[int, list[float]] = defaultdict(list)
    for token, value in zip(tokens[where].tolist(), activation[where].tolist(), strict=True):
        seen[token].append(value)
    decode = model.tokenizer.decode if model.tokenizer else None
    found = [
        Firing(token, decode([token]) if decode else None, max(values, key=abs), sum(value != 0 for value in values), len(values))
        for token, values in seen.items()
        if any(values)
    ]
    return tuple(sorted(found, key=lambda firing: (-abs(firing.largest), firing.token))[:MOST_TOKENS])


def share_corrupted(engine: Engine, sae: SAE, places: tuple[tuple[int, ...], ...], features: Sequence[int]) -> list[float] | None:
    """The share of corrupted prompts in which each feature fires; None where no pair has another side."""
    if all(pair.clean == pair.corrupted for pair in engine.task.pairs):
        return None
    hits = torch.zeros(len(features), dtype=torch.float64)
    for view in spliced(engine, sae, places):
        view.block.load("corrupted", [sae.reads])
        for part in view.parts():
            active = view.codes(part, "corrupted").features[..., list(features)] != 0
            hits += (active & view.where[part].unsqueeze(-1)).any(1).sum(0).cpu()
    return (hits / len(engine)).tolist()


def share_unrelated(
    engine: Engine,
    sae: SAE,
    places: tuple[tuple[int, ...], ...],
    features: Sequence[int],
    given: Sequence[tuple[int, ...]] | None,
    seed: int,
) -> list[float]:
    """The share of unrelated prompts in which each feature fires.

    Args:
        given: token ids, all of whose positions are looked at; random tokens of the pairs' lengths, at their positions, where None.
    """
    model, info = engine.backend, engine.backend.info
    prompts = list(given) if given else _random_prompts(engine, seed)
    chosen = [places[n % len(places)] for n in range(len(prompts))] if not given else [tuple(range(len(ids))) for ids in prompts]
    _, block = next(engine.blocks())
    size = max(1, min(codes_that_fit(block, sae), block.rows_that_fit(0, max(map(len, prompts)))))
    hits = torch.zeros(len(features), dtype=torch.float64)
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        width = max(map(len, part))
        tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in part], device=model.device)
        stop = sae.reads.layer + 1
        outcome = model.run(Batch(tokens, stop=stop), [sae.reads])
        engine.meter.add(sum(row_work(info, width, stop=stop, columns=0) / full_work(info, len(ids)) for ids in part))
        active = sae.encode(outcome.activations[sae.reads])[..., list(features)] != 0
        engine.meter.add(sum(sae.work(width) / full_work(info, len(ids)) for ids in part))
        for row, at in zip(active, chosen[first : first + size], strict=True):
            hits += row[list(at)].any(0).cpu()
    return (hits / len(prompts)).tolist()


def _random_prompts(engine: Engine, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(f"unrelated-{seed}")
    pairs, vocabulary = engine.task.pairs, engine.backend.d_vocab
    return [tuple(rng.randrange(vocabulary) for _ in pairs[n % len(pairs)].clean) for n in range(UNRELATED)]
