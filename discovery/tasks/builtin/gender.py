"""Gendered pronouns: 'So Mary is such a good friend, isn't' -> ' she'.

Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in GPT-2
small". The pronoun follows from the first name alone. The corrupted prompt has a first name of the
other gender. In the paper all prompts have one wording; here there are twelve, so that whole
wordings can be held out. Names that both genders commonly have are left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from discovery.tasks.builtin import words
from discovery.tasks.builtin.builtin_task import BuiltinTask, PairSampler, WordFilter, fill
from discovery.tasks.pairs import MarkedPair

PATTERNS: dict[str, str] = {
    "friend_isnt": "So {name} is such a good friend, isn't",
    "works_doesnt": "So {name} works at the {place} now, doesn't",
    "was_wasnt": "I heard that {name} was at the {place}, wasn't",
    "sold_hasnt": "So {name} has sold the old {object}, hasn't",
    "went_because": "Yesterday {name} went to the {place} because",
    "bought_because": "Last year {name} bought a {object} because",
    "arrived": "When {name} got to the {place},",
    "lost": "After {name} lost the {object},",
    "asked_where": "Today {name} came late to the {place}, so I asked why",
    "hoped": "In the {place} {name} told me that",
    "adjective_when": "I think that {name} looked {adjective} when",
    "person_if": "The {person} knows that {name} will come to the {place} if",
}
"""The pattern of each template. Only the gender of the name decides the answer."""

SHE = " she"
HE = " he"

FEMALE_NAME = "a woman's name"
MALE_NAME = "a man's name"


@dataclass(frozen=True, kw_only=True)
class _GenderWords:
    """The words that may be used, by field."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]
    people: tuple[str, ...]
    adjectives: tuple[str, ...]

    def sample_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template."""
        is_woman = rng.random() < 0.5
        woman = rng.choice(self.women)
        man = rng.choice(self.men)
        values = {
            "name": woman if is_woman else man,
            "place": rng.choice(self.places),
            "object": rng.choice(self.objects),
            "person": rng.choice(self.people),
            "adjective": rng.choice(self.adjectives),
        }
        other = man if is_woman else woman
        clean, ends = fill(PATTERNS[template], values)
        corrupted, _ = fill(PATTERNS[template], {**values, "name": other})
        return MarkedPair(
            clean=clean,
            corrupted=corrupted,
            answer=SHE if is_woman else HE,
            wrong=HE if is_woman else SHE,
            template=template,
            marks={"name": ends["name"]},
            role=MALE_NAME if is_woman else FEMALE_NAME,
        )


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """Return the function that draws a pair from the words that may be used."""
    keep_words("pronouns", (SHE.strip(), HE.strip()), 2)
    return _GenderWords(
        women=keep_words("women's names", words.WOMEN, 10),
        men=keep_words("men's names", words.MEN, 10),
        places=keep_words("places", words.PLACES, 5),
        objects=keep_words("objects", words.OBJECTS, 5),
        people=keep_words("nouns for persons", words.NEUTRAL_PEOPLE, 5),
        adjectives=keep_words("adjectives for persons", words.MOODS, 4),
    ).sample_pair


TASK = BuiltinTask(
    name="gender",
    summary=(
        "Gendered pronouns: say she or he, as the first name asks for. "
        "In the corrupted prompt, the name has the other gender."
    ),
    metric="logit_difference",
    default_pairs=240,
    templates=tuple(PATTERNS),
    make_sampler=make_sampler,
    roles=(FEMALE_NAME, MALE_NAME),
)
