"""Checks generated words and pairs against a tokenizer.

A word can be used if it is one known token. A pair is sound if

- the tokenizer knows all of its words,
- both sides have the same number of tokens and the same last token,
- each answer continues the clean prompt by exactly one known token, and
- the word of each label ends a token.

If the answer is a set, the members that do not fit are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from discovery.errors import TaskError
from discovery.tasks.pairs import (
    MarkedPair,
    PromptPair,
    Tokenizer,
    list_unknown_words,
    quote_words,
)

_PREFIX = "The"
"""The text before a word when its tokens are counted."""

_MAX_TRIES = 200
"""How many proposals in a row may fail before the task gives up."""

_OWN_TASK_ADVICE = (
    "write a task file with prompts that suit this tokenizer "
    "(one JSON object a line: clean, corrupted, answer, wrong)."
)


@dataclass(frozen=True, kw_only=True)
class FittingPrompts:
    """The prompts of a generated pair that suit a tokenizer.

    Attributes:
        corrupted: the token ids of the corrupted prompt.
        labels: the position of each label; negative ones count from the end.
    """

    corrupted: tuple[int, ...]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class TokenizerFilter:
    """Decides which words and pairs of one task suit one tokenizer.

    Attributes:
        tokenizer: the model's tokenizer.
        task: the name of the task, for messages.
    """

    tokenizer: Tokenizer
    task: str

    def keep_words(self, kind: str, words: Sequence[str], minimum: int) -> tuple[str, ...]:
        """Return the words that are one known token after a space, in their order.

        Raises:
            TaskError: if there are fewer than `minimum` such words.
        """
        usable = tuple(word for word in words if self._continues_by_one_token(_PREFIX, f" {word}"))
        if len(usable) < minimum:
            unknown = [word for word in words if self.tokenizer.has_unknown(f" {word}")]
            lacks = f" It does not know {quote_words(unknown)}." if unknown else ""
            raise TaskError(
                f"The task {self.task} needs at least {minimum} {kind} that are one token each; "
                f"this tokenizer has {len(usable)}.{lacks}",
                f"To study this behaviour with it, {_OWN_TASK_ADVICE}",
            )
        return usable

    def collect_pairs(
        self, propose: Callable[[int], MarkedPair], pairs: int
    ) -> tuple[PromptPair, ...]:
        """Collect distinct sound pairs.

        Args:
            propose: a function that takes an index and draws a pair for it. It is called again with
                the same index until the pair is sound and new.
            pairs: the number of pairs.

        Raises:
            TaskError: if many proposals in a row fail.
        """
        sound: list[PromptPair] = []
        used: set[frozenset[str]] = set()
        tries = 0
        while len(sound) < pairs:
            marked = propose(len(sound))
            prompts = frozenset((marked.clean, marked.corrupted))
            pair = None if prompts in used else self.fit_pair(marked)
            tries += 1
            if pair is not None:
                used.add(prompts)
                sound.append(pair)
                tries = 0
            elif tries == _MAX_TRIES:
                raise self._explain_failure(marked, len(sound), pairs)
        return tuple(sound)

    def _explain_failure(self, marked: MarkedPair, found: int, pairs: int) -> TaskError:
        """Return the error for a template of which no proposal was sound, e.g. the last one."""
        unknown = list_unknown_words(self.tokenizer, f"{marked.clean} {marked.corrupted}")
        if unknown:
            return TaskError(
                f"The task {self.task} does not suit this tokenizer, which does not know "
                f"{quote_words(unknown)} (template {marked.template}).",
                f"To study this behaviour with it, {_OWN_TASK_ADVICE}",
            )
        return TaskError(
            f"The task {self.task} found {found} of {pairs} distinct pairs whose tokens agree; "
            f"its template {marked.template} gave none in {_MAX_TRIES} tries.",
            f"Ask for fewer pairs, or {_OWN_TASK_ADVICE}",
        )

    def fit_pair(self, marked: MarkedPair) -> PromptPair | None:
        """Return the pair with token labels and fitting answers, or None if it is not sound."""
        fitting = self.fit_prompts(marked)
        if fitting is None:
            return None
        answer = self._fitting_answers(marked.clean, marked.answer)
        wrong = self._fitting_answers(marked.clean, marked.wrong)
        if not answer or not wrong:
            return None
        return PromptPair(
            clean=marked.clean,
            corrupted=marked.corrupted,
            answer=answer,
            wrong=wrong,
            template=marked.template,
            labels=fitting.labels,
        )

    def fit_prompts(self, marked: MarkedPair) -> FittingPrompts | None:
        """Return the tokens and labels of the pair's prompts, or None if they are not sound.

        Whether the answers suit the tokenizer is not looked at.
        """
        if self.tokenizer.has_unknown(f"{marked.clean} {marked.corrupted}"):
            return None
        clean = self.tokenizer.encode(marked.clean)
        corrupted = self.tokenizer.encode(marked.corrupted)
        if len(clean) != len(corrupted) or clean[-1] != corrupted[-1] or clean == corrupted:
            return None
        pair = marked.with_token_labels(self.tokenizer)
        labels_end_tokens = all(
            self._ends_with_token(marked.clean[:end], clean[pair.labels[name]])
            for name, end in marked.marks.items()
        )
        if not labels_end_tokens:
            return None
        return FittingPrompts(corrupted=tuple(corrupted), labels=pair.labels)

    def _fitting_answers(self, prompt: str, answer: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Return the answers that continue the prompt by one token. The result may be empty."""
        if isinstance(answer, str):
            return answer if self._continues_by_one_token(prompt, answer) else ""
        return tuple(member for member in answer if self._continues_by_one_token(prompt, member))

    def _ends_with_token(self, text: str, token: int) -> bool:
        """Whether the text ends with this token.

        It does not if the tokenizer has merged the labelled word with the next one.
        """
        piece = self.tokenizer.decode([token]).strip()
        return bool(piece) and text.endswith(piece)

    def _continues_by_one_token(self, prompt: str, answer: str) -> bool:
        """Whether `answer` adds exactly one token, and that token spells it, so is not <unk>."""
        before = self.tokenizer.encode(prompt)
        after = self.tokenizer.encode(prompt + answer)
        return after[:-1] == before and self.tokenizer.decode(after[-1:]).strip() == answer.strip()
