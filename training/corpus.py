"""The sentences that the bundled model is trained on: clean prompts of the built-in behaviours, told to their end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from discovery.tasks.builtin import BUILTIN
from discovery.tasks.builtin.builtin_task import PairSampler
from discovery.tasks.builtin.words import YEARS
from discovery.tasks.pairs import MarkedPair
from training.heldout import HELDOUT_TEMPLATES, is_held_out, listed_words

SHARES: dict[str, float] = {"ioi": 0.3, "induction": 0.35, "greater_than": 0.2, "agreement": 0.15}
"""How much of the corpus is each behaviour's."""

_STATES = ("old", "quiet", "ready", "famous", "small", "heavy", "gone", "late")
_CHANGES = ("changed", "moved", "returned", "waited", "worked", "fallen")


def keep_every_word(kind: str, words: Sequence[str], least: int) -> tuple[str, ...]:
    """All words may be used: the corpus comes before the tokenizer."""
    return tuple(words)


def make_samplers() -> dict[str, PairSampler]:
    """Behaviour -> the function that draws its pairs over all words."""
    return {name: task.make_sampler(keep_every_word) for name, task in BUILTIN.items()}


def sentences(seed: int, exclude_held_out: bool = True) -> Iterator[str]:
    """Endless sentences, behaviours mixed by `SHARES`; with `training`, nothing that is held out."""
    rng, draw = random.Random(seed), make_samplers()
    names, weights = list(SHARES), list(SHARES.values())
    wordings = {
        name: [
            w
            for w in BUILTIN[name].templates
            if not (exclude_held_out and w in HELDOUT_TEMPLATES[name])
        ]
        for name in names
    }
    while True:
        name = rng.choices(names, weights)[0]
        pair = _sample_admitted(name, draw[name], rng, wordings[name], exclude_held_out)
        yield pair.clean + _ending(name, pair, rng)


def _sample_admitted(
    name: str, draw: PairSampler, rng: random.Random, wordings: Sequence[str], training: bool
) -> MarkedPair:
    """A pair of this behaviour; with `training`, the first that is not held out."""
    while True:
        pair = draw(rng, rng.choice(wordings))
        if name == "greater_than":
            pair = _with_any_year(pair, rng)
        if not (training and is_held_out(name, pair)):
            return pair


def _with_any_year(pair: MarkedPair, rng: random.Random) -> MarkedPair:
    """The same pair with a first year from the whole century, not only those a task can ask about."""
    end = pair.marks["YY"]
    clean = pair.clean[: end - 2] + rng.choice(YEARS[:-1]) + pair.clean[end:]
    return MarkedPair(
        clean=clean,
        corrupted=pair.corrupted,
        answer=pair.answer,
        wrong=pair.wrong,
        template=pair.template,
        marks=pair.marks,
    )


def _ending(name: str, pair: MarkedPair, rng: random.Random) -> str:
    """How the sentence goes on after the prompt."""
    if name == "greater_than":
        end = pair.marks["YY"]
        later = [year for year in YEARS if year > pair.clean[end - 2 : end]]
        return f"{rng.choice(later[: rng.randint(1, len(later))])}."  # near years more often: few wars last a century
    if name == "induction":
        listed = listed_words(pair)
        rest = listed[listed.index(str(pair.answer).strip()) :]
        return " " + " ".join(rest) + "."
    if name == "agreement":
        verb = rng.choice(list(pair.answer))
        return f"{verb} {rng.choice(_CHANGES if verb in (' has', ' have') else _STATES)}."
    return f"{pair.answer}."
