"""What a model writes while features are changed: greedy continuations with and without the change.

At every step the whole text so far is encoded, the features are changed at the chosen positions,
and the most likely token is appended. Nothing is sampled, so a difference comes from the change and
not from chance. The shuffled-decoder control pushes just as far along the directions of other
features: if such a push writes a similar text, the text says nothing about the feature.

    from discovery.methods.features import generate_with_features
    result = generate_with_features(model, sae, "I think that", {1234: 8.0}, operation="add")
    result.edited.text
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
from discovery.errors import MeasurementError, require_choice
from discovery.features import SAE, ErrorTerm, FeatureChange, Operation, open_sae
from discovery.interventions import Edit
from discovery.methods.arguments import require_counts
from discovery.methods.features.pushes import draw_other_directions
from discovery.methods.prompt_run import run_with_cache
from discovery.progress import ProgressCallback
from discovery.sites import Site
from discovery.tasks.pairs import Prompt


@dataclass(frozen=True)
class Continuation:
    """What the model wrote after the prompt.

    Attributes:
        tokens: the token ids.
        text: their text; None if the model has no tokenizer.
        log_probability: log-probability of these tokens in the run that wrote them, in nats, mean
            over the tokens.
    """

    tokens: tuple[int, ...]
    text: str | None
    log_probability: float


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """Continuations of one prompt.

    Attributes:
        prompt: the prompt's token ids.
        clean: the continuation without the change.
        edited: the continuation with the change.
        controls: continuations with the same change along the directions of other features.
        first_difference: number of the first token that differs between clean and edited; None if
            they are the same.
        kl: KL(clean ‖ edited) of the next token after the prompt, in nats.
        change: the features and their amounts.
        error: whether the error term was kept or dropped.
        warnings: the SAE's warnings.
        cost: the work done.
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
    """Continue a prompt with features changed, and without the change.

    Args:
        sae: as in `edit_features`.
        features: as in `edit_features`.
        operation: as in `edit_features`.
        positions: positions of the whole text so far, at every step. The default is all of them.
            slice(n, None) leaves the first n unchanged, and [-1] changes only the newest.
        error: as in `edit_features`.
        tokens: how many tokens to write.
        controls: number of continuations with a shuffled-decoder control.

    Raises:
        FeatureError: as in `edit_features`.
        MeasurementError: for unknown choices, and if the model cannot run the prompt or the
            context has too few positions left for the tokens.
    """
    started = time.monotonic()
    require_counts(tokens=(tokens, 1), controls=(controls, 0))
    require_choice("error", error, get_args(ErrorTerm))
    prompt_run = run_with_cache(model, prompt, top=1)
    _require_context(model, len(prompt_run.tokens), tokens)
    edited_positions = _check_positions(positions, len(prompt_run.tokens))
    sae = open_sae(sae, model)
    change = FeatureChange.of(features, operation, sae.d_sae)
    own = sae.directions(change.features).unsqueeze(0)
    directions = torch.cat([own, draw_other_directions(sae, change.features, controls, seed)])
    meter = Meter(progress=progress)
    meter.begin("generation", 0.0)
    meter.add(prompt_run.cost.forward_equivalents)
    writer = _ContinuationWriter(
        model=model,
        sae=sae,
        change=change,
        error=error,
        positions=edited_positions,
        directions=directions,
        meter=meter,
    )
    written, log_probabilities, first = writer.write(prompt_run.tokens, tokens)
    decode = model.tokenizer.decode if model.tokenizer else None
    clean, edited, *drawn = (
        Continuation(tuple(ids), decode(ids) if decode else None, log_probability)
        for ids, log_probability in zip(written, log_probabilities, strict=True)
    )
    return GenerationResult(
        prompt=prompt_run.tokens,
        clean=clean,
        edited=edited,
        controls=tuple(drawn),
        first_difference=_first_difference(clean.tokens, edited.tokens),
        kl=float((first[0].exp() * (first[0] - first[1])).sum()),
        change=change,
        error=error,
        warnings=sae.warnings,
        cost=MeasurementCost(meter.spent, time.monotonic() - started),
    )


