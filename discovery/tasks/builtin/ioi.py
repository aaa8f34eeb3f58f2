"""Indirect object identification (IOI).

'When Mary and John went to the store, John gave a drink to' -> ' Mary'.

Wang et al. 2022 (arXiv 2211.00593). The corrupted prompt names the other person as the giver
(symmetric token replacement), so that the two names swap roles and the logit difference changes its
sign. Each template mixes both orders of the names. Three quarters of the templates begin with a
sentence about other people, in which one of the two names may occur. The indirect object is then
not simply the only name that occurs once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from discovery.tasks.builtin import words
from discovery.tasks.builtin.builtin_task import (
    BuiltinTask,
    PairSampler,
    WordFilter,
    fill,
    next_word,
)
from discovery.tasks.pairs import MarkedPair

_WHEN = "When {A} and {B} {went} to the {place}, {S} {gave} a {object} to"
_AFTER = "After {A} and {B} got to the {place}, {S} {gave} a {object} to"
_WHILE = "While {A} and {B} were at the {place}, {S} {gave} the {object} to"
_MET = "Then {A} and {B} met in the {place}. {S} {gave} a {object} to"
_LUNCH = "Then {A} had lunch with {B} in the {place}, and {S} {gave} the {object} to"
_HAD = "In the {place} {A} and {B} had lunch, and {S} {gave} the {object} to"
_LATER = "Later {A} {saw} {B} at the {place}, so {S} {gave} a {object} to"
_TODAY = "Today {A} and {B} waited in the {place}, and {S} {gave} the {object} to"
_YESTERDAY = "Yesterday {X} {did} {Y} near the {other}. "

PATTERNS: dict[str, str] = {
    "when": _WHEN,
    "met": _MET,
    "had_lunch": _HAD,
    "while_lunch": "While {A} had lunch with {B} near the {place}, {S} {gave} a {object} to",
    "yesterday_when": _YESTERDAY + _WHEN,
    "inside_after": "In the {other} {X} {did} {Y}. " + _AFTER,
    "first_while": "First {X} and {Y} were at the {other}. " + _WHILE,
    "waited_met": "Near the {other} {X} waited for {Y}. " + _MET,
    "today_later": "Today {X} {did} {Y} again. " + _LATER,
    "quiet_lunch": "The {other} was quiet and {X} {did} {Y}. " + _LUNCH,
    "yesterday_later": _YESTERDAY + _LATER,
    "again_when": "Today {X} waited in the {other} for {Y}. " + _WHEN,
    "lunch_after": "Then {X} had lunch with {Y} in the {other}. " + _AFTER,
    "met_while": "Today {X} and {Y} met near the {other}. " + _WHILE,
    "went_had": "When {X} {went} to the {other}, {Y} waited. " + _HAD,
    "lunch_today": "After lunch {X} {did} {Y} near the {other}. " + _TODAY,
}
"""The pattern of each template.

A and B are the two names in their order, and S is the giver. X and Y are the people of the first
sentence.
"""

FIRST_GIVES = "the first name gives"
SECOND_GIVES = "the second name gives"

SHARED_NAME_PROBABILITY = 0.3
"""How often one of the two people of the first sentence is the giver or the receiver."""


@dataclass(frozen=True, kw_only=True)
class _IoiWords:
    """The words that may be used, by field."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]
    meetings: tuple[str, ...]
    travels: tuple[str, ...]
    givings: tuple[str, ...]

    def sample_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template."""
        io, subject, x, y = rng.sample(self.names, 4)
        if rng.random() < SHARED_NAME_PROBABILITY:
            shared = rng.choice((io, subject))
            x, y = (shared, y) if rng.random() < 0.5 else (x, shared)
        io_comes_first = rng.random() < 0.5
        place, other = rng.sample(self.places, 2)
        values = {
            "A": io if io_comes_first else subject,
            "B": subject if io_comes_first else io,
            "S": subject,
            "X": x,
            "Y": y,
            "place": place,
            "other": other,
            "object": rng.choice(self.objects),
            "gave": rng.choice(self.givings),
            "went": rng.choice(self.travels),
            "saw": rng.choice(self.meetings),
            "did": rng.choice(self.meetings),
        }
        clean, ends = fill(PATTERNS[template], values)
        corrupted, _ = fill(PATTERNS[template], {**values, "S": io})
        receiver, giver = ("A", "B") if io_comes_first else ("B", "A")
        marks = {
            "IO": ends[receiver],
            "S1": ends[giver],
            "S1+1": next_word(clean, ends[giver]),
            "S2": ends["S"],
        }
        return MarkedPair(
            clean=clean,
            corrupted=corrupted,
            answer=f" {io}",
            wrong=f" {subject}",
            template=template,
            marks=marks,
            role=FIRST_GIVES if io_comes_first else SECOND_GIVES,
        )


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """Return the function that draws a pair from the words that may be used."""
    return _IoiWords(
        names=keep_words("first names", words.NAMES, 20),
        places=keep_words("places", words.PLACES, 5),
        objects=keep_words("objects", words.OBJECTS, 5),
        meetings=keep_words("verbs of meeting", words.MEETING_VERBS, 1),
        travels=keep_words("verbs of travel", words.TRAVEL_VERBS, 1),
        givings=keep_words("verbs of giving", words.GIVING_VERBS, 1),
    ).sample_pair


TASK = BuiltinTask(
    name="ioi",
    summary=(
        "Indirect object identification: say the name that is not the giver's. "
        "In the corrupted prompt, the other person gives."
    ),
    metric="logit_difference",
    default_pairs=240,
    templates=tuple(PATTERNS),
    make_sampler=make_sampler,
    roles=(FIRST_GIVES, SECOND_GIVES),
)
