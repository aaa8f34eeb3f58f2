"""Greater-than: 'The war lasted from the year 1732 to the year 17' -> a year after 32.

Hanna et al. 2023 (arXiv 2305.00586). Two things differ from the paper, because a verdict must beat
the best constant answer, and '99' would be right for every year. The answers are the ten years
after YY, and the wrong answers are the ten years up to YY. The corrupted year lies anywhere before
all of these (in the paper it is always 01), so that it favours neither set.
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
"""The pattern of each template. XX is the century, and YY the year in it.

The first year of `built_lasted` lies in an earlier century.
"""

YEARS_PER_SET = 10
"""How many years after YY are answers, and how many years up to YY are wrong answers."""


@dataclass(frozen=True)
class _GreaterThanWords:
    """The words that may be used, by field."""

    events: tuple[str, ...]
    places: tuple[str, ...]

    def sample_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template."""
        years = words.YEARS
        year = rng.randrange(2 * YEARS_PER_SET, len(years) - YEARS_PER_SET)
        earlier_century, century = sorted(rng.sample(words.CENTURIES, 2))
        values = {
            "event": rng.choice(self.events),
            "place": rng.choice(self.places),
            "before": earlier_century,
            "any": rng.choice(years),
            "XX1": century,
            "XX2": century,
            "YY": years[year],
        }
        first_wrong = year - YEARS_PER_SET + 1
        clean, ends = fill(PATTERNS[template], values)
        corrupted_year = years[rng.randrange(first_wrong)]
        corrupted, _ = fill(PATTERNS[template], {**values, "YY": corrupted_year})
        return MarkedPair(
            clean=clean,
            corrupted=corrupted,
            answer=years[year + 1 : year + 1 + YEARS_PER_SET],
            wrong=years[first_wrong : year + 1],
            template=template,
            marks={name: ends[name] for name in ("XX1", "YY", "XX2")},
        )


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """Return the function that draws a pair from the words that may be used."""
    return _GreaterThanWords(
        events=keep_words("events", words.EVENTS, 5), places=keep_words("places", words.PLACES, 5)
    ).sample_pair


TASK = BuiltinTask(
    name="greater_than",
    summary=(
        "Greater-than: name a year after the one in which it began. "
        "In the corrupted prompt, it began earlier."
    ),
    metric="probability_difference",
    default_pairs=240,
    templates=tuple(PATTERNS),
    make_sampler=make_sampler,
)
