"""Greater-than: 'The war lasted from the year 1732 to the year 17' -> a year after 32.

Hanna et al. 2023 (arXiv 2305.00586). Two things differ from the paper, because a verdict must beat
the best constant answer, and '99' would be right for every year. The answers are the ten years
after YY, and the wrong answers are the ten years up to YY. The corrupted year lies anywhere before
all of these (in the paper it is always 01), so that it favours neither set.

Many tokenizers give every digit a token of its own. The next token is then the digit of the tens:
'The siege lasted from the year 1754 to the year 17' -> 6 or 7. The wrong digits are 4 and 3, and
the corrupted year, which has the same last digit, lies in an earlier decade than these. The digit 5
itself is in neither set, because 1753 comes before 1754 and 1755 after it.
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

DIGITS_PER_SET = 2
"""If digits are split: how many digits above that of the tens are answers, and below it wrong."""

_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class _GreaterThanWords:
    """The words that may be used, by field."""

    events: tuple[str, ...]
    places: tuple[str, ...]

    def sample_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template, for a tokenizer that has tokens of two digits."""
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

    def sample_decade_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template, for a tokenizer that splits all digits."""
        tens = rng.randrange(DIGITS_PER_SET + 1, len(_DIGITS) - DIGITS_PER_SET)
        ones = rng.choice(_DIGITS)
        earlier_century, century = sorted(rng.sample(words.CENTURIES, 2))
        values = {
            "event": rng.choice(self.events),
            "place": rng.choice(self.places),
            "before": earlier_century,
            "any": rng.choice(words.YEARS),
            "XX1": century,
            "XX2": century,
            "YY": f"{tens}{ones}",
        }
        first_wrong = tens - DIGITS_PER_SET
        clean, ends = fill(PATTERNS[template], values)
        corrupted_year = f"{rng.randrange(first_wrong)}{ones}"
        corrupted, _ = fill(PATTERNS[template], {**values, "YY": corrupted_year})
        return MarkedPair(
            clean=clean,
            corrupted=corrupted,
            answer=_DIGITS[tens + 1 : tens + 1 + DIGITS_PER_SET],
            wrong=_DIGITS[first_wrong:tens],
            template=template,
            marks={
                "XX1": ends["XX1"],
                "Y": ends["YY"] - len(ones),
                "YY": ends["YY"],
                "XX2": ends["XX2"],
            },
        )


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """Return the function that draws a pair from the words that may be used."""
    drawn = _GreaterThanWords(
        events=keep_words("events", words.EVENTS, 5), places=keep_words("places", words.PLACES, 5)
    )
    has_two_digit_tokens = bool(keep_words("centuries", words.CENTURIES, 0))
    return drawn.sample_pair if has_two_digit_tokens else drawn.sample_decade_pair


TASK = BuiltinTask(
    name="greater_than",
    summary=(
        "Greater-than: name a year (or decade) after the one in which it began. "
        "In the corrupted prompt, it began earlier."
    ),
    metric="probability_difference",
    default_pairs=240,
    templates=tuple(PATTERNS),
    make_sampler=make_sampler,
)
