"""The reference prompts of a built-in task: fresh corrupted prompts that are in neither split.

docs/definitions.md, "Ablations", has the rule. Each template is drawn from with a random source of
its own, so the prompts depend on the seed alone, and not on the pairs or on how they are split.
There are as many prompts of each role (`BuiltinTask.roles`). A mean over them then carries no
information about the answer.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable

from discovery.tasks.builtin.builtin_task import BuiltinTask, PairSampler
from discovery.tasks.builtin.tokenizer_filter import TokenizerFilter
from discovery.tasks.pairs import MarkedPair, Tokenizer
from discovery.tasks.reference import REFERENCE_PROMPTS, ReferencePrompt, largest_group
from discovery.tasks.task import EncodedPair

DRAWN_DESCRIPTION = "fresh corrupted prompts of the task, in neither split"
"""How records name the origin of these prompts."""

_MAX_TRIES = 400
"""How many proposals in a row may add nothing before a template's groups are left smaller."""


class DrawnReference:
    """Draws the reference prompts of a built-in task.

    Attributes:
        task: the behaviour.
        builtin: its name.
        per_group: how many prompts of each template and token count are used at first.
    """

    description = DRAWN_DESCRIPTION

    def __init__(
        self,
        task: BuiltinTask,
        tokenizer: Tokenizer,
        seed: int,
        pairs: Iterable[EncodedPair],
        saved: tuple[ReferencePrompt, ...] = (),
    ) -> None:
        """Prepare to draw; nothing is drawn yet.

        Args:
            task: the behaviour.
            tokenizer: the model's tokenizer.
            seed: the task's seed.
            pairs: the task's pairs. Their templates and token counts are those that need means, and
                a prompt that one of them holds is not drawn.
            saved: the prompts that an earlier process drew, which are used again as they are.
        """
        self.task = task
        self.builtin = task.name
        self.per_group = largest_group(saved) or REFERENCE_PROMPTS
        self._tokenizer = tokenizer
        self._seed = seed
        self._lengths: dict[str, set[int]] = defaultdict(set)
        self._excluded: set[tuple[int, ...]] = set()
        for pair in pairs:
            self._lengths[pair.template].add(len(pair.clean))
            self._excluded |= {pair.clean, pair.corrupted}
        self._drawn = {self.per_group: saved} if saved else {}

    def draw(self, per_group: int) -> tuple[ReferencePrompt, ...]:
        """Return the first so many prompts of each template and token count.

        A group is smaller if the tokenizer leaves too few different prompts.

        Raises:
            TaskError: if the tokenizer leaves too few words.
        """
        if per_group not in self._drawn:
            words = TokenizerFilter(self._tokenizer, self.task.name)
            sample_pair = self.task.make_sampler(words.keep_words)
            self._drawn[per_group] = tuple(
                prompt
                for template in self.task.templates
                if template in self._lengths
                for prompt in self._draw_template(words, sample_pair, template, per_group)
            )
        return self._drawn[per_group]

    def _draw_template(
        self,
        words: TokenizerFilter,
        sample_pair: PairSampler,
        template: str,
        per_group: int,
    ) -> list[ReferencePrompt]:
        """Draw the prompts of one template, the roles of each token count in turn."""
        rng = random.Random(f"reference-{self._seed}-{template}")
        quota = per_group // len(self.task.roles)
        groups: dict[tuple[int, str], list[ReferencePrompt]] = {
            (length, role): []
            for length in sorted(self._lengths[template])
            for role in self.task.roles
        }
        seen = set(self._excluded)
        tries = 0
        while tries < _MAX_TRIES and any(len(group) < quota for group in groups.values()):
            prompt = _as_reference(words, sample_pair(rng, template))
            tries += 1
            if prompt is None or prompt.tokens in seen:
                continue
            group = groups.get((len(prompt.tokens), prompt.role))
            if group is not None and len(group) < quota:
                seen.add(prompt.tokens)
                group.append(prompt)
                tries = 0
        return [
            prompt
            for length in sorted(self._lengths[template])
            for row in zip(*(groups[length, role] for role in self.task.roles), strict=False)
            for prompt in row
        ]


def _as_reference(words: TokenizerFilter, marked: MarkedPair) -> ReferencePrompt | None:
    """Return the corrupted side of a pair, or None if its tokens do not suit the tokenizer."""
    fitting = words.fit_prompts(marked)
    if fitting is None:
        return None
    return ReferencePrompt(
        tokens=fitting.corrupted,
        template=marked.template,
        labels={name: at % len(fitting.corrupted) for name, at in fitting.labels.items()},
        role=marked.role,
    )
