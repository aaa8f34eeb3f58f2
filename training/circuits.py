"""Which nodes of the bundled model carry a behaviour, by an independent measurement of f(S).

f(S) = (m(S) − m(∅)) / (m(U) − m(∅)). m(S) is the mean metric on clean prompts with every node
outside S replaced at all positions: by its value in the pair's corrupted run (resample), or by its
mean there over the other pairs of the same template (mean).

The measurement uses plain hooks on the Hugging Face module, so that it shares no code with what it
helps to check. A greedy search looks for the set that meets the conditions (a) to (d) best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from discovery.tasks.pairs import PromptPair

ABLATIONS = ("resample", "mean")
CLEAR_EFFECT = 0.04  # twice what (d) asks for; contexts are tried until one shows it
Nodes = frozenset[str]


class HookedAblation:
    """A model on the pairs of one behaviour, with hooks that ablate nodes.

    `close` takes the hooks off the model.

    Attributes:
        universe: every head and every MLP.
        clean, corrupted: the token ids of either side [pair pos], padded on the right.
        answer_sets: for the answers and for the wrong answers, which vocabulary entries belong to
            each pair's set [pair d_vocab].
    """

    def __init__(
        self,
        model: GPT2LMHeadModel,
        tokenizer: PreTrainedTokenizerBase,
        uses_probabilities: bool,
        pairs: Sequence[PromptPair],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.uses_probabilities = uses_probabilities
        self.pairs = pairs
        self.n_heads = int(model.config.n_head)
        layers = range(int(model.config.n_layer))
        heads = [f"a{layer}.h{head}" for layer in layers for head in range(self.n_heads)]
        self.universe: Nodes = frozenset([*heads, *(f"m{layer}" for layer in layers)])
        self.clean, self._last = self._tokenize([str(pair.clean) for pair in pairs])
        self.corrupted, _ = self._tokenize([str(pair.corrupted) for pair in pairs])
        self.answer_sets = [
            self._membership([getattr(pair, side) for pair in pairs])
            for side in ("answer", "wrong")
        ]
        self._mean_metrics: dict[tuple[Nodes, str], float] = {}
        self._recorded: dict[str, Tensor] = {}
        self._replacements: dict[str, Tensor] = {}
        self._active: Nodes = self.universe  # the nodes that are not ablated in the current run
        self._handles = self._add_hooks()
        self._run(self.corrupted)
        resample = dict(self._recorded)
        mean = {name: self._mean_over_others(value) for name, value in resample.items()}
        self._values = {"resample": resample, "mean": mean}

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def metric(self, nodes: Nodes, ablation: str) -> Tensor:
        """Return the metric of each pair with all but these nodes ablated, [pair]."""
        self._active = nodes
        self._replacements = self._values[ablation]
        logits = self._run(self.clean)
        self._active = self.universe
        self._replacements = {}
        return self.score(logits)

    def score(self, logits: Tensor) -> Tensor:
        """Return the logit or probability difference of answer and wrong answer, [pair]."""
        if self.uses_probabilities:
            probabilities = logits.softmax(-1)
            right, wrong = ((probabilities * members).sum(-1) for members in self.answer_sets)
        else:
            right, wrong = (
                logits.masked_fill(~members, -torch.inf).logsumexp(-1)
                for members in self.answer_sets
            )
        return right - wrong

    def mean(self, nodes: Nodes, ablation: str) -> float:
        """Return m(nodes)."""
        key = (nodes, ablation)
        if key not in self._mean_metrics:
            self._mean_metrics[key] = float(self.metric(nodes, ablation).mean())
        return self._mean_metrics[key]

    def f(self, nodes: Nodes, ablation: str) -> float:
        """Return f(nodes): 1 for the whole universe, 0 for the empty set."""
        empty = self.mean(frozenset(), ablation)
        return (self.mean(nodes, ablation) - empty) / (self.mean(self.universe, ablation) - empty)

    def logits(self, corrupted: bool = False) -> Tensor:
        """Return the model's own logits at the last position, [pair d_vocab]."""
        return self._run(self.corrupted if corrupted else self.clean)

    def _tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Return the padded tokens [pair pos], and each prompt's last position [pair].

        The padding is on the right, where a causal model does not look.
        """
        rows = [self.tokenizer.encode(prompt) for prompt in prompts]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        return tokens, torch.tensor([len(row) - 1 for row in rows])

    def _membership(self, answers: list[object]) -> Tensor:
        """Return which vocabulary entries belong to each pair's set of answers, [pair d_vocab]."""
        members = torch.zeros(len(self.pairs), int(self.model.config.vocab_size), dtype=torch.bool)
        for index, (pair, answer) in enumerate(zip(self.pairs, answers, strict=True)):
            for text in answer if isinstance(answer, tuple) else (answer,):
                members[index, self.tokenizer.encode(f"{pair.clean}{text}")[-1]] = True
        return members

    @torch.no_grad()
    def _run(self, tokens: Tensor) -> Tensor:
        hidden = self.model.transformer(input_ids=tokens, use_cache=False).last_hidden_state
        return self.model.lm_head(hidden[torch.arange(len(tokens)), self._last])

    def _mean_over_others(self, value: Tensor) -> Tensor:
        """Return each pair's mean over the other pairs of its template, position by position."""
        means = torch.empty_like(value)
        for template in {pair.template for pair in self.pairs}:
            rows = torch.tensor(
                [index for index, pair in enumerate(self.pairs) if pair.template == template]
            )
            group = value[rows]
            means[rows] = (group.sum(0, keepdim=True) - group) / (len(rows) - 1)
        return means

    def _add_hooks(self) -> list[torch.utils.hooks.RemovableHandle]:
        handles = []
        for layer, block in enumerate(self.model.transformer.h):
            handles.append(block.attn.c_proj.register_forward_pre_hook(self._attention_hook(layer)))
            handles.append(block.mlp.register_forward_hook(self._mlp_hook(layer)))
        return handles

    def _attention_hook(self, layer: int) -> Callable[..., tuple[Tensor, ...]]:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = inputs[0]  # [pair pos head*d_head]
            self._recorded[f"a{layer}"] = z
            ablated = [
                head for head in range(self.n_heads) if f"a{layer}.h{head}" not in self._active
            ]
            if not ablated:
                return inputs
            z = z.unflatten(-1, (self.n_heads, -1)).clone()
            replacement = self._replacements[f"a{layer}"].unflatten(-1, (self.n_heads, -1))
            z[:, :, ablated] = replacement[:, :, ablated]
            return (z.flatten(-2),)

        return hook

    def _mlp_hook(self, layer: int) -> Callable[..., Tensor]:
        name = f"m{layer}"

        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._recorded[name] = output
            return output if name in self._active else self._replacements[name]

        return hook


