"""Holds generated pairs against a tokenizer: which words it renders as one token, which pairs are sound.

A pair is sound when both sides have the same number of tokens and the same last token, each answer continues the clean
prompt by exactly one known token, and each label's word ends a token. Members of an answer set that do not fit are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from discovery.errors import TaskError
from discovery.tasks.pairs import MarkedPair, PromptPair, Tokenizer

_PREFIX = "The"
_MAX_TRIES = 200
_OWN_TASK_ADVICE = "write a task file with prompts that suit this tokenizer (one JSON object a line: clean, corrupted, answer, wrong)."


@dataclass(frozen=True)
class TokenizerFilter:
    """One tokenizer, asked on behalf of one task.

    Attributes:
        tokenizer: the model's.
        task: the name of the behaviour, for messages.
    """

    tokenizer: Tokenizer
    task: str

    def keep_words(self, kind: str, words: Sequence[str], least: int) -> tuple[str, ...]:
        """The words that are one known token after a space, in the order given.

        Raises:
            TaskError: fewer than `least` are.
        """
        kept = tuple(word for word in words if self._continues_by_one_token(_PREFIX, f" {word}"))
        if len(kept) < least:
            raise TaskError(
                f"The task {self.task} needs at least {least} {kind} that are one token each; this tokenizer has {len(kept)}.",
                f"To study this behaviour with it, {_OWN_TASK_ADVICE}",
            )
        return kept

    def collect_pairs(
        self, draw: Callable[[int], MarkedPair], pairs: int
    ) -> tuple[PromptPair, ...]:
        """The first `pairs` distinct sound pairs; `draw(i)` proposes one for place i until it is sound.

        Raises:
            TaskError: a place stays empty after many proposals.
        """
        found: list[PromptPair] = []
        seen: set[frozenset[str]] = set()
        tries = 0
        while len(found) < pairs:
            marked = draw(len(found))
            both = frozenset((marked.clean, marked.corrupted))
            pair = None if both in seen else self.fit_pair(marked)
            tries += 1
            if pair is not None:
                seen.add(both)
                found.append(pair)
                tries = 0
            elif tries == _MAX_TRIES:
                raise TaskError(
                    f"The task {self.task} found {len(found)} of {pairs} distinct pairs whose tokens agree; "
                    f"its wording {marked.template} gave none in {_MAX_TRIES} tries.",
                    f"Ask for fewer pairs, or {_OWN_TASK_ADVICE}",
                )
        return tuple(found)

    def fit_pair(self, marked: MarkedPair) -> PromptPair | None:
        """The pair with token labels and with the answers that fit, or None where it is not sound."""
        clean, corrupted = (
            self.tokenizer.encode(marked.clean),
            self.tokenizer.encode(marked.corrupted),
        )
        if len(clean) != len(corrupted) or clean[-1] != corrupted[-1] or clean == corrupted:
            return None
        answer, wrong = (
            self._fitting_answers(marked.clean, marked.answer),
            self._fitting_answers(marked.clean, marked.wrong),
        )
        if not answer or not wrong:
            return None
        pair = replace(marked, answer=answer, wrong=wrong).with_token_labels(self.tokenizer)
        ends = all(
            self._ends_with_token(marked.clean[:end], clean[pair.labels[name]])
            for name, end in marked.marks.items()
        )
        return pair if ends else None

    def _fitting_answers(self, prompt: str, answer: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Those answers that continue the prompt by one token; empty where none does."""
        if isinstance(answer, str):
            return answer if self._continues_by_one_token(prompt, answer) else ""
        return tuple(one for one in answer if self._continues_by_one_token(prompt, one))

    def _ends_with_token(self, text: str, token: int) -> bool:
        """Whether the text ends with this token (it does not where a tokenizer has merged two labelled words)."""
        piece = self.tokenizer.decode([token]).strip()
        return bool(piece) and text.endswith(piece)

    def _continues_by_one_token(self, prompt: str, answer: str) -> bool:
        """Whether `answer` adds exactly one token, and one that spells it (an unknown-word token does not)."""
        before, after = self.tokenizer.encode(prompt), self.tokenizer.encode(prompt + answer)
        return after[:-1] == before and self.tokenizer.decode(after[-1:]).strip() == answer.strip()
