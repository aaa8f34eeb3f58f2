"""m(S), f(S) and what follows from them, from the weights alone: the hand-built models' own forward pass in float64.

Every subset is a full forward pass of every clean prompt with the nodes outside it replaced; nothing is reused, skipped or padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.known_circuits.forward import Replacement, node_names, run_forward
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.tasks.task import EncodedPair

ROWS = 1024


class FaithfulnessOracle:
    """One split's pairs on a native model, under one ablation ("resample" or "mean")."""

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        pairs: Sequence[EncodedPair],
        ablation: str,
    ) -> None:
        self.config, self.state, self.pairs = config, state, pairs
        self.universe = node_names(config)
        self.groups: dict[tuple[str, int], list[int]] = {}
        for index, pair in enumerate(pairs):
            self.groups.setdefault((pair.template, len(pair.clean)), []).append(index)
        self.values = {
            key: self._reference(members, ablation) for key, members in self.groups.items()
        }
        self._known: dict[frozenset[str], Tensor] = {}

    def _reference(self, members: Sequence[int], ablation: str) -> dict[str, Tensor]:
        """node -> [pair pos d_model]; a mean is over the other pairs of the template."""
        corrupted = run_forward(
            self.config, self.state, torch.tensor([self.pairs[n].corrupted for n in members])
        ).nodes
        if ablation == "resample":
            return dict(corrupted)
        assert len(members) > 8, "fewer are aligned in another way"
        return {
            node: torch.stack([torch.cat([v[:n], v[n + 1 :]]).mean(0) for n in range(len(members))])
            for node, v in corrupted.items()
        }

    def metrics(self, sets: Iterable[Iterable[Any]]) -> Tensor:
        """The logit difference of every pair with only these nodes kept, [set pair]."""
        wanted = [frozenset(map(str, kept)) for kept in sets]
        fresh = [kept for kept in dict.fromkeys(wanted) if kept not in self._known]
        found = torch.zeros(len(fresh), len(self.pairs), dtype=torch.float64)
        for key, members in self.groups.items():
            clean = torch.tensor([self.pairs[n].clean for n in members])
            step = max(1, ROWS // len(members))
            for begin in range(0, len(fresh), step):
                chunk = fresh[begin : begin + step]
                out = {
                    node: torch.tensor([node not in kept for kept in chunk])
                    for node in self.universe
                }
                replace = {
                    node: Replacement(
                        value.repeat(len(chunk), 1, 1), out[node].repeat_interleave(len(members))
                    )
                    for node, value in self.values[key].items()
                }
                logits = run_forward(
                    self.config, self.state, clean.repeat(len(chunk), 1), replace
                ).logits[:, -1]
                logits = logits.unflatten(0, (len(chunk), len(members)))
                for place, n in enumerate(members):
                    right, wrong = (
                        logits[:, place, list(side)].logsumexp(-1)
                        for side in (self.pairs[n].answer, self.pairs[n].wrong)
                    )
                    found[begin : begin + len(chunk), n] = right - wrong
        self._known.update(zip(fresh, found, strict=True))
        return torch.stack([self._known[kept] for kept in wanted])

    def f(self, *sets: Iterable[Any]) -> list[float]:
        """f of each set: means first, then the ratio."""
        empty, full, *means = self.metrics([(), self.universe, *sets]).mean(1).tolist()
        return [(mean - empty) / (full - empty) for mean in means]

    def f1(self, kept: Iterable[Any]) -> float:
        """f of one set."""
        return self.f(kept)[0]

    def drop(self, circuit: NodeSet, context: NodeSet, v: Node) -> float:
        """|f(C∖K) − f(C∖K∖v)|."""
        with_v, without_v = self.f(circuit - context, circuit - context - {v})
        return abs(with_v - without_v)

    def table(self) -> list[float]:
        """f of every subset, by bit mask over the universe."""
        return self.f(*(self.names(mask) for mask in range(2 ** len(self.universe))))

    def names(self, mask: int) -> tuple[str, ...]:
        """A bit mask's nodes."""
        return tuple(node for bit, node in enumerate(self.universe) if mask >> bit & 1)

    def mask(self, nodes: Iterable[Any]) -> int:
        """The bit mask of some nodes."""
        return sum(1 << self.universe.index(str(node)) for node in nodes)


def nodes(*names: str) -> frozenset[Node]:
    """Nodes by name."""
    return frozenset(Node.parse(name) for name in names)
