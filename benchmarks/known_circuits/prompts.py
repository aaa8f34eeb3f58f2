"""Prompt pairs for the hand-built models: chunks of content tokens, fillers between them, and what the corruption changes.

A slot is one letter and stands for one content token per pair; all slots of a pair, fillers included, hold different tokens.
The corrupted side fills the same positions from other slots, so both sides are equally long, and the last token is the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.known_circuits.weights import ResidualLayout

Chunk = tuple[str, ...]


@dataclass(frozen=True)
class TokenPair:
    """One line of a task file: token ids, no strings."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: int
    wrong: int
    template: str
    labels: Mapping[str, int]

    def record(self) -> dict[str, Any]:
        """The fields of the task file."""
        sides = {"clean": list(self.clean), "corrupted": list(self.corrupted)}
        return {
            **sides,
            "answer": self.answer,
            "wrong": self.wrong,
            "template": self.template,
            "labels": dict(self.labels),
        }


@dataclass(frozen=True)
class Scheme:
    """How pairs are made: `chunks` (in random order) then `query`; the corrupted side holds `corrupted` in place of `chunks`.

    `spacings` gives one template each: fillers before the chunks, between them, and before the query. With `cue`, position 1
    holds the cue token of a slot on either side (clean, corrupted), and the query is the mark "=" alone.
    """

    chunks: tuple[Chunk, ...]
    corrupted: tuple[Chunk, ...]
    query: Chunk
    spacings: tuple[tuple[int, int, int], ...]
    wrongs: tuple[str, ...] = ("D",)
    cue: tuple[str, str] | None = None


def write_pairs(
    scheme: Scheme, layout: ResidualLayout, per_template: int, seed: int
) -> tuple[TokenPair, ...]:
    """`per_template` different pairs of each template."""
    rng = random.Random(seed)
    pairs: dict[tuple[int, ...], TokenPair] = {}
    for number, spacing in enumerate(scheme.spacings, start=1):
        while len(pairs) < number * per_template:
            pair = _write(scheme, layout, spacing, rng)
            pairs.setdefault(pair.clean, pair)
    return tuple(pairs.values())


def _write(
    scheme: Scheme, layout: ResidualLayout, spacing: tuple[int, int, int], rng: random.Random
) -> TokenPair:
    lead, gap, tail = spacing
    order = rng.sample(range(len(scheme.chunks)), len(scheme.chunks))
    slots = sorted(
        {
            slot
            for chunk in (*scheme.chunks, *scheme.corrupted, scheme.query, scheme.cue or ())
            for slot in chunk
        }
        - {"="}
    )
    fillers = [f"filler {index}" for index in range(lead + gap * (len(order) - 1) + tail)]
    token = dict(
        zip(
            slots + fillers,
            rng.sample(range(1, layout.n_content + 1), len(slots) + len(fillers)),
            strict=True,
        )
    )
    token["="] = layout.d_vocab - 1

    def side(chunks: Sequence[Chunk], cue: str | None) -> tuple[int, ...]:
        rest = iter(fillers)
        ids = [0] + ([] if cue is None else [token[cue] + layout.n_content])
        ids += [token[next(rest)] for _ in range(lead)]
        for place, chosen in enumerate(order):
            ids += [token[next(rest)] for _ in range(gap if place else 0)]
            ids += [token[slot] for slot in chunks[chosen]]
        return tuple(ids + [token[slot] for slot in (*rest, *scheme.query)])

    labels = {"end": -1} | ({"cue": 1} if scheme.cue else {})
    position = 1 + (1 if scheme.cue else 0) + lead
    for chosen in order:
        labels |= {
            f"{slot}{chosen + 1}": position + index
            for index, slot in enumerate(scheme.chunks[chosen])
        }
        position += len(scheme.chunks[chosen]) + gap
    cues = scheme.cue or (None, None)
    clean, corrupted = side(scheme.chunks, cues[0]), side(scheme.corrupted, cues[1])
    wrong = token[rng.choice(scheme.wrongs)]
    return TokenPair(clean, corrupted, token["B"], wrong, f"lead{lead}-gap{gap}-tail{tail}", labels)
