"""Greater-than: 'The war lasted from the year 1732 to the year 17' -> a year after 32.

Hanna et al. 2023 (arXiv 2305.00586). Two things differ from there, both because a verdict must beat a constant answer, and '99'
is later than every year: the answers are the ten years after YY, the wrong ones the ten that end with YY;
and the corrupted year is any that lies before all of these (there: always 01), so that it favours neither set.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from discovery.tasks.builtin import words
from discovery.tasks.builtin.builtin_task import BuiltinTask, PairSampler, WordFilter, fill
from discovery.tasks.pairs import MarkedPair

_LASTED = "The {event} lasted from the year {XX1}{YY} to the year {XX2}"

PATTERNS: dict[str, str] = {
    "lasted": _LASTED,
    "began": "The {event} began in {XX1}{YY} and ended in {XX2}",
    "went_on": "From {XX1}{YY} the {event} went on until {XX2}",
    "stood": "The {place} stood from {XX1}{YY} to the year {XX2}",
    "built_lasted": "The {place} was built in {before}{any}. " + _LASTED,
    "in_ended": "In the year {XX1}{YY} the {event} began. It ended in {XX2}",
    "and_went_on": "In {XX1}{YY} the {event} began, and it went on to the year {XX2}",
    "began_until": "In {XX1}{YY} the {event} began and lasted until the year {XX2}",
}
"""Wording -> pattern. XX is the century, YY the year in it; the leading year of `built_lasted` is of an earlier century."""

YEARS_PER_SET = 10
"""How many years after YY are answers, and how many up to YY are wrong."""


@dataclass(frozen=True)
class _GreaterThanWords:
    """The words that may be used, by slot."""

    events: tuple[str, ...]
    places: tuple[str, ...]

    def sample_pair(self, rng: random.Random, wording: str) -> MarkedPair:
        """One pair in the given wording."""
        years = words.YEARS
        at = rng.randrange(2 * YEARS_PER_SET, len(years) - YEARS_PER_SET)
        before, century = sorted(rng.sample(words.CENTURIES, 2))
        values = {
            "event": rng.choice(self.events), "place": rng.choice(self.places), "before": before, "any": rng.choice(years),
            "XX1": century, "XX2": century, "YY": years[at],
        }  # fmt: skip
        clean, ends = fill(PATTERNS[wording], values)
        corrupted, _ = fill(
            PATTERNS[wording], {**values, "YY": years[rng.randrange(at - YEARS_PER_SET + 1)]}
        )
        answer, wrong = (
            years[at + 1 : at + 1 + YEARS_PER_SET],
            years[at - YEARS_PER_SET + 1 : at + 1],
        )
        return MarkedPair(
            clean,
            corrupted,
            answer,
            wrong,
            wording,
            {name: ends[name] for name in ("XX1", "YY", "XX2")},
        )


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """The drawing function over the words that may be used."""
    return _GreaterThanWords(
        events=keep_words("events", words.EVENTS, 5), places=keep_words("places", words.PLACES, 5)
    ).sample_pair


TASK = BuiltinTask(
    name="greater_than",
    summary="Greater-than: name a year after the one in which it began; corrupted, it began earlier.",
    metric="probability_difference",
    default_pairs=240,
    templates=tuple(PATTERNS),
    make_sampler=make_sampler,
)
