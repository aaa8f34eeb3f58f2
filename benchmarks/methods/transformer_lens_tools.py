"""TransformerLens's own tools as rivals, on our pairs and metric: a score for every node.

- *Attribution patching* (its `tools.analysis.attribution_patching`): |(clean − corrupted) · ∂m/∂node|, the gradient on the corrupted run;
  on the clean run it is the node form of EAP (Syed et al. 2023, arXiv 2310.10348).
- *Activation patching* (its `patching.generic_activation_patch`): every node at all positions, noising alone or the larger of both
  directions.
- *Direct logit attribution* (its `tools.analysis.direct_logit_attribution`): what a node writes towards answer − wrong, on clean prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from discovery import load_model
from discovery.engine import SIDES, Block, Side
from discovery.evaluation import SplitEvaluator
from discovery.metrics import measure
from discovery.sites import Direction, Node
from discovery.tasks.task import EncodedPair

Scores = Mapping[Node, float]


def make_attribution_patching(at: Side) -> Callable[[SplitEvaluator], Scores]:
    """One gradient, on this side's run, summed over positions and pairs."""

    def rival(bench: SplitEvaluator) -> Scores:
        bridge = bench.engine.backend.bridge  # type: ignore[attr-defined]  # the TransformerLens backend
        bridge.requires_grad_(True)  # else the tool finds no graph
        try:
            parts = [
                _attribute_block(bridge, block, at, bench.engine.backend.info.nodes())
                for _, block in bench.engine.blocks()
            ]
        finally:
            bridge.requires_grad_(False)
        return {node: abs(sum(part[node] for part in parts)) for node in parts[0]}

    return rival


def make_activation_patching(*directions: Direction) -> Callable[[SplitEvaluator], Scores]:
    """The largest |effect| of each node alone, in these directions."""

    def rival(bench: SplitEvaluator) -> Scores:
        found = [_patch_nodes(bench, direction) for direction in directions]
        return {node: max(abs(effects[node]) for effects in found) for node in found[0]}

    return rival


def score_by_direct_logit_attribution(bench: SplitEvaluator) -> Scores:
    """Summed over pairs; the mean logit of the answers against that of the wrong ones.

    The tool wants LayerNorm folded into the unembedding, so it gets a copy of the model, and prompts of one length.

    Raises:
        ValueError: for a pair with more answers than wrong ones, or fewer.
    """
    from transformer_lens.tools.analysis import direct_logit_attribution as attribute

    info = bench.engine.backend.info
    bridge: Any = load_model(info.source, device="cpu", backend="transformerlens").bridge  # type: ignore[attr-defined]
    bridge.enable_compatibility_mode()
    groups: dict[tuple[int, int], list[EncodedPair]] = defaultdict(list)
    for _, block in bench.engine.blocks():
        for pair in block.prompts.pairs:
            groups[len(pair.clean), len(pair.answer)].append(pair)
    found: dict[str, float] = {}
    for (_, n_answers), pairs in groups.items():
        with torch.no_grad():
            _, cache = bridge.run_with_cache(torch.tensor([pair.clean for pair in pairs]))
            for tokens in zip(
                *(zip(pair.answer, pair.wrong, strict=True) for pair in pairs), strict=True
            ):
                answer, wrong = torch.tensor(tokens).T
                for unit in ("head", "component"):
                    part = attribute(
                        bridge, answer_tokens=answer, incorrect_tokens=wrong, unit=unit, cache=cache
                    )
                    for label, values in zip(part.labels, part.attribution, strict=True):
                        found[label] = found.get(label, 0.0) + float(values.sum()) / n_answers
        bench.engine.meter.spent += len(pairs)
    return {
        node: abs(
            found[f"{node.layer}_mlp_out" if node.head is None else f"L{node.layer}H{node.head}"]
        )
        for node in info.nodes()
    }


def _attribute_block(
    bridge: Any, block: Block, at: Side, nodes: Sequence[Node]
) -> dict[Node, float]:
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    names = {
        node: f"blocks.{node.layer}.{'hook_mlp_out' if node.head is None else 'attn.hook_z'}"
        for node in nodes
    }
    wanted = ["hook_embed", *sorted(set(names.values()))]  # the gradient has to pass every hook
    runs = {
        side: cache_activation_and_gradient(
            bridge, block.prompts.tokens(side), _metric(block), wanted, compute_gradient=side == at
        )
        for side in SIDES
    }
    block.meter.add(4.0 * len(block.prompts))  # two passes, and one back
    found = {}
    for node, name in names.items():
        slope = runs[at].gradients[name]
        assert slope is not None
        found[node] = sum_over_node(
            (runs["clean"].activations[name] - runs["corrupted"].activations[name]) * slope, node
        )
    return found


def sum_over_node(values: torch.Tensor, node: Node) -> float:
    """A node's share of the values at its site: [pair pos d_model], or of heads [pair pos head d_head]."""
    return float((values if node.head is None else values[:, :, node.head]).sum())


def _patch_nodes(bench: SplitEvaluator, direction: Direction) -> dict[Node, float]:
    """What each node alone does to the summed metric."""
    from transformer_lens.patching import generic_activation_patch

    engine = bench.engine
    bridge: Any = engine.backend.bridge  # type: ignore[attr-defined]  # the TransformerLens backend
    nodes = engine.backend.info.nodes()
    found: dict[Node, float] = dict.fromkeys(nodes, 0.0)
    for _, block in engine.blocks():
        base, source = block.prompts.clean, block.prompts.corrupted
        if direction == "denoising":
            base, source = source, base
        metric = _metric(block)
        with torch.no_grad():
            plain = float(metric(bridge(base)))
            _, cache = bridge.run_with_cache(source)
            heads = generic_activation_patch(
                bridge, base, cache, metric, _replace_one_head, "z", ("layer", "head_index")
            )
            has_mlps = not engine.backend.info.attn_only
            mlps = (
                generic_activation_patch(
                    bridge, base, cache, metric, _replace_all, "mlp_out", ("layer",)
                )
                if has_mlps
                else torch.zeros(0)
            )
        for node in nodes:
            assert node.layer is not None
            found[node] += (
                float(mlps[node.layer] if node.head is None else heads[node.layer, node.head])
                - plain
            )
        block.meter.add(float((2 + len(nodes)) * len(block.prompts)))
    return found


def _replace_one_head(
    value: torch.Tensor, index: Sequence[int], source: torch.Tensor
) -> torch.Tensor:
    value[:, :, index[1]] = source[:, :, index[1]]
    return value


def _replace_all(value: torch.Tensor, index: Sequence[int], source: torch.Tensor) -> torch.Tensor:
    return source


def _metric(block: Block) -> Callable[[torch.Tensor], torch.Tensor]:
    """The task's metric, summed over pairs, of logits at every position."""
    prompts, rows = block.prompts, torch.arange(len(block.prompts))
    return lambda logits: measure(
        block.metric, logits[rows, prompts.answer_position], prompts.answer, prompts.wrong, None
    ).sum()
