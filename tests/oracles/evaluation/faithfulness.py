"""m(S) and f(S) from the weights alone, by the hand-built models' own forward pass in float64.

Every subset takes a full forward pass of every clean prompt with the nodes outside it replaced.
Nothing is reused, skipped or padded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.known_circuits.forward import Replacement, node_names, run_forward
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.tasks.reference import ReferencePrompt
from discovery.tasks.task import EncodedPair

MAX_ROWS = 1024  # prompts in one forward pass


class FaithfulnessOracle:
    """The pairs of one split on a native model, under one ablation ("resample" or "mean").

    Attributes:
        config: the model's configuration.
        state: its weights.
        pairs: the pairs.
        universe: the names of the nodes.
        groups: the numbers of the pairs of each template and length.
        prompts: the reference prompts of mean ablation.
        used: the numbers of those whose values are averaged.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        pairs: Sequence[EncodedPair],
        ablation: str,
        prompts: Sequence[ReferencePrompt] | None = None,
        used: Collection[int] | None = None,
    ) -> None:
        """Run the reference prompts.

        Without `prompts` these are the pairs' corrupted prompts; without `used` all are averaged.
        """
        self.config = config
        self.state = state
        self.pairs = pairs
        self.prompts = [pair.as_reference for pair in pairs] if prompts is None else prompts
        self.used = range(len(self.prompts)) if used is None else used
        self.universe = node_names(config)
        self.groups: dict[tuple[str, int], list[int]] = {}
        for index, pair in enumerate(pairs):
            self.groups.setdefault((pair.template, len(pair.clean)), []).append(index)
        self._references = {
            key: self._reference(members, ablation) for key, members in self.groups.items()
        }
        self._metrics: dict[frozenset[str], Tensor] = {}

    def _reference(self, members: Sequence[int], ablation: str) -> dict[str, Tensor]:
        """Return what the nodes are replaced by, node -> [pair pos d_model].

        A mean is over the other reference prompts of the template.
        """
        tokens = torch.tensor([self.pairs[n].corrupted for n in members])
        corrupted = run_forward(self.config, self.state, tokens).nodes
        if ablation == "resample":
            return dict(corrupted)
        mine = self.pairs[members[0]]
        numbers = [
            number
            for number, prompt in enumerate(self.prompts)
            if (prompt.template, len(prompt.tokens)) == (mine.template, len(mine.clean))
        ]
        assert len(numbers) > 8, "fewer are aligned in another way"
        group = [self.prompts[number] for number in numbers if number in self.used]
        tokens = torch.tensor([prompt.tokens for prompt in group])
        values = run_forward(self.config, self.state, tokens).nodes
        others = [
            [n for n in range(len(group)) if n != _number_of(group, self.pairs[member])]
            for member in members
        ]
        return {
            node: torch.stack([value[rows].mean(0) for rows in others])
            for node, value in values.items()
        }

    def metrics(self, sets: Iterable[Iterable[Any]]) -> Tensor:
        """Return the logit difference of every pair with only these nodes kept, [set pair]."""
        kept_sets = [frozenset(map(str, nodes)) for nodes in sets]
        new_sets = [nodes for nodes in dict.fromkeys(kept_sets) if nodes not in self._metrics]
        metrics = torch.zeros(len(new_sets), len(self.pairs), dtype=torch.float64)
        for key, members in self.groups.items():
            batch_size = max(1, MAX_ROWS // len(members))
            for begin in range(0, len(new_sets), batch_size):
                batch = new_sets[begin : begin + batch_size]
                metrics[begin : begin + len(batch), members] = self._measure(batch, key)
        self._metrics.update(zip(new_sets, metrics, strict=True))
        return torch.stack([self._metrics[nodes] for nodes in kept_sets])

    def _measure(self, kept_sets: Sequence[frozenset[str]], key: tuple[str, int]) -> Tensor:
        """Return the logit difference of the pairs of one group, [set pair]."""
        members = self.groups[key]
        n_sets, n_pairs = len(kept_sets), len(members)
        clean = torch.tensor([self.pairs[n].clean for n in members])
        replacements = {}
        for node, value in self._references[key].items():
            is_ablated = torch.tensor([node not in kept for kept in kept_sets])
            replacements[node] = Replacement(
                value.repeat(n_sets, 1, 1), is_ablated.repeat_interleave(n_pairs)
            )
        run = run_forward(self.config, self.state, clean.repeat(n_sets, 1), replacements)
        logits = run.logits[:, -1].unflatten(0, (n_sets, n_pairs))
        columns = []
        for column, n in enumerate(members):
            right = logits[:, column, list(self.pairs[n].answer)].logsumexp(-1)
            wrong = logits[:, column, list(self.pairs[n].wrong)].logsumexp(-1)
            columns.append(right - wrong)
        return torch.stack(columns, 1)

    def f(self, *sets: Iterable[Any]) -> list[float]:
        """Return f of each set: means over pairs first, then the ratio."""
        empty, full, *means = self.metrics([(), self.universe, *sets]).mean(1).tolist()
        return [(mean - empty) / (full - empty) for mean in means]

    def f1(self, nodes: Iterable[Any]) -> float:
        """Return f of one set."""
        return self.f(nodes)[0]

    def drop(self, circuit: NodeSet, context: NodeSet, v: Node) -> float:
        """Return |f(C∖K) − f(C∖K∖v)|."""
        with_v, without_v = self.f(circuit - context, circuit - context - {v})
        return abs(with_v - without_v)

    def table(self) -> list[float]:
        """Return f of every subset, by bit mask over the universe."""
        return self.f(*(self.names(mask) for mask in range(2 ** len(self.universe))))

    def names(self, mask: int) -> tuple[str, ...]:
        """Return the names of the nodes in a bit mask."""
        return tuple(node for bit, node in enumerate(self.universe) if mask >> bit & 1)

    def mask(self, nodes: Iterable[Any]) -> int:
        """Return the bit mask of some nodes."""
        return sum(1 << self.universe.index(str(node)) for node in nodes)


def nodes(*names: str) -> frozenset[Node]:
    """Return nodes by name."""
    return frozenset(Node.parse(name) for name in names)


def _number_of(group: Sequence[ReferencePrompt], pair: EncodedPair) -> int | None:
    """Return the place of a pair's own corrupted prompt among reference prompts, if it is there."""
    return group.index(pair.as_reference) if pair.as_reference in group else None
