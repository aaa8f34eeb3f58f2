"""What a feature fires on: its tokens, and how consistently it fires on prompts of this kind.

Consistency compares three kinds of prompts: the task's clean prompts, their corrupted sides, and
unrelated prompts. For each kind it gives the share of prompts in which the feature is not 0 at one
of the chosen positions, and how large it then is. Unrelated prompts are random tokens of the same
lengths, unless the caller gives prompts. A feature that fires equally on all kinds says nothing
about the behaviour, however large it is.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from discovery.backends.base import Backend, Batch
from discovery.engine import Engine, row_macs
from discovery.errors import MeasurementError
from discovery.methods.features.splice import SplicedTask, forward_equivalents, max_pairs_encoded
from discovery.tasks.pairs import Prompt

N_UNRELATED_PROMPTS = 32
MAX_FIRING_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class TokenFiring:
    """A token at which a feature fires.

    Attributes:
        token: the token's id.
        text: the token's text; None if the model has no tokenizer.
        largest: the largest activation at this token.
        fired: at how many of the chosen positions with this token the feature fires.
        seen: how many of the chosen positions have this token.
    """

    token: int
    text: str | None
    largest: float
    fired: int
    seen: int


@dataclass(frozen=True)
class FiringSummary:
    """How a feature fires on prompts of one kind.

    Attributes:
        share: share of the prompts in which it is not 0 at one of the chosen positions.
        activation: its largest activation at these positions, mean over the prompts.
    """

    share: float
    activation: float


@dataclass(frozen=True)
class Consistency:
    """How a feature fires on three kinds of prompts.

    Attributes:
        clean: the task's clean prompts.
        corrupted: their corrupted sides; None if they do not differ from the clean ones.
        unrelated: unrelated prompts.
    """

    clean: FiringSummary
    corrupted: FiringSummary | None
    unrelated: FiringSummary


@dataclass(frozen=True)
class BlockActivations:
    """Activations of k features in the clean prompts of one block of pairs.

    Attributes:
        tokens: the token ids, padded to the block's width.
        mask: the chosen positions.
        activation: z of each feature, 0 outside the mask.
    """

    tokens: Int[Tensor, "pair pos"]
    mask: Bool[Tensor, "pair pos"]
    activation: Float[Tensor, "pair pos k"]


def peak_activations(features: Float[Tensor, "row pos k"]) -> Float[Tensor, "row k"]:
    """Return each feature's activation of largest size in each row, with its sign."""
    return features.gather(1, features.abs().argmax(1, keepdim=True))[:, 0]


def summarise_firing(peak: Float[Tensor, "row k"]) -> tuple[FiringSummary, ...]:
    """Summarise the peak activations of each feature over the prompts."""
    shares = (peak != 0).double().mean(0).tolist()
    means = peak.double().mean(0).tolist()
    return tuple(FiringSummary(*summary) for summary in zip(shares, means, strict=True))


def token_text(model: Backend, token: int) -> str | None:
    """Return a token's text, or None if the model has no tokenizer."""
    return model.tokenizer.decode([token]) if model.tokenizer else None


def find_firing_tokens(
    model: Backend,
    tokens: Int[Tensor, "pair pos"],
    mask: Bool[Tensor, "pair pos"],
    activation: Float[Tensor, "pair pos"],
) -> tuple[TokenFiring, ...]:
    """Return the tokens at which one feature is largest, the largest first."""
    by_token: dict[int, list[float]] = defaultdict(list)
    for token, value in zip(tokens[mask].tolist(), activation[mask].tolist(), strict=True):
        by_token[token].append(value)
    firings = [
        TokenFiring(
            token=token,
            text=token_text(model, token),
            largest=max(values, key=abs),
            fired=sum(value != 0 for value in values),
            seen=len(values),
        )
        for token, values in by_token.items()
        if any(values)
    ]
    firings.sort(key=lambda firing: (-abs(firing.largest), firing.token))
    return tuple(firings[:MAX_FIRING_TOKENS])


def firing_tokens_of_blocks(
    engine: Engine, blocks: Sequence[BlockActivations]
) -> tuple[tuple[TokenFiring, ...], ...]:
    """Return for each feature the tokens at which it is largest, over all blocks of pairs."""
    width = max(len(pair.clean) for pair in engine.task.pairs)

    def widened(part: Tensor) -> Tensor:
        """Pad the positions to the width of all blocks; padding lies outside every mask."""
        return pad(part, (*(0, 0) * (part.ndim - 2), 0, width - part.shape[1]))

    tokens = torch.cat([widened(block.tokens) for block in blocks])
    mask = torch.cat([widened(block.mask) for block in blocks])
    activation = torch.cat([widened(block.activation) for block in blocks])
    return tuple(
        find_firing_tokens(engine.backend, tokens, mask, activation[..., i])
        for i in range(activation.shape[-1])
    )


