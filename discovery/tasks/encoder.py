"""From written pairs to token ids, and the lint of what came out, with the line and a cure in each message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from discovery.errors import TaskError
from discovery.tasks.pairs import (
    MAX_NAME_LENGTH,
    Answer,
    Prompt,
    PromptPair,
    Tokenizer,
    shorten_repr,
)
from discovery.tasks.task import EncodedPair

MIN_PAIRS_PER_TEMPLATE = 5  # pairs of a template: fewer say little of its spread


@dataclass(frozen=True)
class PairEncoder:
    """What turns written pairs into token ids for one model.

    Attributes:
        tokenizer: the model's, or None where its directory has none (then prompts are token ids).
        d_vocab: how many token ids there are. n_logits: how many of them can be answers.
        n_ctx: the longest prompt the model takes.
    """

    tokenizer: Tokenizer | None
    d_vocab: int
    n_logits: int
    n_ctx: int

    def encode_all(
        self, written: Mapping[str, PromptPair]
    ) -> tuple[tuple[EncodedPair, ...], tuple[str, ...]]:
        """Encode and lint pairs.

        Args:
            written: the pairs, each under what a message calls it, e.g. "line 3".

        Returns:
            The pairs, and the warnings.

        Raises:
            TaskError: for the first pair that breaks a rule; says how many others do.
        """
        pairs: dict[str, EncodedPair] = {}
        faults: list[TaskError] = []
        for at, item in written.items():
            try:
                pairs[at] = self._encode(item, at)
            except TaskError as fault:
                faults.append(fault)
        faults += _duplicates(pairs) if not faults else []
        if faults:
            more = f" ({len(faults) - 1} more pairs have faults.)" if len(faults) > 1 else ""
            raise TaskError(faults[0].cause + more, faults[0].cure)
        found = tuple(pairs.values())
        strange = [
            at
            for at, item in written.items()
            if any(self._has_unknown_words(side) for side in (item.clean, item.corrupted))
        ]
        notes = (
            [
                f"{len(strange)} pairs, first {strange[0]}, hold words that the tokenizer does not know: they all read alike."
            ]
            if strange
            else []
        )
        return found, (*notes, *find_warnings(found))

    def _has_unknown_words(self, text: Prompt) -> bool:
        """Whether a text holds words that become the unknown token."""
        return (
            isinstance(text, str)
            and self.tokenizer is not None
            and self.tokenizer.has_unknown(text)
        )

    def _encode(self, item: PromptPair, location: str) -> EncodedPair:
        _check_name_lengths(item, location)
        clean, corrupted = (
            self._encode_prompt(item.clean, f"{location}, clean"),
            self._encode_prompt(item.corrupted, f"{location}, corrupted"),
        )
        if len(clean) != len(corrupted):
            raise TaskError(
                f"{location}: clean has {len(clean)} tokens and corrupted {len(corrupted)}.",
                "The two sides of a pair must have the same number of tokens: exchange words for words of as many tokens.",
            )
        if clean == corrupted:
            raise TaskError(
                f"{location}: clean and corrupted are the same.",
                "Change the words that carry the behaviour in `corrupted`.",
            )
        answer, wrong = (
            self._encode_answers(item.answer, item, clean, f"{location}, answer"),
            self._encode_answers(item.wrong, item, clean, f"{location}, wrong"),
        )
        if shared := set(answer) & set(wrong):
            raise TaskError(
                f"{location}: token {min(shared)} is both answer and wrong.",
                "Give two answers that differ.",
            )
        labels = {
            name: self._encode_position(name, position, len(clean), location)
            for name, position in item.labels.items()
        }
        return EncodedPair(clean, corrupted, answer, wrong, item.template or "", labels)

    def _encode_prompt(self, prompt: Prompt, location: str) -> tuple[int, ...]:
        if isinstance(prompt, str):
            ids = tuple(self._require_tokenizer(location).encode(prompt))
        else:
            ids = tuple(_require_token_id(token, self.d_vocab, location) for token in prompt)
        if not ids:
            raise TaskError(f"{location}: the prompt has no tokens.", "Give at least one token.")
        if len(ids) > self.n_ctx:
            raise TaskError(
                f"{location}: {len(ids)} tokens, and this model takes {self.n_ctx}.",
                "Shorten the prompt or use another model.",
            )
        return ids

    def _require_tokenizer(self, location: str) -> Tokenizer:
        if self.tokenizer is None:
            raise TaskError(
                f"{location}: the prompt is text, and this model has no tokenizer.",
                "Give prompts and answers as lists of token ids.",
            )
        return self.tokenizer

    def _encode_answers(
        self, answer: Answer, item: PromptPair, prompt: tuple[int, ...], location: str
    ) -> tuple[int, ...]:
        members = answer if isinstance(answer, tuple) else (answer,)
        ids = tuple(self._encode_answer(member, item, prompt, location) for member in members)
        if not ids:
            raise TaskError(f"{location}: the set is empty.", "Give at least one token.")
        if len(set(ids)) != len(ids):
            raise TaskError(
                f"{location}: two members of the set are the same token.", "Name each token once."
            )
        return ids

    def _encode_answer(
        self, answer: str | int, item: PromptPair, prompt: tuple[int, ...], location: str
    ) -> int:
        if isinstance(answer, int):
            return _require_token_id(answer, self.n_logits, location)
        if not isinstance(item.clean, str):
            raise TaskError(
                f"{location}: {shorten_repr(answer)} is text after a prompt of token ids.",
                "Give the answer as a token id too.",
            )
        ids = tuple(self._require_tokenizer(location).encode(item.clean + answer))
        if self._has_unknown_words(item.clean + answer) and not self._has_unknown_words(item.clean):
            raise TaskError(
                f"{location}: the tokenizer does not know {shorten_repr(answer)}.",
                "Use a word of the model's vocabulary, or give a token id.",
            )
        if ids[: len(prompt)] != prompt or len(ids) != len(prompt) + 1:
            raise TaskError(
                f"{location}: {shorten_repr(answer)} does not continue the prompt by exactly one token (it makes {len(prompt)} tokens into {len(ids)}).",
                "Use a word that is one token, mind the space before it, or give a token id.",
            )
        return _require_token_id(ids[-1], self.n_logits, location)

    def _encode_position(self, name: str, position: int, length: int, location: str) -> int:
        if not -length <= position < length:
            raise TaskError(
                f"{location}: label {name!r} is at {position}, and the prompt has {length} tokens.",
                f"Use a position from 0 to {length - 1}, or from -{length} to -1.",
            )
        return position % length


def _check_name_lengths(item: PromptPair, location: str) -> None:
    for what, names in (("template", [item.template or ""]), ("label", item.labels)):
        for name in names:
            if len(name) > MAX_NAME_LENGTH:
                raise TaskError(
                    f"{location}: the {what} {name[:40]!r}… is {len(name)} characters long.",
                    f"Name a {what} in at most {MAX_NAME_LENGTH} characters.",
                )


def _require_token_id(token: int, count: int, location: str) -> int:
    if not 0 <= token < count:
        raise TaskError(
            f"{location}: token id {token} does not exist.", f"Use ids from 0 to {count - 1}."
        )
    return token


def _duplicates(pairs: Mapping[str, EncodedPair]) -> list[TaskError]:
    seen: dict[tuple[object, ...], str] = {}
    faults = []
    for at, pair in pairs.items():
        key = (pair.clean, pair.corrupted, tuple(sorted(pair.answer)), tuple(sorted(pair.wrong)))
        if key in seen:
            faults.append(TaskError(f"{at} repeats {seen[key]}.", "Remove one of them."))
        seen.setdefault(key, at)
    return faults


def find_warnings(pairs: Sequence[EncodedPair]) -> Iterator[str]:
    """What the lint says of pairs that is no error."""
    differ = sum(pair.clean[-1] != pair.corrupted[-1] for pair in pairs)
    if differ:
        yield (
            f"{differ} of {len(pairs)} pairs end in different tokens on the two sides: "
            "the last position then carries the corruption itself."
        )
    answer, count = Counter(tuple(sorted(pair.answer)) for pair in pairs).most_common(1)[
        0
    ]  # a set is one answer
    if len(pairs) > 1 and count > 0.6 * len(pairs):
        tokens = f"token{'s' * (len(answer) > 1)} {', '.join(map(str, answer[:5]))}"
        yield f"One answer ({tokens}) serves {count} of {len(pairs)} pairs: a constant guess looks right."
    sizes = Counter(pair.template for pair in pairs)
    small = [name for name, size in sizes.items() if size < MIN_PAIRS_PER_TEMPLATE]
    if small and len(sizes) > 1:
        yield (
            f"{len(small)} of {len(sizes)} templates have fewer than {MIN_PAIRS_PER_TEMPLATE} pairs: intervals resample pairs within their template, "
            "and are too narrow with so few."
        )
