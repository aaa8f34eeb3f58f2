"""TransformerLens's own tools as methods that score every node, on our pairs and metric.

- *Attribution patching* (`tools.analysis.attribution_patching`): |(clean − corrupted) · ∂m/∂node|,
  with the gradient on the corrupted run. With the gradient on the clean run it is the node form of
  EAP (Syed et al. 2023, arXiv 2310.10348).
- *Activation patching* (`patching.generic_activation_patch`): every node at all positions, by
  noising alone or by the larger effect of both directions.
- *Direct logit attribution* (`tools.analysis.direct_logit_attribution`): what a node writes towards
  answer − wrong on clean prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods.scoring import Scores
from discovery import load_model
from discovery.engine import SIDES, Block, Engine, Side
from discovery.evaluation import SplitEvaluator
from discovery.metrics import measure
from discovery.sites import Direction, Node
from discovery.tasks.task import EncodedPair


def make_attribution_patching(gradient_side: Side) -> Callable[[SplitEvaluator], Scores]:
    """Make the method that takes one gradient, on the run of one side.

    Its scores are summed over positions and pairs.
    """

    def score(evaluator: SplitEvaluator) -> Scores:
        backend = evaluator.engine.backend
        bridge = backend.bridge  # type: ignore[attr-defined]  # of the TransformerLens backend
        bridge.requires_grad_(True)  # otherwise the tool finds no graph
        try:
            parts = [
                _attribute_block(bridge, block, gradient_side, backend.info.nodes())
                for _, block in evaluator.engine.blocks()
            ]
        finally:
            bridge.requires_grad_(False)
        return {node: abs(sum(part[node] for part in parts)) for node in parts[0]}

    return score


def make_activation_patching(*directions: Direction) -> Callable[[SplitEvaluator], Scores]:
    """Make the method that takes the largest |effect| of each node alone over these directions."""

    def score(evaluator: SplitEvaluator) -> Scores:
        effects = [_patch_nodes(evaluator.engine, direction) for direction in directions]
        return {node: max(abs(effect[node]) for effect in effects) for node in effects[0]}

    return score


def score_by_direct_logit_attribution(evaluator: SplitEvaluator) -> Scores:
    """Score each node by its writing towards the mean answer logit minus the mean wrong one.

    The scores are summed over pairs. The tool needs LayerNorm folded into the unembedding, so it
    gets a copy of the model, and it needs prompts of one length.

    Raises:
        ValueError: if a pair has more answers than wrong answers, or fewer.
    """
    info = evaluator.engine.backend.info
    copy = load_model(info.source, device="cpu", backend="transformerlens")
    bridge: Any = copy.bridge  # type: ignore[attr-defined]  # of the TransformerLens backend
    bridge.enable_compatibility_mode()
    groups: dict[tuple[int, int], list[EncodedPair]] = defaultdict(list)
    for _, block in evaluator.engine.blocks():
        for pair in block.prompts.pairs:
            groups[len(pair.clean), len(pair.answer)].append(pair)
    total: dict[str, float] = {}
    for (_, n_answers), pairs in groups.items():
        _add_logit_attributions(bridge, pairs, n_answers, total)
        evaluator.engine.meter.spent += len(pairs)
    return {node: abs(total[_component_label(node)]) for node in info.nodes()}


def _add_logit_attributions(
    bridge: Any, pairs: Sequence[EncodedPair], n_answers: int, total: dict[str, float]
) -> None:
    """Add what every head and component writes on these pairs, under the tool's labels."""
    from transformer_lens.tools.analysis import direct_logit_attribution

    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([pair.clean for pair in pairs]))
        token_pairs = [zip(pair.answer, pair.wrong, strict=True) for pair in pairs]
        for tokens in zip(*token_pairs, strict=True):
            answer, wrong = torch.tensor(tokens).T
            for unit in ("head", "component"):
                result = direct_logit_attribution(
                    bridge, answer_tokens=answer, incorrect_tokens=wrong, unit=unit, cache=cache
                )
                for label, values in zip(result.labels, result.attribution, strict=True):
                    total[label] = total.get(label, 0.0) + float(values.sum()) / n_answers


def _component_label(node: Node) -> str:
    return f"{node.layer}_mlp_out" if node.head is None else f"L{node.layer}H{node.head}"


def _attribute_block(
    bridge: Any, block: Block, gradient_side: Side, nodes: Sequence[Node]
) -> dict[Node, float]:
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    hooks = {
        node: f"blocks.{node.layer}.{'hook_mlp_out' if node.head is None else 'attn.hook_z'}"
        for node in nodes
    }
    # The gradient has to pass every hook, so the first one is at the embedding.
    hook_names = ["hook_embed", *sorted(set(hooks.values()))]
    runs = {
        side: cache_activation_and_gradient(
            bridge,
            block.prompts.tokens(side),
            _summed_metric(block),
            hook_names,
            compute_gradient=side == gradient_side,
        )
        for side in SIDES
    }
    block.meter.add(4.0 * len(block.prompts))  # two forward passes, and a backward pass for two
    scores = {}
    for node, hook in hooks.items():
        slope = runs[gradient_side].gradients[hook]
        assert slope is not None
        change = runs["clean"].activations[hook] - runs["corrupted"].activations[hook]
        scores[node] = sum_over_node(change * slope, node)
    return scores


def sum_over_node(values: Tensor, node: Node) -> float:
    """Sum a node's part of the values at its site.

    The values are [pair pos d_model], or [pair pos head d_head] if the node is a head.
    """
    return float((values if node.head is None else values[:, :, node.head]).sum())


def _patch_nodes(engine: Engine, direction: Direction) -> dict[Node, float]:
    """Return how much patching each node alone changes the summed metric."""
    from transformer_lens.patching import generic_activation_patch

    bridge: Any = engine.backend.bridge  # type: ignore[attr-defined]  # of the TransformerLens backend
    nodes = engine.backend.info.nodes()
    effects: dict[Node, float] = dict.fromkeys(nodes, 0.0)
    for _, block in engine.blocks():
        base = block.prompts.clean
        source = block.prompts.corrupted
        if direction == "denoising":
            base, source = source, base
        metric = _summed_metric(block)
        with torch.no_grad():
            baseline = float(metric(bridge(base)))
            _, cache = bridge.run_with_cache(source)
            head_axes = ("layer", "head_index")
            heads = generic_activation_patch(
                bridge, base, cache, metric, _replace_one_head, "z", head_axes
            )
            mlps = torch.zeros(0)
            if not engine.backend.info.attn_only:
                mlps = generic_activation_patch(
                    bridge, base, cache, metric, _replace_all, "mlp_out", ("layer",)
                )
        for node in nodes:
            assert node.layer is not None
            patched = mlps[node.layer] if node.head is None else heads[node.layer, node.head]
            effects[node] += float(patched) - baseline
        block.meter.add(float((2 + len(nodes)) * len(block.prompts)))
    return effects


def _replace_one_head(value: Tensor, index: Sequence[int], source: Tensor) -> Tensor:
    value[:, :, index[1]] = source[:, :, index[1]]
    return value


def _replace_all(value: Tensor, index: Sequence[int], source: Tensor) -> Tensor:
    return source


def _summed_metric(block: Block) -> Callable[[Tensor], Tensor]:
    """Return the task's metric, summed over pairs, as a function of logits [pair pos d_vocab]."""
    prompts = block.prompts
    rows = torch.arange(len(prompts))

    def metric(logits: Tensor) -> Tensor:
        last = logits[rows, prompts.answer_position]
        return measure(block.metric, last, prompts.answer, prompts.wrong, None).sum()

    return metric
