"""What holds of every built-in behaviour, under every tokenizer that it serves."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from discovery.errors import TaskError
from discovery.tasks.builtin import BUILTIN, generate
from discovery.tasks.pairs import PromptPair, Tokenizer

NAMES = sorted(BUILTIN)


def answers(pair: PromptPair, side: str) -> tuple[str, ...]:
    """A side's answers as a tuple."""
    given = getattr(pair, side)
    return given if isinstance(given, tuple) else (given,)


@pytest.mark.parametrize("name", NAMES)
def test_every_pair_is_sound(name: str, tokenizer: Tokenizer) -> None:
    """Same length, same last token, different prompts, one-token answers, no answer on both sides."""
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
def test_as_many_distinct_pairs_as_asked_for_spread_over_all_wordings(
    name: str, tokenizer: Tokenizer
) -> None:
    """A pair and its reverse count as one, and the wordings take turns."""
    pairs = generate(name, tokenizer, 240, 0)
    assert len({frozenset((str(pair.clean), str(pair.corrupted))) for pair in pairs}) == 240
    shares = Counter(pair.template for pair in pairs)
    assert set(shares) == set(BUILTIN[name].wordings)
    assert max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_no_constant_answer_serves_many_pairs(name: str, tokenizer: Tokenizer) -> None:
    """Otherwise accuracy says nothing; agreement is a choice of two."""
    pairs = generate(name, tokenizer, 240, 1)
    most = Counter(answer for pair in pairs for answer in answers(pair, "answer")).most_common(1)[
        0
    ][1]
    assert most <= (0.6 if name == "agreement" else 0.3) * len(pairs)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_one_wording_have_one_length(
    name: str, by_words: Tokenizer, gpt2: Tokenizer
) -> None:
    """So that a mean by position is a mean over like words."""
    for tokenizer in (by_words, gpt2):
        lengths: dict[str | None, set[int]] = {}
        for pair in generate(name, tokenizer, 240, 2):
            lengths.setdefault(pair.template, set()).add(len(tokenizer.encode(str(pair.clean))))
        assert all(len(seen) == 1 for seen in lengths.values()), lengths


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str, by_words: Tokenizer) -> None:
    """Same seed, same pairs; another seed, others; fewer pairs are a beginning of more."""
    assert generate(name, by_words, 30, 5) == generate(name, by_words, 30, 5)
    assert generate(name, by_words, 30, 5) != generate(name, by_words, 30, 6)
    assert generate(name, by_words, 30, 5) == generate(name, by_words, 60, 5)[:30]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_by_letters_is_refused_with_a_cure(name: str, by_letters: Tokenizer) -> None:
    """The message names the task, how many words are needed and left, and the way out."""
    with pytest.raises(TaskError, match=rf"task {name} needs at least \d+ .* has 0\.") as caught:
        generate(name, by_letters, 10, 0)
    assert "task file" in caught.value.cure


def test_an_unknown_name_and_no_pairs_are_refused(by_words: Tokenizer) -> None:
    """Bad arguments are errors of the caller, with what is allowed."""
    with pytest.raises(TaskError, match=r"'iio'.*\n.*ioi, induction, greater_than, agreement"):
        generate("iio", by_words, 10, 0)
    with pytest.raises(TaskError, match="0 were asked for"):
        generate("ioi", by_words, 0, 0)


def test_defaults_are_large_enough_for_a_verdict() -> None:
    """At least 200 pairs, and at least four wordings, so that whole wordings can be held out."""
    for task in BUILTIN.values():
        assert task.default_pairs >= 200
        assert len(task.wordings) >= 4
        assert task.metric == (
            "probability_difference" if task.name == "greater_than" else "logit_difference"
        )


def test_needs_no_torch() -> None:
    """Task generation is in the light half."""
    code = "import sys, discovery.tasks.builtin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
