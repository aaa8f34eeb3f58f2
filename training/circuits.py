"""Which nodes of the bundled model carry a behaviour: f(S) for sets of heads and MLPs, and a greedy search over sets.

f(S) = (m(S) - m(none)) / (m(all) - m(none)), where m(S) is the mean metric on clean prompts with every node outside S replaced at
all positions: by its value in the pair's corrupted run (resample), or by its mean there over the other pairs of
the same wording (mean). Written with plain hooks on the Hugging Face module, so that it shares no code with what it helps to check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from discovery.tasks.pairs import PromptPair

ABLATIONS = ("resample", "mean")
Nodes = frozenset[str]


@dataclass
class HookedAblation:
    """A model on the pairs of one behaviour, with caches for ablation."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerBase
    probability: bool
    pairs: Sequence[PromptPair]
    means_by_set: dict[tuple[Nodes, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.model.config
        self.heads, self.layers = int(config.n_head), int(config.n_layer)
        self.universe: Nodes = frozenset(
            [f"a{i}.h{j}" for i in range(self.layers) for j in range(self.heads)]
            + [f"m{i}" for i in range(self.layers)]
        )
        self.clean, self.last = self._pad([str(pair.clean) for pair in self.pairs])
        self.corrupted, _ = self._pad([str(pair.corrupted) for pair in self.pairs])
        self.sets = [
            self._members([getattr(pair, side) for pair in self.pairs])
            for side in ("answer", "wrong")
        ]
        self.seen: dict[str, torch.Tensor] = {}
        self.patch: dict[str, torch.Tensor] = {}
        self.kept: Nodes = self.universe
        handles = [
            block.attn.c_proj.register_forward_pre_hook(self._attention(i))
            for i, block in enumerate(self.model.transformer.h)
        ]
        handles += [
            block.mlp.register_forward_hook(self._mlp(i))
            for i, block in enumerate(self.model.transformer.h)
        ]
        self.handles = handles
        self._logits(self.corrupted)
        resample = dict(self.seen)
        self.values = {
            "resample": resample,
            "mean": {name: self._others(value) for name, value in resample.items()},
        }

    def close(self) -> None:
        """Takes the hooks off the model."""
        for handle in self.handles:
            handle.remove()

    def metric(self, kept: Nodes, ablation: str) -> torch.Tensor:
        """The metric on each pair with all but `kept` ablated.  # [pair]"""
        self.kept, self.patch = kept, self.values[ablation]
        logits = self._logits(self.clean)
        self.kept, self.patch = self.universe, {}
        return self.score(logits)

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Logit or probability difference of the answer and the wrong set.  # [pair]"""
        if self.probability:
            chances = logits.softmax(-1)
            return (chances * self.sets[0]).sum(-1) - (chances * self.sets[1]).sum(-1)
        right, wrong = (
            logits.masked_fill(~members, -torch.inf).logsumexp(-1) for members in self.sets
        )
        return right - wrong

    def mean(self, kept: Nodes, ablation: str) -> float:
        """m(kept)."""
        key = (kept, ablation)
        if key not in self.means_by_set:
            self.means_by_set[key] = float(self.metric(kept, ablation).mean())
        return self.means_by_set[key]

    def f(self, kept: Nodes, ablation: str) -> float:
        """f(kept): 1 for the whole universe, 0 for the empty set."""
        empty = self.mean(frozenset(), ablation)
        return (self.mean(kept, ablation) - empty) / (self.mean(self.universe, ablation) - empty)

    def logits(self, corrupted: bool = False) -> torch.Tensor:
        """The model's own logits at the last position.  # [pair d_vocab]"""
        return self._logits(self.corrupted if corrupted else self.clean)

    def _pad(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [pair pos], filled up on the right where nothing looks, and the last position of each."""
        rows = [self.tokenizer.encode(prompt) for prompt in prompts]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = torch.tensor(row)
        return tokens, torch.tensor([len(row) - 1 for row in rows])

    def _members(self, answers: list[object]) -> torch.Tensor:
        """Which vocabulary entries belong to each pair's set.  # [pair d_vocab]"""
        members = torch.zeros(len(self.pairs), int(self.model.config.vocab_size), dtype=torch.bool)
        for at, (pair, answer) in enumerate(zip(self.pairs, answers, strict=True)):
            for one in answer if isinstance(answer, tuple) else (answer,):
                members[at, self.tokenizer.encode(f"{pair.clean}{one}")[-1]] = True
        return members

    @torch.no_grad()
    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.model.transformer(input_ids=tokens, use_cache=False).last_hidden_state
        return self.model.lm_head(hidden[torch.arange(len(tokens)), self.last])

    def _others(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the other pairs of the same wording, position by position."""
        out = torch.empty_like(value)
        for wording in {pair.template for pair in self.pairs}:
            rows = torch.tensor(
                [at for at, pair in enumerate(self.pairs) if pair.template == wording]
            )
            own = value[rows]
            out[rows] = (own.sum(0, keepdim=True) - own) / (len(rows) - 1)
        return out

    def _attention(self, layer: int) -> Callable[..., tuple[torch.Tensor, ...]]:
        def hook(
            module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
        ) -> tuple[torch.Tensor, ...]:
            z = inputs[0]  # [pair pos head*d_head]
            self.seen[f"a{layer}"] = z
            gone = [head for head in range(self.heads) if f"a{layer}.h{head}" not in self.kept]
            if not gone:
                return inputs
            z = z.unflatten(-1, (self.heads, -1)).clone()
            z[:, :, gone] = self.patch[f"a{layer}"].unflatten(-1, (self.heads, -1))[:, :, gone]
            return (z.flatten(-2),)

        return hook

    def _mlp(self, layer: int) -> Callable[..., torch.Tensor]:
        def hook(
            module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            self.seen[f"m{layer}"] = output
            return output if f"m{layer}" in self.kept else self.patch[f"m{layer}"]

        return hook


@dataclass(frozen=True)
class ConditionGaps:
    """How far a set meets the conditions (a) to (d), the worst of both ablations where one number is given.

    Attributes:
        inside, outside: the two completeness gaps.
        least: the smallest effect that any node of the set has, in the context where it has most.
    """

    nodes: Nodes
    faithfulness: dict[str, float]
    knockout: dict[str, float]
    gap_inside: float
    gap_outside: float
    least_effect: float

    @property
    def excess(self) -> float:
        """How far the worst condition is missed, each in units of its own tolerance; below 0 where all hold."""
        far = [abs(1 - value) / 0.2 for value in self.faithfulness.values()]
        far += [abs(value) / 0.2 for value in self.knockout.values()]
        return (
            max(*far, self.gap_inside / 0.2, self.gap_outside / 0.1, 2 - self.least_effect / 0.02)
            - 1
        )


def measure_conditions(bench: HookedAblation, nodes: Nodes) -> ConditionGaps:
    """The set against the conditions."""
    rest = bench.universe - nodes
    f = bench.f
    inside = [abs(f(nodes - {u}, a) - f(bench.universe - {u}, a)) for a in ABLATIONS for u in nodes]
    outside = [abs(f(nodes | {v}, a) - f(nodes, a)) for a in ABLATIONS for v in rest]
    faithfulness, knockout = ({a: f(kept, a) for a in ABLATIONS} for kept in (nodes, rest))
    least = min(
        (largest_effect(bench, nodes, node, a) for a in ABLATIONS for node in sorted(nodes)),
        default=0.0,
    )
    return ConditionGaps(
        nodes, faithfulness, knockout, max(inside, default=0.0), max(outside, default=0.0), least
    )


def largest_effect(bench: HookedAblation, nodes: Nodes, node: str, ablation: str) -> float:
    """What the node adds to f of the set, in the first context (none or one other node gone) where that is plain, else at most."""
    most = 0.0
    for other in (node, *sorted(nodes - {node})):
        kept = nodes if other == node else nodes - {other}
        most = max(most, abs(bench.f(kept, ablation) - bench.f(kept - {node}, ablation)))
        if most >= 0.04:
            break
    return most


def prune_greedily(bench: HookedAblation) -> list[Nodes]:
    """Sets from the universe, idle nodes left out, down to one node: at each size the one that keeps (a) and (b) best."""

    def miss(nodes: Nodes) -> float:
        return max(
            max(abs(1 - bench.f(nodes, a)), abs(bench.f(bench.universe - nodes, a)))
            for a in ABLATIONS
        )

    def idle(node: str) -> bool:
        return all(
            abs(1 - bench.f(bench.universe - {node}, a)) < 0.01
            and abs(bench.f(frozenset({node}), a)) < 0.01
            for a in ABLATIONS
        )

    path = [frozenset(node for node in bench.universe if not idle(node))]
    while len(path[-1]) > 1:
        path.append(min((path[-1] - {node} for node in sorted(path[-1])), key=miss))
    return path


def find_best_set(bench: HookedAblation) -> ConditionGaps:
    """The set that meets (a) to (d) best: the best of the pruning path, and then of its neighbours while that helps."""
    best = min(
        (measure_conditions(bench, nodes) for nodes in prune_greedily(bench)),
        key=lambda verdict: verdict.excess,
    )
    while True:
        near = [best.nodes ^ {node} for node in sorted(bench.universe)]
        better = min(
            (measure_conditions(bench, nodes) for nodes in near if nodes),
            key=lambda verdict: verdict.excess,
        )
        if better.excess >= best.excess:
            return best
        best = better
