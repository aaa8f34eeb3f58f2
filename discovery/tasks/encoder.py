"""Encoding prompt pairs as token ids, and checking the result.

A pair that breaks a rule is an error. The message names the line or the pair, what is wrong, and a
fix. What is only suspicious, such as one answer that serves most pairs, becomes a warning.
"""

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
    ReferenceLine,
    Tokenizer,
    list_unknown_words,
    quote_words,
    shorten_repr,
)
from discovery.tasks.reference import ReferencePrompt
from discovery.tasks.task import EncodedPair

MIN_PAIRS_PER_TEMPLATE = 5
"""With fewer pairs of a template, the spread within it cannot be estimated."""

MAX_ANSWER_SHARE = 0.6
"""If one answer serves a larger share of the pairs, a constant guess looks like the behaviour."""


@dataclass(frozen=True)
class PairEncoder:
    """Encodes prompt pairs as token ids for one model.

    Attributes:
        tokenizer: the model's tokenizer, or None if the model has none. Prompts must then be token
            ids.
        d_vocab: the number of token ids that a prompt may hold.
        n_logits: the number of token ids that may be answers.
        n_ctx: the number of tokens of the longest prompt that the model takes.
    """

    tokenizer: Tokenizer | None
    d_vocab: int
    n_logits: int
    n_ctx: int

    def encode_all(
        self, prompt_pairs: Mapping[str, PromptPair]
    ) -> tuple[tuple[EncodedPair, ...], tuple[str, ...]]:
        """Encode and check pairs.

        Args:
            prompt_pairs: the pairs by location, which is how an error names them, e.g. "line 3".

        Returns:
            The encoded pairs, and the warnings.

        Raises:
            TaskError: if a pair breaks a rule. The message describes the first such pair and counts
                the others.
        """
        encoded: dict[str, EncodedPair] = {}
        faults: list[TaskError] = []
        for location, pair in prompt_pairs.items():
            try:
                encoded[location] = self._encode(pair, location)
            except TaskError as fault:
                faults.append(fault)
        _raise_first(faults or _find_duplicates(encoded), "pairs")
        pairs = tuple(encoded.values())
        return pairs, (*self._warn_of_unknown_words(prompt_pairs), *find_warnings(pairs))

    def encode_reference(
        self, lines: Mapping[str, ReferenceLine], pairs: Sequence[EncodedPair]
    ) -> tuple[ReferencePrompt, ...]:
        """Encode and check the prompts that only serve the means of mean ablation.

        Args:
            lines: the prompts by location, which is how an error names them, e.g. "line 3".
            pairs: the pairs of the same task. Their corrupted prompts enter the means already.

        Raises:
            TaskError: if a prompt breaks a rule or repeats another one.
        """
        encoded: dict[str, ReferencePrompt] = {}
        faults: list[TaskError] = []
        for location, line in lines.items():
            try:
                encoded[location] = self._encode_reference(line, location)
            except TaskError as fault:
                faults.append(fault)
        _raise_first(faults or _find_repeated_reference(encoded, pairs), "reference lines")
        return tuple(encoded.values())

    def _encode_reference(self, line: ReferenceLine, location: str) -> ReferencePrompt:
        _check_name_lengths(line, location)
        tokens = self._encode_prompt(line.corrupted, f"{location}, corrupted")
        labels = {
            name: _normalise_position(name, position, len(tokens), location)
            for name, position in line.labels.items()
        }
        return ReferencePrompt(tokens=tokens, template=line.template or "", labels=labels)

    def _warn_of_unknown_words(self, prompt_pairs: Mapping[str, PromptPair]) -> Iterator[str]:
        words_by_location = {
            location: self._list_unknown_words(pair.clean, pair.corrupted)
            for location, pair in prompt_pairs.items()
        }
        locations = [location for location, words in words_by_location.items() if words]
        if locations:
            words = list(dict.fromkeys(word for at in locations for word in words_by_location[at]))
            yield (
                f"{len(locations)} pairs, first {locations[0]}, hold words that the tokenizer does "
                f"not know ({quote_words(words)}). All unknown words become the same token."
            )

    def _list_unknown_words(self, *prompts: Prompt) -> list[str]:
        """Return the words of prompts that become the unknown token, each once."""
        if self.tokenizer is None:
            return []
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        words = [word for text in texts for word in list_unknown_words(self.tokenizer, text)]
        return list(dict.fromkeys(words))

    def _encode(self, pair: PromptPair, location: str) -> EncodedPair:
        _check_name_lengths(pair, location)
        clean = self._encode_prompt(pair.clean, f"{location}, clean")
        corrupted = self._encode_prompt(pair.corrupted, f"{location}, corrupted")
        if len(clean) != len(corrupted):
            raise TaskError(
                f"{location}: clean has {len(clean)} tokens and corrupted {len(corrupted)}.",
                "The two sides of a pair must have the same number of tokens. Replace words by "
                "words with as many tokens.",
            )
        if clean == corrupted:
            unknown = self._list_unknown_words(pair.clean, pair.corrupted)
            if unknown and pair.clean != pair.corrupted:
                raise TaskError(
                    f"{location}: clean and corrupted are the same tokens, because the tokenizer "
                    f"does not know {quote_words(unknown)}.",
                    "Use words of the model's vocabulary, or give token ids.",
                )
            raise TaskError(
                f"{location}: clean and corrupted are the same.",
                "Change the words that carry the behaviour in `corrupted`.",
            )
        answer = self._encode_answers(pair.answer, pair, clean, f"{location}, answer")
        wrong = self._encode_answers(pair.wrong, pair, clean, f"{location}, wrong")
        if shared := set(answer) & set(wrong):
            raise TaskError(
                f"{location}: token {min(shared)} is both answer and wrong.",
                "Give two answers that differ.",
            )
        labels = {
            name: _normalise_position(name, position, len(clean), location)
            for name, position in pair.labels.items()
        }
        return EncodedPair(
            clean=clean,
            corrupted=corrupted,
            answer=answer,
            wrong=wrong,
            template=pair.template or "",
            labels=labels,
        )

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
        self, answer: Answer, pair: PromptPair, prompt: tuple[int, ...], location: str
    ) -> tuple[int, ...]:
        members = answer if isinstance(answer, tuple) else (answer,)
        ids = tuple(self._encode_answer(member, pair, prompt, location) for member in members)
        if not ids:
            raise TaskError(f"{location}: the set is empty.", "Give at least one token.")
        if len(set(ids)) != len(ids):
            raise TaskError(
                f"{location}: two members of the set are the same token.", "Name each token once."
            )
        return ids

    def _encode_answer(
        self, answer: str | int, pair: PromptPair, prompt: tuple[int, ...], location: str
    ) -> int:
        """Return the one token that `answer` adds to the clean prompt, whose ids are `prompt`."""
        if isinstance(answer, int):
            return _require_token_id(answer, self.n_logits, location)
        if not isinstance(pair.clean, str):
            raise TaskError(
                f"{location}: {shorten_repr(answer)} is text after a prompt of token ids.",
                "Give the answer as a token id too.",
            )
        continued = pair.clean + answer
        ids = tuple(self._require_tokenizer(location).encode(continued))
        if self._is_unknown(answer, pair.clean, ids[-1]):
            raise TaskError(
                f"{location}: the tokenizer does not know {shorten_repr(answer)}.",
                "Use a word of the model's vocabulary, or give a token id.",
            )
        if ids[: len(prompt)] != prompt or len(ids) != len(prompt) + 1:
            raise TaskError(
                f"{location}: {shorten_repr(answer)} does not continue the prompt by exactly one "
                f"token (the prompt has {len(prompt)} tokens, and {len(ids)} with the answer).",
                "Use a word that is one token, check the space before it, or give a token id.",
            )
        return _require_token_id(ids[-1], self.n_logits, location)

    def _is_unknown(self, answer: str, prompt: str, token: int) -> bool:
        """Whether the tokenizer does not know an answer to a prompt, whose last token is given.

        If the prompt itself has unknown words, the answer is looked at alone, and its token is
        spelled out: a digit may be known after another digit only.
        """
        tokenizer = self.tokenizer
        if tokenizer is None or not tokenizer.has_unknown(prompt + answer):
            return False
        if not tokenizer.has_unknown(prompt):
            return True
        spelled = tokenizer.decode([token]).strip()
        return tokenizer.has_unknown(answer) and spelled != answer.strip()


