"""Subject-verb agreement past a distractor: 'The key near the cabinets' -> ' is', ' was' or ' has'.

Linzen et al. 2016 (arXiv 1611.01368). The verb agrees with the subject and not with the nearer
noun, the distractor, which most often has the other number. The corrupted prompt changes the
subject's number and nothing else. The answer is the set of three verbs in the subject's number. The
wrong answer is the set of the same three verbs in the other number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from discovery.tasks.builtin import words
from discovery.tasks.builtin.builtin_task import BuiltinTask, PairSampler, WordFilter, fill
from discovery.tasks.pairs import MarkedPair

PATTERNS: dict[str, str] = {
    "near": "The {subject} near the {distractor}",
    "inside_behind": "In the {place} the {subject} behind the {distractor}",
    "that_they": "The {subject} that the {distractor} {saw}",
    "that_saw": "The {subject} that {saw} the {distractor}",
    "yesterday_beside": "Yesterday {name} said that the {subject} beside the {distractor}",
    "adjectives_with": "The {adjective} {subject} with the {other} {distractor}",
    "outside_that_they": "Near the {place} the {subject} that the {distractor} {saw}",
    "adjective_that_saw": "The {adjective} {subject} that {saw} the {distractor}",
    "today_near": "Today {name} said that the {adjective} {subject} near the {distractor}",
    "inside_with": "In the {place} the {adjective} {subject} with the {distractor}",
    "outside_that_saw": "Near the {place} the {adjective} {subject} that {saw} the {distractor}",
    "two_nouns": "The {subject} near the {distractor} behind the {further}",
}
"""The pattern of each template. Only the subject's number decides the answer."""

SINGULAR = (" is", " was", " has")
PLURAL = (" are", " were", " have")

SINGULAR_SUBJECT = "singular subject"
PLURAL_SUBJECT = "plural subject"

OPPOSITE_NUMBER_PROBABILITY = 0.8
"""How often the distractor has the other number than the subject."""


@dataclass(frozen=True, kw_only=True)
class _AgreementWords:
    """The words that may be used, by field. Each noun may be used in the plural too."""

    nouns: tuple[str, ...]
    places: tuple[str, ...]
    names: tuple[str, ...]
    adjectives: tuple[str, ...]
    meetings: tuple[str, ...]

    def sample_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template."""
        subject, distractor, further = rng.sample(self.nouns, 3)
        plural = rng.random() < 0.5
        adjective, other = rng.sample(self.adjectives, 2)
        distractor_is_plural = plural != (rng.random() < OPPOSITE_NUMBER_PROBABILITY)
        values = {
            "distractor": _in_number(distractor, distractor_is_plural),
            "further": _in_number(further, rng.random() < 0.5),
            "subject": _in_number(subject, plural),
            "place": rng.choice(self.places),
            "name": rng.choice(self.names),
            "adjective": adjective,
            "other": other,
            "saw": rng.choice(self.meetings),
        }
        pattern = PATTERNS[template]
        clean, ends = fill(pattern, values)
        corrupted, _ = fill(pattern, {**values, "subject": _in_number(subject, not plural)})
        return MarkedPair(
            clean=clean,
            corrupted=corrupted,
            answer=PLURAL if plural else SINGULAR,
            wrong=SINGULAR if plural else PLURAL,
            template=template,
            marks={"subject": ends["subject"], "distractor": ends["distractor"]},
            role=SINGULAR_SUBJECT if plural else PLURAL_SUBJECT,
        )


def _in_number(noun: str, plural: bool) -> str:
    """Return the noun in the plural or in the singular."""
    return f"{noun}s" if plural else noun


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """Return the function that draws a pair from the words that may be used."""
    nouns = words.PEOPLE + words.THINGS
    plurals = set(keep_words("plural nouns", [f"{noun}s" for noun in nouns], 10))
    return _AgreementWords(
        nouns=keep_words(
            "nouns with a plural", [noun for noun in nouns if f"{noun}s" in plurals], 10
        ),
        places=keep_words("places", words.PLACES, 5),
        names=keep_words("first names", words.NAMES, 5),
        adjectives=keep_words("adjectives", words.ADJECTIVES, 2),
        meetings=keep_words("verbs of meeting", words.MEETING_VERBS, 1),
    ).sample_pair


TASK = BuiltinTask(
    name="agreement",
    summary=(
        "Subject-verb agreement past a distractor noun. "
        "In the corrupted prompt, the subject has the other number."
    ),
    metric="logit_difference",
    default_pairs=240,
    templates=tuple(PATTERNS),
    make_sampler=make_sampler,
    roles=(SINGULAR_SUBJECT, PLURAL_SUBJECT),
)
