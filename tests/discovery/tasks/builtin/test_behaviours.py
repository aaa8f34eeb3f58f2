"""What each behaviour's prompts must be for the answer to be the answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from discovery.errors import TaskError
from discovery.tasks.builtin import generate, ioi, words
from discovery.tasks.pairs import PromptPair, Tokenizer


def at(tokenizer: Tokenizer, pair: PromptPair, label: str, side: str = "clean") -> str:
    """The word at a label."""
    return tokenizer.decode([tokenizer.encode(getattr(pair, side))[pair.labels[label]]]).strip()


def test_word_lists() -> None:
    """At least a hundred names, no word twice, no noun in two roles."""
    assert len(words.NAMES) >= 100
    nouns = (
        words.PEOPLE
        + words.THINGS
        + words.PLACES
        + words.OBJECTS
        + words.EVENTS
        + words.OTHER_NOUNS
    )
    for listed in (
        words.NAMES,
        nouns,
        words.MEETING_VERBS,
        words.TRAVEL_VERBS,
        words.GIVING_VERBS,
        words.ADJECTIVES,
    ):
        assert len(set(listed)) == len(listed)


def test_ioi_labels_name_the_roles_and_the_corruption_swaps_them(tokenizer: Tokenizer) -> None:
    """S2 is the subject in clean and the indirect object in corrupted; nothing else changes."""
    for pair in generate("ioi", tokenizer, 120, 0):
        assert at(tokenizer, pair, "IO") == str(pair.answer).strip()
        assert at(tokenizer, pair, "S1") == at(tokenizer, pair, "S2") == str(pair.wrong).strip()
        assert at(tokenizer, pair, "S2", "corrupted") == str(pair.answer).strip()
        clean, corrupted = tokenizer.encode(str(pair.clean)), tokenizer.encode(str(pair.corrupted))
        assert [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b] == [
            pair.labels["S2"]
        ]
        assert pair.labels["S1+1"] == pair.labels["S1"] + 1


def test_ioi_mixes_both_orders_within_every_wording(by_words: Tokenizer) -> None:
    """Otherwise the position gives the answer away."""
    orders: dict[str | None, Counter[bool]] = {}
    for pair in generate("ioi", by_words, 960, 0):
        orders.setdefault(pair.template, Counter())[pair.labels["IO"] < pair.labels["S1"]] += 1
    assert len(orders) >= 8
    assert all(min(both[True], both[False]) >= 8 for both in orders.values()), orders


def test_ioi_cannot_be_solved_by_counting_names(by_words: Tokenizer) -> None:
    """In three quarters of the prompts the indirect object is not the only name said once."""
    known, counted = set(words.NAMES), 0
    pairs = generate("ioi", by_words, 240, 0)
    for pair in pairs:
        said = Counter(word for word in re.findall(r"\w+", str(pair.clean)) if word in known)
        counted += [name for name, times in said.items() if times == 1] == [
            str(pair.answer).strip()
        ]
    assert counted == 240 * sum("{X}" not in pattern for pattern in ioi.PATTERNS.values()) / len(
        ioi.PATTERNS
    )
    assert counted <= len(pairs) / 4


def test_induction_answer_followed_the_last_word_before(tokenizer: Tokenizer) -> None:
    """... A B ... A -> B in clean, ... A D ... A -> D in corrupted, and the words said again are the same."""
    for pair in generate("induction", tokenizer, 120, 0):
        for prompt, answer in ((str(pair.clean), pair.answer), (str(pair.corrupted), pair.wrong)):
            said = re.findall(r"\w+", prompt)
            assert said[said.index(said[-1]) + 1] == str(answer).strip()
            assert said.count(said[-1]) == 2
        assert (
            at(tokenizer, pair, "A1")
            == at(tokenizer, pair, "end")
            == at(tokenizer, pair, "C1", "corrupted")
        )
        assert at(tokenizer, pair, "B1") == str(pair.answer).strip()
        assert at(tokenizer, pair, "D1") == str(pair.wrong).strip()
        clean, corrupted = tokenizer.encode(str(pair.clean)), tokenizer.encode(str(pair.corrupted))
        changed = {i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b}
        assert changed == {pair.labels["A1"], pair.labels["C1"]}


def test_greater_than_sets_lie_on_both_sides_of_the_year(tokenizer: Tokenizer) -> None:
    """Answers are within ten years after YY, wrong ones within the ten up to YY, the corrupted year before all."""
    for pair in generate("greater_than", tokenizer, 120, 0):
        year, earlier = at(tokenizer, pair, "YY"), at(tokenizer, pair, "YY", "corrupted")
        assert isinstance(pair.answer, tuple)
        assert isinstance(pair.wrong, tuple)
        assert all(0 < int(answer) - int(year) <= 10 for answer in pair.answer)
        assert all(0 <= int(year) - int(wrong) < 10 for wrong in pair.wrong)
        assert int(earlier) <= int(year) - 10
        assert int(earlier) < min(map(int, pair.wrong))
        assert at(tokenizer, pair, "XX1") == at(tokenizer, pair, "XX2")
        assert pair.labels["XX2"] == len(tokenizer.encode(str(pair.clean))) - 1


def test_agreement_changes_only_the_subjects_number(tokenizer: Tokenizer) -> None:
    """The distractor stays, has the other number in most pairs, and the answer goes with the subject."""
    opposed = 0
    pairs = generate("agreement", tokenizer, 240, 0)
    for pair in pairs:
        subject, other = at(tokenizer, pair, "subject"), at(tokenizer, pair, "subject", "corrupted")
        assert {f"{subject}s", subject} & {other, f"{other}s"}
        assert subject != other
        plural = subject == f"{other}s"
        assert isinstance(pair.answer, tuple)
        assert isinstance(pair.wrong, tuple)
        assert (" are" in pair.answer) == plural
        assert (" is" in pair.wrong) == plural
        distractor = at(tokenizer, pair, "distractor")
        assert distractor == at(tokenizer, pair, "distractor", "corrupted")
        opposed += distractor.endswith("s") != plural
    assert 0.7 * len(pairs) <= opposed <= 0.9 * len(pairs)


def test_words_that_a_tokenizer_does_not_know_are_not_used(
    knowing: Callable[[set[str]], Tokenizer],
) -> None:
    """An <unk> is one token too, but not one that spells the word: half the names are unknown here, and none of them is drawn."""
    said = {
        word
        for pattern in ioi.PATTERNS.values()
        for word in re.findall(r"[A-Za-z]+|[^\sA-Za-z]", pattern)
    }
    known = {
        *words.NAMES[::2],
        *words.PLACES,
        *words.OBJECTS,
        *words.MEETING_VERBS,
        *words.TRAVEL_VERBS,
        *words.GIVING_VERBS,
        *said,
    }
    for pair in generate("ioi", knowing(known), 60, 0):
        assert set(re.findall(r"\w+", str(pair.clean))) & set(words.NAMES) <= set(words.NAMES[::2])
    with pytest.raises(TaskError, match=r"at least 20 first names .* has 10\."):
        generate("ioi", knowing(known - set(words.NAMES[20:])), 60, 0)


def test_years_that_are_one_token_with_their_century_are_left_out(gpt2: Tokenizer) -> None:
    """GPT-2 has ' 1860' as one token: 60 does not continue ' 18', so no set holds it, and the others of its set remain."""
    sets = [
        (pair.answer, pair.wrong)
        for pair in generate("greater_than", gpt2, 240, 0)
        if str(pair.clean).endswith(" 18")
    ]
    both = [one for pair in sets for one in pair if isinstance(one, tuple)]
    assert both
    assert all("60" not in one for one in both)
    assert any(len(one) < 10 for one in both)