def find_warnings(pairs: Sequence[EncodedPair]) -> Iterator[str]:
    """Yield a warning for everything about the pairs that is suspicious but allowed."""
    differing = sum(pair.clean[-1] != pair.corrupted[-1] for pair in pairs)
    if differing:
        yield (
            f"{differing} of {len(pairs)} pairs end in different tokens on the two sides: "
            "the last position then carries the corruption itself."
        )
    # The members of a set are sorted, so that a set in any order is one answer.
    answers = Counter(tuple(sorted(pair.answer)) for pair in pairs)
    answer, count = answers.most_common(1)[0]
    if len(pairs) > 1 and count > MAX_ANSWER_SHARE * len(pairs):
        tokens = f"token{'s' * (len(answer) > 1)} {', '.join(map(str, answer[:5]))}"
        yield (
            f"One answer ({tokens}) serves {count} of {len(pairs)} pairs: "
            "a model that always gives it would seem to do the task."
        )
    sizes = Counter(pair.template for pair in pairs)
    small = [name for name, size in sizes.items() if size < MIN_PAIRS_PER_TEMPLATE]
    if small and len(sizes) > 1:
        yield (
            f"{len(small)} of {len(sizes)} templates have fewer than {MIN_PAIRS_PER_TEMPLATE} "
            "pairs. Intervals resample pairs within their template, and are too narrow with so few."
        )


