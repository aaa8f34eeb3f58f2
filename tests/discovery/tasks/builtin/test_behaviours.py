"""The prompts of each behaviour: each answer follows from the prompt, and from nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from discovery.errors import TaskError
from discovery.tasks.builtin import generate, ioi, words
from discovery.tasks.pairs import PromptPair, Tokenizer


def word_at(tokenizer: Tokenizer, pair: PromptPair, label: str, side: str = "clean") -> str:
    """Return the word at a label."""
    return tokenizer.decode([tokenizer.encode(getattr(pair, side))[pair.labels[label]]]).strip()


def test_word_lists() -> None:
    """There are at least a hundred names, no word occurs twice, and no noun has two roles."""
    assert len(words.NAMES) >= 100
    nouns = (
        words.PEOPLE
        + words.THINGS
        + words.PLACES
        + words.OBJECTS
        + words.EVENTS
        + words.OTHER_NOUNS
    )
    for word_list in (
        words.NAMES,
        nouns,
        words.MEETING_VERBS,
        words.TRAVEL_VERBS,
        words.GIVING_VERBS,
        words.ADJECTIVES,
    ):
        assert len(set(word_list)) == len(word_list)


def test_ioi_labels_name_the_roles_and_the_corruption_swaps_them(tokenizer: Tokenizer) -> None:
    """S2 is the subject in clean and the indirect object in corrupted. Nothing else changes."""
    for pair in generate("ioi", tokenizer, 120, 0):
        assert word_at(tokenizer, pair, "IO") == str(pair.answer).strip()
        assert (
            word_at(tokenizer, pair, "S1")
            == word_at(tokenizer, pair, "S2")
            == str(pair.wrong).strip()
        )
        assert word_at(tokenizer, pair, "S2", "corrupted") == str(pair.answer).strip()
        clean, corrupted = tokenizer.encode(str(pair.clean)), tokenizer.encode(str(pair.corrupted))
        assert [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b] == [
            pair.labels["S2"]
        ]
        assert pair.labels["S1+1"] == pair.labels["S1"] + 1


def test_ioi_mixes_both_orders_within_every_template(by_words: Tokenizer) -> None:
    """Otherwise the position of a name would give the answer away."""
    orders: dict[str | None, Counter[bool]] = {}
    for pair in generate("ioi", by_words, 960, 0):
        orders.setdefault(pair.template, Counter())[pair.labels["IO"] < pair.labels["S1"]] += 1
    assert len(orders) >= 8
    assert all(min(counts[True], counts[False]) >= 8 for counts in orders.values()), orders


def test_ioi_cannot_be_solved_by_counting_names(by_words: Tokenizer) -> None:
    """In three quarters of the prompts, the indirect object is not the only name given once."""
    names = set(words.NAMES)
    solved = 0
    pairs = generate("ioi", by_words, 240, 0)
    for pair in pairs:
        counts = Counter(word for word in re.findall(r"\w+", str(pair.clean)) if word in names)
        named_once = [name for name, count in counts.items() if count == 1]
        solved += named_once == [str(pair.answer).strip()]
    short_patterns = sum("{X}" not in pattern for pattern in ioi.PATTERNS.values())
    assert solved == 240 * short_patterns / len(ioi.PATTERNS)
    assert solved <= len(pairs) / 4


def test_induction_answer_followed_the_last_word_before(tokenizer: Tokenizer) -> None:
    """... A B ... A -> B in clean, and ... A D ... A -> D in corrupted.

    The repeated words are the same on both sides.
    """
    for pair in generate("induction", tokenizer, 120, 0):
        for prompt, answer in ((str(pair.clean), pair.answer), (str(pair.corrupted), pair.wrong)):
            prompt_words = re.findall(r"\w+", prompt)
            last = prompt_words[-1]
            assert prompt_words[prompt_words.index(last) + 1] == str(answer).strip()
            assert prompt_words.count(last) == 2
        assert (
            word_at(tokenizer, pair, "A1")
            == word_at(tokenizer, pair, "end")
            == word_at(tokenizer, pair, "C1", "corrupted")
        )
        assert word_at(tokenizer, pair, "B1") == str(pair.answer).strip()
        assert word_at(tokenizer, pair, "D1") == str(pair.wrong).strip()
        clean, corrupted = tokenizer.encode(str(pair.clean)), tokenizer.encode(str(pair.corrupted))
        changed = {i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b}
        assert changed == {pair.labels["A1"], pair.labels["C1"]}


def test_greater_than_sets_lie_on_both_sides_of_the_year(tokenizer: Tokenizer) -> None:
    """The answers are the ten years after YY, and the wrong answers the ten years up to YY.

    The corrupted year lies before all of them.
    """
    for pair in generate("greater_than", tokenizer, 120, 0):
        year = word_at(tokenizer, pair, "YY")
        earlier = word_at(tokenizer, pair, "YY", "corrupted")
        assert isinstance(pair.answer, tuple)
        assert isinstance(pair.wrong, tuple)
        assert all(0 < int(answer) - int(year) <= 10 for answer in pair.answer)
        assert all(0 <= int(year) - int(wrong) < 10 for wrong in pair.wrong)
        assert int(earlier) <= int(year) - 10
        assert int(earlier) < min(map(int, pair.wrong))
        assert word_at(tokenizer, pair, "XX1") == word_at(tokenizer, pair, "XX2")
        assert pair.labels["XX2"] == len(tokenizer.encode(str(pair.clean))) - 1


def test_agreement_changes_only_the_subjects_number(tokenizer: Tokenizer) -> None:
    """The distractor stays the same and has the other number in most pairs.

    The answer agrees with the subject.
    """
    opposed = 0
    pairs = generate("agreement", tokenizer, 240, 0)
    for pair in pairs:
        subject = word_at(tokenizer, pair, "subject")
        other = word_at(tokenizer, pair, "subject", "corrupted")
        assert {f"{subject}s", subject} & {other, f"{other}s"}
        assert subject != other
        plural = subject == f"{other}s"
        assert isinstance(pair.answer, tuple)
        assert isinstance(pair.wrong, tuple)
        assert (" are" in pair.answer) == plural
        assert (" is" in pair.wrong) == plural
        distractor = word_at(tokenizer, pair, "distractor")
        assert distractor == word_at(tokenizer, pair, "distractor", "corrupted")
        opposed += distractor.endswith("s") != plural
    assert 0.7 * len(pairs) <= opposed <= 0.9 * len(pairs)


def test_words_that_a_tokenizer_does_not_know_are_not_used(
    tokenizer_that_knows: Callable[[set[str]], Tokenizer],
) -> None:
    """<unk> is one token too, but it does not spell the word.

    Half of the names are unknown here, and none of them is drawn.
    """
    pattern_words = {
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
        *pattern_words,
    }
    for pair in generate("ioi", tokenizer_that_knows(known), 60, 0):
        assert set(re.findall(r"\w+", str(pair.clean))) & set(words.NAMES) <= set(words.NAMES[::2])
    with pytest.raises(TaskError, match=r"at least 20 first names .* has 10\."):
        generate("ioi", tokenizer_that_knows(known - set(words.NAMES[20:])), 60, 0)


def test_years_that_are_one_token_with_their_century_are_left_out(gpt2: Tokenizer) -> None:
    """GPT-2 has one token for ' 1860', so that 60 does not continue ' 18'.

    No set holds 60 then, and the other years of its set remain.
    """
    sets = [
        (pair.answer, pair.wrong)
        for pair in generate("greater_than", gpt2, 240, 0)
        if str(pair.clean).endswith(" 18")
    ]
    year_sets = [years for pair in sets for years in pair if isinstance(years, tuple)]
    assert year_sets
    assert all("60" not in years for years in year_sets)
    assert any(len(years) < 10 for years in year_sets)


def test_greater_than_names_a_decade_if_digits_are_split(by_digits: Tokenizer) -> None:
    """The answers are the next two digits of the tens, and the wrong answers the two before.

    The corrupted year has the same last digit, and its decade comes before all of these.
    """
    seen = Counter[str]()
    for pair in generate("greater_than", by_digits, 240, 0):
        clean, corrupted = str(pair.clean), str(pair.corrupted)
        tens = word_at(by_digits, pair, "Y")
        ones = word_at(by_digits, pair, "YY")
        earlier = word_at(by_digits, pair, "Y", "corrupted")
        seen[tens] += 1
        year = int(tens)
        assert f"{tens}{ones}" in clean
        assert pair.answer == (str(year + 1), str(year + 2))
        assert pair.wrong == (str(year - 2), str(year - 1))
        assert int(earlier) < year - 2
        ids, other_ids = by_digits.encode(clean), by_digits.encode(corrupted)
        assert [
            at
            for at, pair_of_ids in enumerate(zip(ids, other_ids, strict=True))
            if len(set(pair_of_ids)) == 2
        ] == [pair.labels["Y"]]
        assert by_digits.encode(clean + tens) == [*ids, by_digits.encode(tens)[0]]
    assert set(seen) == set("34567")


def test_docstring_answer_follows_the_last_described_argument(tokenizer: Tokenizer) -> None:
    """In corrupted another argument, a wrong answer, follows it. The docstring is the same."""
    for pair in generate("docstring", tokenizer, 120, 0):
        followers = []
        for prompt in (str(pair.clean), str(pair.corrupted)):
            definition, docstring = prompt.split("\n", 1)
            arguments = definition.removesuffix("):").split(", ")[1:]
            described = re.findall(r":param (\w+):", docstring)
            assert described == arguments[: len(described)]
            assert prompt.endswith("\n    :param")
            followers.append(f" {arguments[len(described)]}")
        assert docstring == str(pair.clean).split("\n", 1)[1]
        assert followers[0] == pair.answer
        assert followers[1] in pair.wrong
        assert {pair.answer, *pair.wrong} == {f" {name}" for name in arguments}
        assert word_at(tokenizer, pair, "C_def") == str(pair.answer).strip()
        assert word_at(tokenizer, pair, "D_def") == followers[1].strip()
        assert word_at(tokenizer, pair, "C_def", "corrupted") == followers[1].strip()
        assert (
            word_at(tokenizer, pair, "B_def") == word_at(tokenizer, pair, "B_doc") == described[-1]
        )
        assert pair.labels["B_def"] < pair.labels["C_def"] < pair.labels["D_def"]


def test_docstring_has_the_published_prompt(by_words: Tokenizer) -> None:
    """Four arguments of which two are described, in the form of Heimersheim and Janiak."""
    pair = next(p for p in generate("docstring", by_words, 8, 0) if p.template == "four_after_two")
    form = (
        r'def \w+\(self, (\w+), (\w+), \w+, \w+\):\n    """The \w+ \w+ \w+\n\n'
        r"    :param \1: \w+ \w+\n    :param \2: \w+ \w+\n    :param"
    )
    assert re.fullmatch(form, str(pair.clean))


