"""The reference prompts of built-in tasks: fresh, balanced, and drawn by seed alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

from discovery.tasks import load_task
from discovery.tasks.builtin import BUILTIN
from discovery.tasks.builtin.reference import DrawnReference
from discovery.tasks.pairs import Tokenizer
from discovery.tasks.reference import (
    MAX_REFERENCE_PROMPTS,
    REFERENCE_PROMPTS,
    ReferencePrompt,
    divide_into_halves,
)
from discovery.tasks.task import Task

N = REFERENCE_PROMPTS


@dataclass(frozen=True)
class WordModel:
    """A model of any size with the given tokenizer."""

    tokenizer: Tokenizer
    d_vocab: int = 10_000
    n_logits: int = 10_000
    n_ctx: int = 100


def load(name: str, tokenizer: Tokenizer, pairs: int = 60, seed: int = 0) -> Task:
    return load_task(name, WordModel(tokenizer), pairs=pairs, seed=seed)


def by_group(prompts: tuple[ReferencePrompt, ...]) -> dict[object, list[ReferencePrompt]]:
    groups: dict[object, list[ReferencePrompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.template, len(prompt.tokens)].append(prompt)
    return groups


def test_there_are_fifty_of_each_group_at_first() -> None:
    assert N >= 50
    assert N % 4 == 0, "so that each half has as many of each of two roles"


@pytest.mark.parametrize("name", BUILTIN)
def test_each_group_has_as_many_prompts_of_each_role(name: str, by_words: Tokenizer) -> None:
    task = load(name, by_words)
    prompts = task.reference_source.draw(N)
    groups = by_group(prompts)
    assert set(groups) == {(pair.template, len(pair.clean)) for pair in task.pairs}
    roles = BUILTIN[name].roles
    for group in groups.values():
        assert Counter(p.role for p in group) == dict.fromkeys(roles, N // len(roles))
        halves = divide_into_halves(group)
        for half in (0, 1):
            own = Counter(p.role for p, at in zip(group, halves, strict=True) if at == half)
            assert own == dict.fromkeys(roles, N // 2 // len(roles))


@pytest.mark.parametrize("name", BUILTIN)
def test_no_prompt_is_in_a_pair_or_drawn_twice(name: str, by_words: Tokenizer) -> None:
    task = load(name, by_words)
    tokens = [prompt.tokens for prompt in task.reference_source.draw(N)]
    assert len(set(tokens)) == len(tokens)
    assert not set(tokens) & {side for p in task.pairs for side in (p.clean, p.corrupted)}


def test_the_roles_of_ioi_are_the_order_of_the_two_names(by_words: Tokenizer) -> None:
    """In half of the prompts the first of the two names gives, whatever the names are."""
    for prompt in load("ioi", by_words).reference_source.draw(N):
        names = {
            label: by_words.decode([prompt.tokens[prompt.labels[label]]]).strip()
            for label in ("IO", "S1", "S2")
        }
        assert names["S2"] == names["IO"] != names["S1"]
        is_first = prompt.labels["IO"] < prompt.labels["S1"]
        assert prompt.role == ("the first name gives" if is_first else "the second name gives")


def test_the_roles_of_agreement_are_the_subjects_number(by_words: Tokenizer) -> None:
    for prompt in load("agreement", by_words).reference_source.draw(N):
        subject = by_words.decode([prompt.tokens[prompt.labels["subject"]]]).strip()
        assert prompt.role == ("plural subject" if subject.endswith("s") else "singular subject")


def test_the_roles_of_induction_are_the_order_of_the_exchanged_words(by_words: Tokenizer) -> None:
    """Labels are positions in the clean prompt; A stands at the label C1 in the corrupted one."""
    for prompt in load("induction", by_words).reference_source.draw(N):
        last = prompt.tokens[-1]
        assert prompt.tokens[prompt.labels["C1"]] == last
        a_is_first = prompt.labels["C1"] < prompt.labels["A1"]
        assert prompt.role == ("A before C" if a_is_first else "C before A")


def test_they_depend_on_the_seed_and_not_on_the_pairs(by_words: Tokenizer) -> None:
    task = load("ioi", by_words)
    drawn = task.reference_source.draw(N)
    assert load("ioi", by_words).reference_source.draw(N) == drawn
    assert load("ioi", by_words, seed=1).reference_source.draw(N) != drawn
    # Other pairs of the same seed: only prompts that one of the pairs holds may differ.
    others = {p.key for p in load("ioi", by_words, pairs=16 * 7).reference_source.draw(N)}
    assert len(others & {prompt.key for prompt in drawn}) > 0.95 * len(drawn)
    assert task.discovery.reference_source is task.heldout.reference_source


def test_the_first_prompts_stay_if_more_are_drawn(by_words: Tokenizer) -> None:
    source = load("agreement", by_words).reference_source
    few, many = by_group(source.draw(N)), by_group(source.draw(2 * N))
    for key, group in few.items():
        assert many[key][: len(group)] == group
        assert len(many[key]) == 2 * N
    assert MAX_REFERENCE_PROMPTS >= 400


def test_saved_prompts_are_used_again(by_words: Tokenizer) -> None:
    """Also if the words of the task have changed since they were drawn."""
    task = load("ioi", by_words)
    saved = tuple(
        ReferencePrompt(tokens=(n, 1), template="when", labels={}, role=BUILTIN["ioi"].roles[n % 2])
        for n in range(2 * N)
    )
    source = DrawnReference(BUILTIN["ioi"], by_words, 0, task.pairs, saved)
    assert source.per_group == 2 * N
    assert source.draw(2 * N) == saved
    assert len(source.draw(4 * N)) == 4 * N * 16