def _raise_first(faults: Sequence[TaskError], noun: str) -> None:
    """Raise the first fault, if there is one, and count the others."""
    if faults:
        more = f" ({len(faults) - 1} more {noun} have faults.)" if len(faults) > 1 else ""
        raise TaskError(faults[0].cause + more, faults[0].cure)


def _check_name_lengths(pair: PromptPair | ReferenceLine, location: str) -> None:
    for kind, names in (("template", [pair.template or ""]), ("label", list(pair.labels))):
        for name in names:
            if len(name) > MAX_NAME_LENGTH:
                raise TaskError(
                    f"{location}: the {kind} {name[:40]!r}… is {len(name)} characters long.",
                    f"Name a {kind} in at most {MAX_NAME_LENGTH} characters.",
                )


def _require_token_id(token: int, count: int, location: str) -> int:
    if not 0 <= token < count:
        raise TaskError(
            f"{location}: token id {token} does not exist.", f"Use ids from 0 to {count - 1}."
        )
    return token


def _normalise_position(name: str, position: int, length: int, location: str) -> int:
    """Return a label's position counted from 0."""
    if not -length <= position < length:
        raise TaskError(
            f"{location}: label {name!r} is at {position}, and the prompt has {length} tokens.",
            f"Use a position from 0 to {length - 1}, or from -{length} to -1.",
        )
    return position % length


def _find_duplicates(pairs: Mapping[str, EncodedPair]) -> list[TaskError]:
    """Return an error for each pair that repeats an earlier one."""
    first_locations: dict[tuple[object, ...], str] = {}
    faults = []
    for location, pair in pairs.items():
        key = (pair.clean, pair.corrupted, tuple(sorted(pair.answer)), tuple(sorted(pair.wrong)))
        if key in first_locations:
            first = first_locations[key]
            faults.append(TaskError(f"{location} repeats {first}.", "Remove one of them."))
        first_locations.setdefault(key, location)
    return faults


def _find_repeated_reference(
    prompts: Mapping[str, ReferencePrompt], pairs: Sequence[EncodedPair]
) -> list[TaskError]:
    """Return an error for each reference line that repeats a pair's corrupted prompt or a line.

    A pair would otherwise not be left out of its own mean.
    """
    first_locations: dict[tuple[object, ...], str] = {
        (pair.template, pair.corrupted): "the corrupted prompt of a pair" for pair in pairs
    }
    faults = []
    for location, prompt in prompts.items():
        key = (prompt.template, prompt.tokens)
        if key in first_locations:
            faults.append(
                TaskError(f"{location} repeats {first_locations[key]}.", "Remove this line.")
            )
        first_locations.setdefault(key, location)
    return faults
