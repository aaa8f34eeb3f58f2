"""What a model writes while features are changed: greedy continuations with and without, and with the shuffled-decoder control.

At every step the prompt and what was written so far are encoded, the features changed at the chosen positions, and the likeliest
token taken: no sampling, so that a difference is the change's and not chance's. The control pushes just as far along other features'
directions: text that any push of this size makes says nothing of the feature.

    from discovery.methods.features import generate_with_features
    generate_with_features(model, sae, "I think that", {1234: 8.0}, operation="add").edited.text
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.engine import Meter, prompt_macs, row_macs
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError
from discovery.features import SAE, ErrorTerm, FeatureChange, Operation, open_sae
from discovery.interventions import Edit
from discovery.methods.features.arguments import require_counts
from discovery.methods.features.pushes import draw_other_directions
from discovery.methods.prompt_run import run_with_cache
from discovery.progress import ProgressCallback
from discovery.sites import Site
from discovery.tasks.pairs import Prompt


@dataclass(frozen=True)
class Continuation:
    """What was written.

    Attributes:
        log_probability: of these tokens by the run that wrote them, in nats, mean over the tokens.
    """

    tokens: tuple[int, ...]
    text: str | None
    log_probability: float


@dataclass(frozen=True)
class GenerationResult:
    """Continuations of one prompt.

    Attributes:
        clean, edited: without the change and with it. controls: with the same change along other features' directions.
        first_difference: the number of the first token that differs between clean and edited; None where none does.
        kl: KL(clean ‖ edited) of the next token after the prompt, in nats.
    """

    prompt: tuple[int, ...]
    clean: Continuation
    edited: Continuation
    controls: tuple[Continuation, ...]
    first_difference: int | None
    kl: float
    change: FeatureChange
    error: ErrorTerm
    warnings: tuple[str, ...]
    cost: MeasurementCost


def generate_with_features(
    model: Backend,
    sae: SAE | str | Path | None,
    prompt: Prompt,
    features: Mapping[int, float],
    *,
    operation: Operation = "set",
    positions: Sequence[int] | slice | None = None,
    error: ErrorTerm = "keep",
    tokens: int = 20,
    controls: int = 1,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> GenerationResult:
    """Continue a prompt with features changed.

    Args:
        sae, features, operation: as in `edit_features`.
        positions: which of all positions so far, at every step; None is all. slice(n, None) leaves the first n alone, and [-1] changes
            only the newest.
        tokens: how many are written.
        controls: shuffled-decoder continuations.

    Raises:
        FeatureError: as in `edit_features`.
        MeasurementError: a prompt that the model cannot take or that leaves no room for so many tokens; unknown choices.
    """
    began = time.monotonic()
    require_counts(tokens=(tokens, 1), controls=(controls, 0))
    if error not in get_args(ErrorTerm):
        raise MeasurementError(
            f"error {error!r} is not known.", f"Allowed: {', '.join(get_args(ErrorTerm))}."
        )
    seen = run_with_cache(model, prompt, top=1)
    if (room := model.n_ctx - len(seen.tokens)) < tokens:
        cure = f"Behind this prompt of {len(seen.tokens)} tokens there is room for {f'1 to {room}' if room else 'none'}."
        raise MeasurementError(f"tokens is {tokens}.", cure)
    places = _places(positions, len(seen.tokens))
    sae = open_sae(sae, model)
    change = FeatureChange.of(features, operation, sae.d_sae)
    directions = torch.cat(
        [
            sae.directions(change.features).unsqueeze(0),
            draw_other_directions(sae, change.features, controls, seed),
        ]
    )
    meter = Meter(progress=progress)
    writer = _ContinuationWriter(model, sae, change, error, places, directions, meter)
    meter.begin("generation", 0.0)
    meter.add(seen.cost.forward_equivalents)
    written, scores, first = writer.write(seen.tokens, tokens)
    decode = model.tokenizer.decode if model.tokenizer else None
    texts = [
        Continuation(tuple(ids), decode(ids) if decode else None, score)
        for ids, score in zip(written, scores, strict=True)
    ]
    clean, edited, *others = texts
    differs = [
        number
        for number, (a, b) in enumerate(zip(clean.tokens, edited.tokens, strict=True))
        if a != b
    ]
    kl = float((first[0].exp() * (first[0] - first[1])).sum())
    cost = MeasurementCost(meter.spent, time.monotonic() - began)
    return GenerationResult(
        seen.tokens,
        clean,
        edited,
        tuple(others),
        differs[0] if differs else None,
        kl,
        change,
        error,
        sae.warnings,
        cost,
    )


def _places(positions: Sequence[int] | slice | None, length: int) -> slice | list[int]:
    if positions is None or isinstance(positions, slice):
        return positions or slice(None)
    if odd := [
        place for place in positions if type(place) is not int or not -length <= place < length
    ]:
        raise MeasurementError(
            f"{odd[0]!r} is no position of this prompt.",
            f"Give whole numbers from {-length} to {length - 1}: labels belong to a task.",
        )
    if not positions:
        raise MeasurementError(
            "positions is empty.", "Give positions of the prompt, or None for all."
        )
    return list(positions)


@dataclass(frozen=True)
class _ContinuationWriter:
    """Writes several continuations at once: row 0 unchanged, row 1 changed, the others along other directions."""

    model: Backend
    sae: SAE
    change: FeatureChange
    error: ErrorTerm
    positions: slice | list[int]
    directions: Float[Tensor, "case changed d_out"]
    meter: Meter

    def write(
        self, prompt: tuple[int, ...], count: int
    ) -> tuple[list[list[int]], list[float], Float[Tensor, "row d_vocab"]]:
        """Each row's tokens, their mean log-probability, and the log-probabilities of the first."""
        rows = torch.tensor([prompt], device=self.model.device).repeat(len(self.directions) + 1, 1)
        total, first = torch.zeros(len(rows), dtype=torch.float64), None
        for _ in range(count):
            log_probabilities = self._next(rows).float().log_softmax(1)
            if bool(log_probabilities[0].isfinite().all()) and bool(
                log_probabilities.isnan().any()
            ):
                raise self.change.too_large_error()
            first = log_probabilities if first is None else first
            best = log_probabilities.max(1)
            total += best.values.double().cpu()
            rows = torch.cat([rows, best.indices.unsqueeze(1)], 1)
        assert first is not None
        return rows[:, len(prompt) :].tolist(), (total / count).tolist(), first

    def _next(self, rows: Int[Tensor, "row pos"]) -> Float[Tensor, "row d_vocab"]:
        info, sae, length = self.model.info, self.sae, rows.shape[1]
        stream = Site("resid_pre", sae.writes.layer)
        last = torch.full((len(rows),), length - 1, device=rows.device)
        seen = self.model.run(
            Batch(rows, stop=sae.writes.layer + 1),
            list(dict.fromkeys([stream, sae.reads, sae.writes])),
        ).activations
        edit = Edit(sae.writes, self._value(seen[sae.reads], seen[sae.writes]))
        logits = self.model.run(
            Batch(rows, last, start=stream.layer, residual=seen[stream]), edits=[edit]
        ).logits
        assert logits is not None
        before = row_macs(info, length, stop=stream.layer + 1, columns=0)
        behind = row_macs(info, length, start=stream.layer, columns=info.d_vocab)
        self.meter.add(len(rows) * (before + behind + sae.work(length)) / prompt_macs(info, length))
        return logits

    def _value(self, read: Tensor, written: Tensor) -> Float[Tensor, "row pos ..."]:
        codes = self.sae.codes(read)
        chosen = list(self.change.features)
        amount = self.change.difference(codes.features[..., chosen]) * codes.scale
        flat = written.flatten(2)
        base = flat if self.error == "keep" else codes.reconstruction.to(flat)
        value = flat.clone()
        value[1:, self.positions] = (base[1:] + torch.bmm(amount[1:], self.directions).to(flat))[
            :, self.positions
        ]
        return value.reshape(written.shape)
