"""Other ways to find a circuit, at the level of nodes, on the same pairs, metric and ablation as ours; from their papers, unless said.

- *ACDC* (Conmy et al. 2023, arXiv 2304.14997): from the last node to the first, a node is dropped for good where that changes the metric by
  less than τ of the behaviour; a grid of τ.
- *EAP* (Syed et al. 2023, arXiv 2310.10348), its node form: |(corrupted − clean) · ∂m/∂node| on the clean run.
- *EAP-IG* (Hanna et al. 2024, arXiv 2403.17806): the same with the gradient averaged over five inputs between the two.
- *Attribution patching* by TransformerLens's own tool (its `tools.analysis`): (clean − corrupted) · ∂m/∂node on the corrupted run.
- *Single-node activation patching*: |noising effect|.
- *Direct logit attribution*: |(clean − corrupted) · ∂m/∂(final residual stream)| at the answer position.

Each gives a score for every node. None comes with a threshold, so each is given the best one on discovery pairs: of its ranking's
prefixes (equal scores are not cut apart) the one that does best by our conditions (a) to (d), as points under both ablations; the
smaller first. That is the very rule by which ours chooses among the sets that it looked at; what is compared is where the sets come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from discovery.agent.mend import examine
from discovery.backends.base import Batch
from discovery.engine import Block, attributions
from discovery.evaluation import Bench, Faithfulness
from discovery.methods.ablation import NodeSet
from discovery.methods.nodes import node_effects
from discovery.metrics import measure
from discovery.sites import Node, Site

TAUS = tuple(2.0**-n for n in range(1, 11))  # of m(U) − m(∅)
Scores = Mapping[Node, float]


@dataclass(frozen=True)
class Found:
    """A rival's answer.

    Attributes:
        scores: the larger, the sooner a node is taken.
        circuit: the best prefix of that ranking.
        forward_equivalents: all of it, the choice of the prefix included.
    """

    scores: Scores
    circuit: NodeSet
    forward_equivalents: float


def run(rival: Callable[[Bench], Scores], bench: Bench, known: Bench) -> Found:
    """Rank, and choose the prefix.

    Args:
        bench: fresh, so that it counts what the ranking costs.
        known: one for all rivals of a model: sets that another has asked for are not measured again, but counted.
    """
    scores = rival(bench)
    made, asked = prefixes(scores), {ablation: _Asked(f) for ablation, f in known.both.items()}
    weights: list[tuple[float, int]] = []
    for prefix in made:  # the smallest first; nothing is better than one without faults
        weights.append(examine(asked, prefix).weight)  # type: ignore[arg-type]  # they stand in for what they ask
        if weights[-1] == (0.0, 0):
            break
    cost = sum(f.whole.sets.estimate(list(f.sets)) for f in asked.values())
    return Found(scores, made[weights.index(min(weights))], bench.engine.meter.spent + cost)


class _Asked:
    """f, and which sets it was asked for."""

    def __init__(self, whole: Faithfulness) -> None:
        self.whole, self.everything, self.defined, self.n_pairs = whole, whole.everything, whole.defined, whole.n_pairs
        self.sets: dict[NodeSet, None] = {}

    def __call__(self, sets: Sequence[NodeSet], label: str = "", pairs: int | None = None) -> torch.Tensor:
        self.sets |= dict.fromkeys(sets)
        return self.whole(sets, label, pairs)


def prefixes(scores: Scores) -> list[NodeSet]:
    """The nodes that score at least so much, for every score there is, the smallest set first."""
    return [frozenset(node for node in scores if scores[node] >= least) for least in sorted(set(scores.values()), reverse=True)]


def acdc(bench: Bench) -> Scores:
    """The largest τ at which a node stays."""
    f = bench.f("resample")
    order = sorted(f.everything, reverse=True)
    kept_at = dict.fromkeys(order, 0.0)
    for tau in TAUS:
        circuit = f.everything
        for node in order:
            with_it, without = f([circuit, circuit - {node}], "ACDC").tolist()
            if abs(with_it - without) < tau:
                circuit = circuit - {node}
        for node in circuit:
            kept_at[node] = max(kept_at[node], tau)
    return kept_at


def eap(bench: Bench) -> Scores:
    """One gradient."""
    return _attributed(bench, 1)


def eap_ig(bench: Bench) -> Scores:
    """Five gradients."""
    return _attributed(bench, 5)


def transformer_lens(bench: Bench) -> Scores:
    """One gradient, by TransformerLens's own tool, summed over positions and pairs."""
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    info, bridge = bench.engine.backend.info, bench.engine.backend.bridge  # type: ignore[attr-defined]  # the TransformerLens backend
    names = {node: f"blocks.{node.layer}.{'hook_mlp_out' if node.head is None else 'attn.hook_z'}" for node in info.nodes()}
    found: dict[Node, float] = dict.fromkeys(names, 0.0)
    bridge.requires_grad_(True)  # else the tool finds no graph
    try:
        for _, block in bench.engine.blocks():
            prompts, wanted = block.prompts, ["hook_embed", *sorted(set(names.values()))]  # the gradient has to pass every hook
            rows = torch.arange(len(prompts))

            def metric(logits: torch.Tensor, block: Block = block, rows: torch.Tensor = rows) -> torch.Tensor:
                own = block.prompts
                return measure(block.metric, logits[rows, own.last], own.answer, own.wrong, None).sum()

            clean = cache_activation_and_gradient(bridge, prompts.clean, metric, wanted, compute_gradient=False)
            corrupted = cache_activation_and_gradient(bridge, prompts.corrupted, metric, wanted)
            for node, name in names.items():
                slope = corrupted.gradients[name]
                assert slope is not None
                product = (clean.activations[name] - corrupted.activations[name]) * slope  # [pair pos d_model] or [pair pos head d_head]
                found[node] += float((product if node.head is None else product[:, :, node.head]).sum())
            block.meter.add(4.0 * len(prompts))  # two passes, and one back
    finally:
        bridge.requires_grad_(False)
    return {node: abs(value) for node, value in found.items()}