def test_gender_changes_the_name_alone(tokenizer: Tokenizer) -> None:
    """The pronoun is that of the name, and both genders occur in every template."""
    genders: dict[str | None, Counter[str]] = {}
    for pair in generate("gender", tokenizer, 480, 0):
        names = [word_at(tokenizer, pair, "name", side) for side in ("clean", "corrupted")]
        assert str(pair.clean).replace(names[0], names[1]) == pair.corrupted
        women = [name in words.WOMEN for name in names]
        men = [name in words.MEN for name in names]
        assert women == [not is_man for is_man in men]
        assert women[0] != women[1]
        assert (pair.answer, pair.wrong) == ((" she", " he") if women[0] else (" he", " she"))
        genders.setdefault(pair.template, Counter())[str(pair.answer)] += 1
    assert all(min(counts[" she"], counts[" he"]) >= 8 for counts in genders.values()), genders


def test_capitals_are_those_of_the_country(tokenizer: Tokenizer) -> None:
    """The answer is in neither prompt, and only the country changes."""
    for pair in generate("capitals", tokenizer, 240, 0):
        country = word_at(tokenizer, pair, "country")
        other = word_at(tokenizer, pair, "country", "corrupted")
        assert pair.answer == f" {words.CAPITALS[country]}"
        assert pair.wrong == f" {words.CAPITALS[other]}"
        assert words.CAPITALS[country] not in str(pair.clean)
        assert words.CAPITALS[other] not in str(pair.clean)
        assert str(pair.clean).replace(country, other) == pair.corrupted


def test_word_lists_of_names_and_capitals() -> None:
    """Nobody is in both lists of names, each name is a first name, and no city is a country."""
    assert not set(words.WOMEN) & set(words.MEN)
    assert set(words.WOMEN) | set(words.MEN) <= set(words.NAMES)
    assert set(words.NEUTRAL_PEOPLE) <= set(words.PEOPLE)
    assert len(set(words.CAPITALS.values())) == len(words.CAPITALS)
    assert not set(words.CAPITALS.values()) & set(words.CAPITALS)
    assert not set(words.ARGUMENTS) & set(words.OTHER_NOUNS)
    assert len(set(words.ARGUMENTS)) == len(words.ARGUMENTS)
