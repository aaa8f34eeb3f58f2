"""What a feature fires on: the tokens, and whether it does so on prompts of this kind and not on any.

Consistency compares prompts of a kind: the task's clean prompts, their corrupted sides, and unrelated prompts of the same lengths (random
tokens unless others are given): in which share of them the feature is not 0 at one of the chosen positions, and how large it then
is. A feature that fires everywhere alike says nothing about the behaviour, however large it is.
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
from discovery.engine import Engine, prompt_macs, row_macs
from discovery.errors import MeasurementError
from discovery.features import SAE
from discovery.methods.features.arguments import PairPositions
from discovery.methods.features.splice import max_pairs_encoded, spliced_blocks
from discovery.tasks.pairs import Prompt

N_UNRELATED_PROMPTS = 32
MAX_FIRING_TOKENS = 8


@dataclass(frozen=True)
class TokenFiring:
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
class FiringSummary:
    """A feature on prompts of one kind.

    Attributes:
        share: of the prompts, those in which it is not 0 at one of the positions looked at.
        activation: its largest activation among these positions, mean over the prompts.
    """

    share: float
    activation: float


@dataclass(frozen=True)
class Consistency:
    """A feature on the task's clean prompts, on their corrupted sides (None where there are none), and on unrelated prompts."""

    clean: FiringSummary
    corrupted: FiringSummary | None
    unrelated: FiringSummary


def peak_activations(features: Float[Tensor, "row pos k"]) -> Float[Tensor, "row k"]:
    """The activation of largest size of each prompt, with its sign."""
    return features.gather(1, features.abs().argmax(1, keepdim=True))[:, 0]


def summarise_firing(peak: Float[Tensor, "row k"]) -> tuple[FiringSummary, ...]:
    """What peaks say of each feature."""
    share, mean = (peak != 0).double().mean(0).tolist(), peak.double().mean(0).tolist()
    return tuple(FiringSummary(*both) for both in zip(share, mean, strict=True))


def find_firing_tokens(
    model: Backend,
    tokens: Int[Tensor, "pair pos"],
    where: Bool[Tensor, "pair pos"],
    activation: Float[Tensor, "pair pos"],
) -> tuple[TokenFiring, ...]:
    """The tokens with the largest activations of one feature."""
    seen: dict[int, list[float]] = defaultdict(list)
    for token, value in zip(tokens[where].tolist(), activation[where].tolist(), strict=True):
        seen[token].append(value)
    decode = model.tokenizer.decode if model.tokenizer else None
    found = [
        TokenFiring(
            token,
            decode([token]) if decode else None,
            max(values, key=abs),
            sum(value != 0 for value in values),
            len(values),
        )
        for token, values in seen.items()
        if any(values)
    ]
    return tuple(
        sorted(found, key=lambda firing: (-abs(firing.largest), firing.token))[:MAX_FIRING_TOKENS]
    )


def corrupted_peak_activations(
    engine: Engine, sae: SAE, places: PairPositions, features: Sequence[int]
) -> Float[Tensor, "pair k"] | None:
    """Each feature's peak in the corrupted prompts; None where no pair has another side."""
    if all(pair.clean == pair.corrupted for pair in engine.task.pairs):
        return None
    found = []
    for view in spliced_blocks(engine, sae, places):
        view.block.load("corrupted", [sae.reads])
        for part in view.pair_batches():
            codes = view.codes(part, "corrupted")
            found.append(
                peak_activations(
                    codes.features[..., list(features)] * view.mask[part].unsqueeze(-1)
                )
            )
    return torch.cat(found)


def unrelated_peak_activations(
    engine: Engine,
    sae: SAE,
    places: PairPositions,
    features: Sequence[int],
    given: Sequence[Prompt] | None,
    seed: int,
) -> Float[Tensor, "prompt k"]:
    """Each feature's peak in unrelated prompts.

    Args:
        given: prompts, all of whose positions are looked at; random tokens of the pairs' lengths, at their positions, where None.

    Raises:
        MeasurementError: a given prompt that this model cannot take.
    """
    model, info = engine.backend, engine.backend.info
    prompts = _random_prompts(engine, seed) if given is None else _tokens(model, given)
    chosen = [
        places[n % len(places)] if given is None else range(len(ids))
        for n, ids in enumerate(prompts)
    ]
    _, block = next(engine.blocks())
    size = max(
        1, min(max_pairs_encoded(block, sae), block.rows_that_fit(0, max(map(len, prompts))))
    )
    found = []
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        width = max(map(len, part))
        tokens = torch.tensor(
            [[*ids, *[0] * (width - len(ids))] for ids in part], device=model.device
        )
        stop = sae.reads.layer + 1
        activation = model.run(Batch(tokens, stop=stop), [sae.reads]).activations[sae.reads]
        one = row_macs(info, width, stop=stop, columns=0) + sae.work(width)
        engine.meter.add(sum(one / prompt_macs(info, len(ids)) for ids in part))
        codes = sae.encode(activation)[..., list(features)]
        found += [
            peak_activations(row[list(at)].unsqueeze(0))
            for row, at in zip(codes, chosen[first : first + size], strict=True)
        ]
    return torch.cat(found)


def _tokens(model: Backend, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    if not prompts:
        raise MeasurementError("unrelated is empty.", "Give prompts, or None for random tokens.")
    found: list[tuple[int, ...]] = []
    for prompt in prompts:
        if isinstance(prompt, str) and model.tokenizer is None:
            raise MeasurementError(
                "An unrelated prompt is text, and this model has no tokenizer.",
                "Give lists of token ids.",
            )
        ids = (
            tuple(model.tokenizer.encode(prompt))
            if model.tokenizer and isinstance(prompt, str)
            else tuple(map(int, prompt))
        )
        if not 0 < len(ids) <= model.n_ctx or not all(0 <= token < model.d_vocab for token in ids):
            raise MeasurementError(
                f"The unrelated prompt {ids!r} cannot be run.",
                f"Give 1 to {model.n_ctx} token ids from 0 to {model.d_vocab - 1}.",
            )
        found.append(ids)
    return found


def _random_prompts(engine: Engine, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(f"unrelated-{seed}")
    pairs, vocabulary = engine.task.pairs, engine.backend.d_vocab
    return [
        tuple(rng.randrange(vocabulary) for _ in pairs[n % len(pairs)].clean)
        for n in range(N_UNRELATED_PROMPTS)
    ]
