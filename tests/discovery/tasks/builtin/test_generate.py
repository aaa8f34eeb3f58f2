"""Rules that every built-in behaviour follows with every tokenizer that it supports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from discovery.errors import TaskError
from discovery.tasks.builtin import BUILTIN, find_misfits, generate, words
from discovery.tasks.pairs import PromptPair, Tokenizer

NAMES = sorted(BUILTIN)


def answers(pair: PromptPair, side: str) -> tuple[str, ...]:
    """Return the right or the wrong answers as a tuple."""
    value = getattr(pair, side)
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("name", NAMES)
def test_every_pair_is_sound(name: str, tokenizer: Tokenizer) -> None:
    """Both sides have the same length and the same last token, and they differ.

    Each answer is one token, and no answer is both right and wrong.
    """
    for pair in generate(name, tokenizer, 240, 3):
        assert isinstance(pair.clean, str)
        assert isinstance(pair.corrupted, str)
        clean, corrupted = tokenizer.encode(pair.clean), tokenizer.encode(pair.corrupted)
        assert len(clean) == len(corrupted)
        assert clean[-1] == corrupted[-1]
        assert clean != corrupted
        for answer in answers(pair, "answer") + answers(pair, "wrong"):
            assert tokenizer.encode(pair.clean + answer)[:-1] == clean
            assert tokenizer.encode(pair.corrupted + answer)[:-1] == corrupted
        assert not set(answers(pair, "answer")) & set(answers(pair, "wrong"))


@pytest.mark.parametrize("name", NAMES)
def test_the_requested_number_of_distinct_pairs_is_spread_over_all_templates(
    name: str, tokenizer: Tokenizer
) -> None:
    """A pair and its reverse count as one, and the templates take turns."""
    pairs = generate(name, tokenizer, 240, 0)
    assert len({frozenset((str(pair.clean), str(pair.corrupted))) for pair in pairs}) == 240
    sizes = Counter(pair.template for pair in pairs)
    assert set(sizes) == set(BUILTIN[name].templates)
    assert max(sizes.values()) - min(sizes.values()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_no_constant_answer_serves_many_pairs(name: str, tokenizer: Tokenizer) -> None:
    """Otherwise accuracy means nothing. In agreement and gender there are only two answers."""
    pairs = generate(name, tokenizer, 240, 1)
    counts = Counter(answer for pair in pairs for answer in answers(pair, "answer"))
    assert max(counts.values()) <= (0.6 if name in ("agreement", "gender") else 0.3) * len(pairs)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_one_template_have_one_length(
    name: str, by_words: Tokenizer, gpt2: Tokenizer
) -> None:
    """A mean by position is then a mean over words with the same role."""
    for tokenizer in (by_words, gpt2):
        lengths: dict[str | None, set[int]] = {}
        for pair in generate(name, tokenizer, 240, 2):
            lengths.setdefault(pair.template, set()).add(len(tokenizer.encode(str(pair.clean))))
        assert all(len(counts) == 1 for counts in lengths.values()), lengths


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str, by_words: Tokenizer) -> None:
    """The same seed gives the same pairs, another seed gives others, and more extend fewer."""
    assert generate(name, by_words, 30, 5) == generate(name, by_words, 30, 5)
    assert generate(name, by_words, 30, 5) != generate(name, by_words, 30, 6)
    assert generate(name, by_words, 30, 5) == generate(name, by_words, 60, 5)[:30]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_by_letters_is_refused_with_a_cure(name: str, by_letters: Tokenizer) -> None:
    """The message names the task, how many words it needs and has, and what to do instead."""
    with pytest.raises(TaskError, match=rf"task {name} needs at least \d+ .* has 0\.") as caught:
        generate(name, by_letters, 10, 0)
    assert "task file" in caught.value.cure


def test_an_unknown_name_and_no_pairs_are_refused(by_words: Tokenizer) -> None:
    """Bad arguments are errors of the caller, and the message says what is allowed."""
    with pytest.raises(TaskError, match=r"'iio'.*\n.*ioi, induction, greater_than, agreement"):
        generate("iio", by_words, 10, 0)
    with pytest.raises(TaskError, match="0 were asked for"):
        generate("ioi", by_words, 0, 0)


def test_defaults_are_large_enough_for_a_verdict() -> None:
    """At least 200 pairs, and at least four templates, so that whole templates can be held out."""
    for task in BUILTIN.values():
        assert task.default_pairs >= 200
        assert len(task.templates) >= 4
        assert task.metric == (
            "probability_difference" if task.name == "greater_than" else "logit_difference"
        )


def test_a_tokenizer_that_lacks_a_word_of_the_wording_is_refused_by_its_name(
    tokenizer_that_knows: Callable[[set[str]], Tokenizer],
) -> None:
    """All names, nouns and pronouns are known, but not the words around them."""
    known = {
        *words.WOMEN,
        *words.MEN,
        *words.PLACES,
        *words.OBJECTS,
        *words.NEUTRAL_PEOPLE,
        *words.MOODS,
        *("The So is such a she he ' t".split()),
    }
    with pytest.raises(TaskError, match=r"does not know 'good', 'friend', ',', 'isn'"):
        generate("gender", tokenizer_that_knows(known), 12, 0)
    with pytest.raises(TaskError, match=r"2 pronouns .* has 1\. It does not know 'she'\."):
        generate("gender", tokenizer_that_knows(known - {"she"}), 12, 0)


def test_misfits_are_the_tasks_that_cannot_be_drawn(
    by_words: Tokenizer, by_letters: Tokenizer
) -> None:
    assert find_misfits(by_words) == dict.fromkeys(BUILTIN)
    for tokenizer in (by_letters, None):
        misfits = find_misfits(tokenizer)
        assert list(misfits) == list(BUILTIN)
        assert all(reason and name in reason for name, reason in misfits.items())