def _require_context(model: Backend, prompt_length: int, tokens: int) -> None:
    """Check that the context has positions left for so many tokens."""
    remaining_positions = model.n_ctx - prompt_length
    if remaining_positions < tokens:
        allowed = f"1 to {remaining_positions}" if remaining_positions else "none"
        raise MeasurementError(
            f"tokens is {tokens}.",
            f"After this prompt of {prompt_length} tokens the model's context has positions for "
            f"{allowed}.",
        )


def _check_positions(positions: Sequence[int] | slice | None, length: int) -> slice | list[int]:
    if positions is None or isinstance(positions, slice):
        return positions or slice(None)
    wrong = [at for at in positions if type(at) is not int or not -length <= at < length]
    if wrong:
        raise MeasurementError(
            f"{wrong[0]!r} is not a position of this prompt.",
            f"Give whole numbers from {-length} to {length - 1}: labels belong to a task.",
        )
    if not positions:
        raise MeasurementError(
            "positions is empty.", "Give positions of the prompt, or None for all."
        )
    return list(positions)


def _first_difference(clean: Sequence[int], edited: Sequence[int]) -> int | None:
    """Return the number of the first token that differs, or None."""
    pairs = enumerate(zip(clean, edited, strict=True))
    return next((number for number, (a, b) in pairs if a != b), None)


@dataclass(frozen=True, kw_only=True)
class _ContinuationWriter:
    """Writes several continuations at once.

    Row 0 is unchanged, row 1 has the change, and each further row has it along the directions of a
    draw.
    """

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
        """Append `count` tokens to the prompt in each row.

        Returns:
            For each row, its new tokens, their mean log-probability in nats, and the
            log-probabilities of the first new token over the vocabulary.
        """
        rows = torch.tensor([prompt], device=self.model.device).repeat(len(self.directions) + 1, 1)
        total = torch.zeros(len(rows), dtype=torch.float64)
        first = None
        for _ in range(count):
            log_probabilities = self._next(rows).float().log_softmax(1)
            clean_is_finite = bool(log_probabilities[0].isfinite().all())
            if clean_is_finite and bool(log_probabilities.isnan().any()):
                raise self.change.too_large_error()
            first = log_probabilities if first is None else first
            best = log_probabilities.max(1)
            total += best.values.double().cpu()
            rows = torch.cat([rows, best.indices.unsqueeze(1)], 1)
        assert first is not None
        return rows[:, len(prompt) :].tolist(), (total / count).tolist(), first

    def _next(self, rows: Int[Tensor, "row pos"]) -> Float[Tensor, "row d_vocab"]:
        """Compute the logits after the last position, with the features changed."""
        info = self.model.info
        sae = self.sae
        length = rows.shape[1]
        stream = Site("resid_pre", sae.writes.layer)
        last = torch.full((len(rows),), length - 1, device=rows.device)
        sites = list(dict.fromkeys([stream, sae.reads, sae.writes]))
        clean = self.model.run(Batch(rows, stop=sae.writes.layer + 1), sites).activations
        edit = Edit(sae.writes, self._edited(clean[sae.reads], clean[sae.writes]))
        batch = Batch(rows, last, start=stream.layer, residual=clean[stream])
        logits = self.model.run(batch, edits=[edit]).logits
        assert logits is not None
        before = row_macs(info, length, stop=stream.layer + 1, columns=0)
        behind = row_macs(info, length, start=stream.layer, columns=info.d_vocab)
        self.meter.add(len(rows) * (before + behind + sae.work(length)) / prompt_macs(info, length))
        return logits

    def _edited(self, read: Tensor, written: Tensor) -> Float[Tensor, "row pos ..."]:
        """Return the activation at the SAE's site, with the features changed from row 1 on."""
        codes = self.sae.codes(read)
        numbers = list(self.change.features)
        amount = self.change.difference(codes.features[..., numbers]) * codes.scale
        flat = written.flatten(2)
        base = flat if self.error == "keep" else codes.reconstruction.to(flat)
        pushed = base[1:] + torch.bmm(amount[1:], self.directions).to(flat)
        edited = flat.clone()
        edited[1:, self.positions] = pushed[:, self.positions]
        return edited.reshape(written.shape)