@dataclass(frozen=True, kw_only=True)
class ConditionGaps:
    """How well a set meets the conditions (a) to (d).

    A single number is the worst of both ablations.

    Attributes:
        nodes: the set.
        faithfulness: ablation -> f(C), for (a).
        knockout: ablation -> f(U∖C), for (b).
        gap_inside, gap_outside: the two completeness gaps of (c).
        least_effect: for (d), the smallest effect of a node of the set, each in the context in
            which it is largest.
    """

    nodes: Nodes
    faithfulness: dict[str, float]
    knockout: dict[str, float]
    gap_inside: float
    gap_outside: float
    least_effect: float

    @property
    def excess(self) -> float:
        """How far the worst condition is missed, in units of its tolerance; below 0 if all hold."""
        distances = [abs(1 - value) / 0.2 for value in self.faithfulness.values()]
        distances += [abs(value) / 0.2 for value in self.knockout.values()]
        distances += [self.gap_inside / 0.2, self.gap_outside / 0.1, 2 - self.least_effect / 0.02]
        return max(distances) - 1


def measure_conditions(model: HookedAblation, nodes: Nodes) -> ConditionGaps:
    """Measure how well a set meets the conditions."""
    f = model.f
    universe = model.universe
    rest = universe - nodes
    gaps_inside = [
        abs(f(nodes - {node}, ablation) - f(universe - {node}, ablation))
        for ablation in ABLATIONS
        for node in nodes
    ]
    gaps_outside = [
        abs(f(nodes | {node}, ablation) - f(nodes, ablation))
        for ablation in ABLATIONS
        for node in rest
    ]
    effects = [
        largest_effect(model, nodes, node, ablation)
        for ablation in ABLATIONS
        for node in sorted(nodes)
    ]
    return ConditionGaps(
        nodes=nodes,
        faithfulness={ablation: f(nodes, ablation) for ablation in ABLATIONS},
        knockout={ablation: f(rest, ablation) for ablation in ABLATIONS},
        gap_inside=max(gaps_inside, default=0.0),
        gap_outside=max(gaps_outside, default=0.0),
        least_effect=min(effects, default=0.0),
    )


def largest_effect(model: HookedAblation, nodes: Nodes, node: str, ablation: str) -> float:
    """Return the largest effect of a node on f of the set, with no or one other node ablated.

    The search for a larger one ends at the first context in which the effect is clear.
    """
    largest = 0.0
    for other in (node, *sorted(nodes - {node})):
        context = nodes if other == node else nodes - {other}
        effect = abs(model.f(context, ablation) - model.f(context - {node}, ablation))
        largest = max(largest, effect)
        if largest >= CLEAR_EFFECT:
            break
    return largest


def prune_greedily(model: HookedAblation) -> list[Nodes]:
    """Return sets from the whole universe, without idle nodes, down to a single node.

    Each set lacks one node of the set before: the one without which (a) and (b) are missed least.
    """
    universe = model.universe

    def miss(nodes: Nodes) -> float:
        return max(
            max(abs(1 - model.f(nodes, ablation)), abs(model.f(universe - nodes, ablation)))
            for ablation in ABLATIONS
        )

    def is_idle(node: str) -> bool:
        return all(
            abs(1 - model.f(universe - {node}, ablation)) < 0.01
            and abs(model.f(frozenset({node}), ablation)) < 0.01
            for ablation in ABLATIONS
        )

    path = [frozenset(node for node in universe if not is_idle(node))]
    while len(path[-1]) > 1:
        path.append(min((path[-1] - {node} for node in sorted(path[-1])), key=miss))
    return path


def find_best_set(model: HookedAblation) -> ConditionGaps:
    """Find the set that meets (a) to (d) best.

    The search starts at the best set of the pruning path, and then adds or removes one node at a
    time as long as that helps.
    """

    def best_of(sets: Sequence[Nodes]) -> ConditionGaps:
        candidates = (measure_conditions(model, nodes) for nodes in sets if nodes)
        return min(candidates, key=lambda gaps: gaps.excess)

    best = best_of(prune_greedily(model))
    while True:
        neighbour = best_of([best.nodes ^ {node} for node in sorted(model.universe)])
        if neighbour.excess >= best.excess:
            return best
        best = neighbour
