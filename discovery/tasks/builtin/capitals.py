"""Capitals: 'The teacher said that the capital of France is the city of' -> ' Paris'.

Recall of a fact that the prompt does not contain, as in Meng et al. 2022 (arXiv 2202.05262), whose
prompts have many relations; here there is one, so that every answer is a city. The corrupted prompt
names another country, whose capital is the wrong answer. Every other word of a prompt is the same
for all countries.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from discovery.tasks.builtin import words
from discovery.tasks.builtin.builtin_task import BuiltinTask, PairSampler, WordFilter, fill
from discovery.tasks.pairs import MarkedPair

PATTERNS: dict[str, str] = {
    "said_capital": "The {person} said that the capital of {country} is the city of",
    "asked_about": "Then {name} asked about {country}. Its capital is the city of",
    "flew": "Last week {name} flew to the capital of {country}, the city of",
    "lives": "The {person} lives in the capital of {country}, which is",
    "works": "In {country} the {person} works in the capital, the city of",
    "letter": "A letter from {name} came from the capital of {country}, the city of",
    "born": "The {person} was born in {country}, in the capital city of",
    "map": "On the map of {country} the {person} found the capital, the city of",
    "returned": "Today {name} returned from the capital of {country}, the beautiful city of",
    "one_before": "The capital of {other} is {other_city}, and the capital of {country} is",
    "two_before": "Quiz: {other}, {other_city}. Then {further}, {further_city}. Then {country},",
    "visited_both": "Then {name} went from {other_city} in {other} to the capital of {country},",
}
"""The pattern of each template. Only `country` decides the answer."""


@dataclass(frozen=True, kw_only=True)
class _CapitalWords:
    """The words that may be used, by field."""

    countries: tuple[str, ...]
    names: tuple[str, ...]
    people: tuple[str, ...]

    def sample_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template."""
        country, wrong_country, other, further = rng.sample(self.countries, 4)
        values = {
            "country": country,
            "other": other,
            "other_city": words.CAPITALS[other],
            "further": further,
            "further_city": words.CAPITALS[further],
            "name": rng.choice(self.names),
            "person": rng.choice(self.people),
        }
        clean, ends = fill(PATTERNS[template], values)
        corrupted, _ = fill(PATTERNS[template], {**values, "country": wrong_country})
        return MarkedPair(
            clean=clean,
            corrupted=corrupted,
            answer=f" {words.CAPITALS[country]}",
            wrong=f" {words.CAPITALS[wrong_country]}",
            template=template,
            marks={"country": ends["country"]},
        )


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """Return the function that draws a pair from the words that may be used."""
    cities = set(keep_words("capitals", tuple(words.CAPITALS.values()), 12))
    with_city = [country for country, city in words.CAPITALS.items() if city in cities]
    return _CapitalWords(
        countries=keep_words("countries with such a capital", with_city, 12),
        names=keep_words("first names", words.NAMES, 5),
        people=keep_words("nouns for persons", words.PEOPLE, 5),
    ).sample_pair


TASK = BuiltinTask(
    name="capitals",
    summary=(
        "Capitals: name the capital of a country, which the prompt does not say. "
        "In the corrupted prompt, it is another country."
    ),
    metric="logit_difference",
    default_pairs=240,
    templates=tuple(PATTERNS),
    make_sampler=make_sampler,
)
