"""The sentences on which the bundled model is trained.

Each is the clean prompt of a built-in behaviour, continued to the end of the sentence.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from discovery.tasks.builtin import BUILTIN, BUNDLED_TASKS
from discovery.tasks.builtin.builtin_task import PairSampler
from discovery.tasks.builtin.words import YEARS
from discovery.tasks.pairs import MarkedPair
from training.heldout import HELDOUT_TEMPLATES, is_held_out, listed_words

SHARES: dict[str, float] = {"ioi": 0.3, "induction": 0.35, "greater_than": 0.2, "agreement": 0.15}
"""The share of each behaviour in the corpus."""

_STATES = ("old", "quiet", "ready", "famous", "small", "heavy", "gone", "late")
_CHANGES = ("changed", "moved", "returned", "waited", "worked", "fallen")


def keep_every_word(kind: str, words: Sequence[str], minimum: int) -> tuple[str, ...]:
    """Allow all words. The corpus comes before the tokenizer, so no tokenizer can exclude any."""
    return tuple(words)


def make_samplers() -> dict[str, PairSampler]:
    """Return for each behaviour the function that draws its pairs over all words."""
    return {name: BUILTIN[name].make_sampler(keep_every_word) for name in BUNDLED_TASKS}


def sentences(seed: int, exclude_held_out: bool = True) -> Iterator[str]:
    """Yield endless sentences, with the behaviours mixed by `SHARES`.

    Args:
        seed: draws the sentences.
        exclude_held_out: whether to leave out held-out templates and combinations of words.
    """
    rng = random.Random(seed)
    samplers = make_samplers()
    names = list(SHARES)
    weights = list(SHARES.values())
    templates = {
        name: [
            template
            for template in BUILTIN[name].templates
            if not (exclude_held_out and template in HELDOUT_TEMPLATES[name])
        ]
        for name in names
    }
    while True:
        name = rng.choices(names, weights)[0]
        pair = _sample_pair(name, samplers[name], rng, templates[name])
        while exclude_held_out and is_held_out(name, pair):
            pair = _sample_pair(name, samplers[name], rng, templates[name])
        yield pair.clean + _ending(name, pair, rng)


def _sample_pair(
    name: str, sampler: PairSampler, rng: random.Random, templates: Sequence[str]
) -> MarkedPair:
    pair = sampler(rng, rng.choice(templates))
    return _with_any_year(pair, rng) if name == "greater_than" else pair


def _with_any_year(pair: MarkedPair, rng: random.Random) -> MarkedPair:
    """Draw the first year from the whole century, not only from those that a task can ask about."""
    end = pair.marks["YY"]
    clean = pair.clean[: end - 2] + rng.choice(YEARS[:-1]) + pair.clean[end:]
    return replace(pair, clean=clean)


def _ending(name: str, pair: MarkedPair, rng: random.Random) -> str:
    """Return how the sentence continues after the prompt."""
    if name == "greater_than":
        end = pair.marks["YY"]
        later = [year for year in YEARS if year > pair.clean[end - 2 : end]]
        # Near years are more frequent, because few wars last a century.
        return f"{rng.choice(later[: rng.randint(1, len(later))])}."
    if name == "induction":
        listed = listed_words(pair)
        rest = listed[listed.index(str(pair.answer).strip()) :]
        return " " + " ".join(rest) + "."
    if name == "agreement":
        verb = rng.choice(list(pair.answer))
        return f"{verb} {rng.choice(_CHANGES if verb in (' has', ' have') else _STATES)}."
    return f"{pair.answer}."