def patching(bench: Bench) -> Scores:
    """Noising, one node at a time."""
    found = node_effects(bench.engine, "noising")
    return {node: abs(float(value)) for node, value in zip(found.nodes, found.values, strict=True)}


def direct_logits(bench: Bench) -> Scores:
    """What a node writes towards the answer itself."""
    info, totals = bench.engine.backend.info, torch.zeros(len(bench.engine.backend.info.nodes()))
    for _, block in bench.engine.blocks():
        totals += torch.stack([_direct(block, node) for node in info.nodes()])
    return {node: abs(float(value)) for node, value in zip(info.nodes(), totals, strict=True)}


RIVALS: Mapping[str, Callable[[Bench], Scores]] = {
    "ACDC": acdc,
    "EAP": eap,
    "EAP-IG": eap_ig,
    "attribution patching (TransformerLens)": transformer_lens,
    "activation patching": patching,
    "direct logit attribution": direct_logits,
}


def _attributed(bench: Bench, steps: int) -> Scores:
    info = bench.engine.backend.info
    found: dict[Node, float] = dict.fromkeys(info.nodes(), 0.0)
    for _, block in bench.engine.blocks():
        heads = attributions(block, "clean", "z", steps).sum((0, 2))  # [layer head]
        mlps = None if info.attn_only else attributions(block, "clean", "mlp_out", steps).sum((0, 2))  # [layer]
        for node in found:
            assert node.layer is not None
            if node.head is not None:
                found[node] += float(heads[node.layer, node.head])
            elif mlps is not None:
                found[node] += float(mlps[node.layer])
    return {node: abs(value) for node, value in found.items()}


def _direct(block: Block, node: Node) -> torch.Tensor:
    assert node.layer is not None
    rows = torch.arange(len(block.prompts))
    site = Site("z" if node.head is not None else "mlp_out", node.layer)
    clean, corrupted = (block.activation(side, site)[rows, block.prompts.last] for side in ("clean", "corrupted"))
    change = clean - corrupted
    if node.head is not None:
        change = change[:, node.head] @ block.backend.head_weights(node.layer)[node.head]
    return (change * _slope(block)).sum()


def _slope(block: Block) -> torch.Tensor:
    """∂m/∂(final residual stream) at the answer position of the clean run, [pair d_model]."""
    prompts, last = block.prompts, Site("resid_post", block.backend.info.n_layers - 1)
    inputs = block.activation("clean", Site("resid_pre", 0)).detach().requires_grad_()
    with torch.enable_grad():
        outcome = block.backend.run(Batch(prompts.clean, prompts.last, 0, inputs), [last], grad=True)
        assert outcome.logits is not None
        metric = measure(block.metric, outcome.logits, prompts.answer, prompts.wrong, None)
        [slope] = torch.autograd.grad(metric.sum(), [outcome.activations[last]])
    block.meter.add(3.0 * len(prompts) / max(1, len(block.backend.info.nodes())))  # one pass and its way back for all nodes together
    return slope[torch.arange(len(prompts)), prompts.last]
