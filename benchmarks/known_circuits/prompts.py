"""Prompt pairs for the hand-built models.

A prompt is made of chunks of content tokens with fillers between them, and ends with a query. A
slot is written as one letter and stands for one content token in each pair. All slots of a pair,
fillers included, hold different tokens. The corrupted side fills the same positions from other
slots, so both sides have the same length and the same last token.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.known_circuits.weights import ResidualLayout

Chunk = tuple[str, ...]
QUERY_MARK = "="


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """One line of a task file, given as token ids instead of strings."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: int
    wrong: int
    template: str
    labels: Mapping[str, int]

    def record(self) -> dict[str, Any]:
        """Return the fields of the task file."""
        return {
            "clean": list(self.clean),
            "corrupted": list(self.corrupted),
            "answer": self.answer,
            "wrong": self.wrong,
            "template": self.template,
            "labels": dict(self.labels),
        }


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the prompt pairs of a model are written.

    Attributes:
        chunks: the chunks of the clean side; each pair puts them in a random order.
        corrupted: what the corrupted side holds in place of each chunk.
        query: the slots at the end of the prompt. With a cue it is the mark "=" alone.
        spacings: one template each: the number of fillers before the chunks, between two chunks,
            and before the query.
        wrongs: the slots from which the wrong answer is drawn.
        cue: the slots whose cue token position 1 holds on the clean and on the corrupted side.
    """

    chunks: tuple[Chunk, ...]
    corrupted: tuple[Chunk, ...]
    query: Chunk
    spacings: tuple[tuple[int, int, int], ...]
    wrongs: tuple[str, ...] = ("D",)
    cue: tuple[str, str] | None = None

    @property
    def slots(self) -> list[str]:
        """All slots in alphabetical order."""
        chunks = (*self.chunks, *self.corrupted, self.query, self.cue or ())
        return sorted({slot for chunk in chunks for slot in chunk} - {QUERY_MARK})


def write_pairs(
    scheme: Scheme, layout: ResidualLayout, per_template: int, seed: int
) -> tuple[TokenPair, ...]:
    """Write `per_template` different pairs of each template."""
    rng = random.Random(seed)
    pairs: dict[tuple[int, ...], TokenPair] = {}
    for number, spacing in enumerate(scheme.spacings, start=1):
        while len(pairs) < number * per_template:
            pair = _write_pair(scheme, layout, spacing, rng)
            pairs.setdefault(pair.clean, pair)
    return tuple(pairs.values())


def _write_pair(
    scheme: Scheme, layout: ResidualLayout, spacing: tuple[int, int, int], rng: random.Random
) -> TokenPair:
    lead, gap, tail = spacing
    order = rng.sample(range(len(scheme.chunks)), len(scheme.chunks))
    fillers = [f"filler {index}" for index in range(lead + gap * (len(order) - 1) + tail)]
    names = scheme.slots + fillers
    ids = rng.sample(range(1, layout.n_content + 1), len(names))
    token = dict(zip(names, ids, strict=True))
    token[QUERY_MARK] = layout.d_vocab - 1

    def write_side(chunks: Sequence[Chunk], cue: str | None) -> tuple[int, ...]:
        unused_fillers = iter(fillers)
        prompt = [0] + ([] if cue is None else [token[cue] + layout.n_content])
        prompt += [token[next(unused_fillers)] for _ in range(lead)]
        for place, chunk in enumerate(order):
            prompt += [token[next(unused_fillers)] for _ in range(gap if place else 0)]
            prompt += [token[slot] for slot in chunks[chunk]]
        return tuple(prompt + [token[slot] for slot in (*unused_fillers, *scheme.query)])

    clean_cue, corrupted_cue = scheme.cue or (None, None)
    return TokenPair(
        clean=write_side(scheme.chunks, clean_cue),
        corrupted=write_side(scheme.corrupted, corrupted_cue),
        answer=token["B"],
        wrong=token[rng.choice(scheme.wrongs)],
        template=f"lead{lead}-gap{gap}-tail{tail}",
        labels=_label_positions(scheme, order, lead, gap),
    )


def _label_positions(scheme: Scheme, order: Sequence[int], lead: int, gap: int) -> dict[str, int]:
    """Return the position of every slot of the clean chunks, the cue and the end."""
    labels = {"end": -1} | ({"cue": 1} if scheme.cue else {})
    position = 1 + (1 if scheme.cue else 0) + lead
    for chunk in order:
        slots = scheme.chunks[chunk]
        labels |= {f"{slot}{chunk + 1}": position + index for index, slot in enumerate(slots)}
        position += len(slots) + gap
    return labels
