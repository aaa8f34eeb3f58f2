"""The bundled model's training sentences contain nothing that is held out."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from discovery.tasks.builtin import BUILTIN, BUNDLED_TASKS
from discovery.tasks.builtin.words import NAMES
from training.corpus import make_samplers, sentences
from training.heldout import HELDOUT_TEMPLATES, is_held_out


def test_the_stream_is_seeded() -> None:
    """The same seed gives the same sentences."""
    assert list(islice(sentences(4), 200)) == list(islice(sentences(4), 200))
    assert list(islice(sentences(4), 200)) != list(islice(sentences(5), 200))


def test_every_behaviour_holds_out_some_of_its_templates() -> None:
    """At least one template of each behaviour is held out, and never all of them."""
    assert set(HELDOUT_TEMPLATES) == set(BUNDLED_TASKS)
    for name in BUNDLED_TASKS:
        assert HELDOUT_TEMPLATES[name]
        assert HELDOUT_TEMPLATES[name] < set(BUILTIN[name].templates)
    assert len(BUILTIN["ioi"].templates) >= 8


def test_no_training_sentence_has_a_held_out_template() -> None:
    """A held-out template is recognised by words that no other template has.

    If nothing is excluded, these words do occur, so the check can fail.
    """
    training = list(islice(sentences(0), 4000))
    everything = list(islice(sentences(0, exclude_held_out=False), 4000))
    marks = (
        r"^After lunch",
        r"^While \w+ had lunch",
        r"began and lasted until",
        r"^Near the \w+ the \w+ \w+ that (?!the )",
        r"^Words: .*, then",
    )
    for mark in marks:
        assert any(re.search(mark, text) for text in everything), mark
        assert not any(re.search(mark, text) for text in training), mark


@pytest.mark.parametrize("name", sorted(BUNDLED_TASKS))
def test_about_a_tenth_of_the_combinations_is_held_out(name: str) -> None:
    """An induction list has several pairs of neighbours, so more of its prompts are held out."""
    rng = random.Random(0)
    sample_pair = make_samplers()[name]
    template = BUILTIN[name].templates[0]
    share = sum(is_held_out(name, sample_pair(rng, template)) for _ in range(3000)) / 3000
    low, high = (0.25, 0.55) if name == "induction" else (0.06, 0.16)
    assert low < share < high


def test_indirect_objects_are_held_out_by_the_two_names_in_either_order() -> None:
    """A training sentence never joins two held-out names as giver and receiver."""
    trained_names = set()
    held_out_names = set()
    for text in islice(sentences(1), 6000):
        words = text.rstrip(".").split()
        if words[-2] == "to" and words[-1] in NAMES:
            giver = next(word for word in reversed(words[:-1]) if word in NAMES)
            trained_names.add(frozenset((giver, words[-1])))
    rng = random.Random(2)
    sample_pair = make_samplers()["ioi"]
    for _ in range(6000):
        pair = sample_pair(rng, "when")
        if is_held_out("ioi", pair):
            held_out_names.add(frozenset((str(pair.answer).strip(), str(pair.wrong).strip())))
    assert len(trained_names) > 1000
    assert len(held_out_names) > 300
    assert not trained_names & held_out_names