def measure_consistency(
    spliced: SplicedTask,
    features: Sequence[int],
    clean_peak: Float[Tensor, "pair k"],
    unrelated: Sequence[Prompt] | None,
    seed: int,
) -> list[Consistency]:
    """Measure the consistency of each feature.

    Args:
        clean_peak: the features' peak activations in the clean prompts.
        unrelated: as in `unrelated_peak_activations`.
    """
    corrupted_peak = corrupted_peak_activations(spliced, features)
    unrelated_peak = unrelated_peak_activations(spliced, features, unrelated, seed)
    corrupted: Sequence[FiringSummary | None] = [None] * len(features)
    if corrupted_peak is not None:
        corrupted = summarise_firing(corrupted_peak)
    kinds = (summarise_firing(clean_peak), corrupted, summarise_firing(unrelated_peak))
    return [Consistency(*summaries) for summaries in zip(*kinds, strict=True)]


def corrupted_peak_activations(
    spliced: SplicedTask, features: Sequence[int]
) -> Float[Tensor, "pair k"] | None:
    """Return each feature's peak in the corrupted prompts, or None if no pair's sides differ."""
    if all(pair.clean == pair.corrupted for pair in spliced.engine.task.pairs):
        return None
    peaks = []
    for view in spliced.blocks():
        view.block.load("corrupted", [spliced.sae.reads])
        for pairs in view.pair_batches():
            codes = view.codes(pairs, "corrupted")
            z = codes.features[..., list(features)] * view.mask[pairs].unsqueeze(-1)
            peaks.append(peak_activations(z))
    return torch.cat(peaks)


def unrelated_peak_activations(
    spliced: SplicedTask,
    features: Sequence[int],
    prompts: Sequence[Prompt] | None,
    seed: int,
) -> Float[Tensor, "prompt k"]:
    """Return each feature's peak in unrelated prompts.

    Args:
        prompts: prompts that have nothing to do with the task; all of their positions are used. The
            default is random tokens of the pairs' lengths, at the pairs' chosen positions.

    Raises:
        MeasurementError: if the model cannot run one of the prompts.
    """
    engine = spliced.engine
    if prompts is None:
        tokens = _draw_random_prompts(engine, seed)
        positions_by_prompt = [
            spliced.positions[n % len(spliced.positions)] for n in range(len(tokens))
        ]
    else:
        tokens = _encode_prompts(engine.backend, prompts)
        positions_by_prompt = [tuple(range(len(ids))) for ids in tokens]
    _, block = next(engine.blocks())
    rows_that_fit = block.rows_that_fit(0, max(map(len, tokens)))
    size = max(1, min(max_pairs_encoded(block, spliced.sae), rows_that_fit))
    peaks = []
    for first in range(0, len(tokens), size):
        z = _encode_batch(spliced, features, tokens[first : first + size])
        positions = positions_by_prompt[first : first + size]
        peaks += [
            peak_activations(row[list(at)].unsqueeze(0))
            for row, at in zip(z, positions, strict=True)
        ]
    return torch.cat(peaks)


def _encode_batch(
    spliced: SplicedTask, features: Sequence[int], prompts: Sequence[tuple[int, ...]]
) -> Float[Tensor, "row pos k"]:
    """Run prompts as one batch, and return the features' activations."""
    engine, sae = spliced.engine, spliced.sae
    model = engine.backend
    width = max(map(len, prompts))
    padded = [[*ids, *[0] * (width - len(ids))] for ids in prompts]
    stop = sae.reads.layer + 1
    batch = Batch(torch.tensor(padded, device=model.device), stop=stop)
    activation = model.run(batch, [sae.reads]).activations[sae.reads]
    macs = row_macs(model.info, width, stop=stop, columns=0) + sae.work(width)
    engine.meter.add(forward_equivalents(model.info, macs, map(len, prompts)))
    return sae.encode(activation)[..., list(features)]


def _encode_prompts(model: Backend, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    if not prompts:
        raise MeasurementError("unrelated is empty.", "Give prompts, or None for random tokens.")
    encoded: list[tuple[int, ...]] = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            ids = tuple(map(int, prompt))
        elif model.tokenizer is not None:
            ids = tuple(model.tokenizer.encode(prompt))
        else:
            raise MeasurementError(
                "An unrelated prompt is text, and this model has no tokenizer.",
                "Give lists of token ids.",
            )
        if not 0 < len(ids) <= model.n_ctx or not all(0 <= token < model.d_vocab for token in ids):
            raise MeasurementError(
                f"The unrelated prompt {ids!r} cannot be run.",
                f"Give 1 to {model.n_ctx} token ids from 0 to {model.d_vocab - 1}.",
            )
        encoded.append(ids)
    return encoded


def _draw_random_prompts(engine: Engine, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(f"unrelated-{seed}")
    pairs = engine.task.pairs
    vocabulary = engine.backend.d_vocab
    return [
        tuple(rng.randrange(vocabulary) for _ in pairs[n % len(pairs)].clean)
        for n in range(N_UNRELATED_PROMPTS)
    ]
