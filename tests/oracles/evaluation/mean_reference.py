"""The values of mean ablation, as nested loops that follow the definition word by word."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from discovery.graph import RulesVersion
from discovery.tasks.reference import ReferencePrompt
from discovery.tasks.task import EncodedPair


@dataclass(frozen=True)
class MeanOracle:
    """The reference prompts of a task with an activation of each, [pos …].

    Attributes:
        prompts: the reference prompts.
        values: the activation of each.
        rules: the version of the rules.
        used: the numbers of the prompts whose values are averaged, if not all are. How positions
            are aligned is decided by all prompts.
    """

    prompts: Sequence[ReferencePrompt]
    values: Sequence[torch.Tensor]
    rules: RulesVersion = 2
    used: Collection[int] | None = None

    def mean(
        self, pair: EncodedPair, own_value: torch.Tensor, position: int
    ) -> tuple[torch.Tensor, str, int]:
        """Return one mean (docs/definitions.md, "Ablations").

        Args:
            pair: the pair that is ablated.
            own_value: the activation of its corrupted run, [pos …].
            position: the position that is replaced.

        Returns:
            The mean, how positions were aligned, and its size: the number of other prompts, or
            under version 1 of their values.
        """
        mine = pair.as_reference
        others = list(range(len(self.prompts)))
        for other in others:
            if self.prompts[other] == mine:
                others.remove(other)  # the pair itself, which is there at most once
                break
        peers = [
            other
            for other in others
            if (self.prompts[other].template, len(self.prompts[other].tokens))
            == (mine.template, len(mine.tokens))
        ]
        alignment = "position"
        places = [(other, position) for other in peers]
        if len(peers) < 8:
            alignment = "label" if any(prompt.labels for prompt in self.prompts) else "all"
            wanted = self._kind_of(mine, position)
            places = [
                (other, at)
                for other in others
                for at in range(len(self.prompts[other].tokens))
                if self._kind_of(self.prompts[other], at) == wanted
            ]
        size = len(places) if self.rules == 1 else len({other for other, _ in places})
        places = [place for place in places if self.used is None or place[0] in self.used]
        if places:
            values = [self.values[other][at] for other, at in places]
        else:
            values = [
                own_value[at]
                for at in range(len(mine.tokens))
                if self._kind_of(mine, at) == self._kind_of(mine, position)
            ]
        return torch.stack(values).mean(0), alignment, size

    def _kind_of(self, prompt: ReferencePrompt, position: int) -> str | None:
        """The label of a position; without labels, whether it is the first one."""
        if any(other.labels for other in self.prompts):
            labels = [name for name, place in prompt.labels.items() if place == position]
            return min(labels, default=None)
        return "first" if position == 0 and self.rules > 1 else "later"


def oracle_of_pairs(
    pairs: Sequence[EncodedPair], values: Sequence[torch.Tensor], rules: RulesVersion = 2
) -> MeanOracle:
    """Return the oracle of a user's task, whose reference prompts are its corrupted prompts."""
    return MeanOracle([pair.as_reference for pair in pairs], values, rules)
