"""Other methods that find a circuit of nodes, on the same pairs, metric and ablation as ours.

Two are written here from their papers:

- *ACDC* (Conmy et al. 2023, arXiv 2304.14997): from the last node to the first, a node is dropped
  for good if that changes the metric by less than τ of the behaviour, up or down. τ runs over a
  grid. A node's score is the largest τ at which it stays, so a prefix of the ranking is the union
  of ACDC's circuits at some τ and at all larger ones. (Only rarely are these not nested.)
- *EAP-IG* (Hanna et al. 2024, arXiv 2403.17806): |(clean − corrupted) · ∂m/∂node|, with the
  gradient averaged over runs whose input embeddings lie between those of the two prompts.

TransformerLens's own tools are in `transformer_lens_tools`, the node form of EAP among them.
`auto_circuit_scores` runs the methods of auto-circuit.

Each method gives every node a score, and none comes with a threshold. So each is given the best one
on discovery pairs: of the prefixes of its ranking (equal scores are not separated), the one that
does best by our conditions (a) to (d), as point values under both ablations, and of equally good
ones the smallest. Our own agent adds and removes nodes by the same conditions, and if layer-matched
alternatives are as good, it also asks condition (e).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.methods.scoring import MethodResult, Scores, ranking_prefixes
from benchmarks.methods.transformer_lens_tools import (
    make_activation_patching,
    make_attribution_patching,
    score_by_direct_logit_attribution,
    sum_over_node,
)
from discovery.agent.search.faults import add_drop_shares, find_faults
from discovery.agent.search.measured import UnscreenedFunction
from discovery.backends.base import Batch, forward_order
from discovery.engine import SIDES, Block
from discovery.evaluation import Faithfulness, SplitEvaluator
from discovery.methods.ablation import NodeSet
from discovery.metrics import measure
from discovery.sites import Site, output_site

ScoringMethod = Callable[[SplitEvaluator], Scores]
ACDC_THRESHOLDS = tuple(2.0**-n for n in range(1, 11))  # shares of m(U) − m(∅)
INTEGRATION_STEPS = 5


def run_baseline(
    method: ScoringMethod, evaluator: SplitEvaluator, shared_evaluator: SplitEvaluator
) -> MethodResult:
    """Rank the nodes and choose the best prefix of the ranking.

    Args:
        method: gives every node a score.
        evaluator: one that has measured nothing yet, so that it counts what the ranking costs.
        shared_evaluator: one for all methods on a model. A set that another method has asked for is
            not measured again, but its cost is counted.
    """
    scores = method(evaluator)
    prefixes = ranking_prefixes(scores)
    recorders = {
        ablation: _RecordingFaithfulness(f)
        for ablation, f in shared_evaluator.f_by_ablation.items()
    }
    severities: list[tuple[float, int]] = []
    for prefix in prefixes:  # the smallest first; nothing is better than one without faults
        faults = add_drop_shares(recorders, prefix, find_faults(recorders, prefix, seed=0))
        severities.append(faults.order[:2])
        if severities[-1] == (0.0, 0):
            break
    prefix_cost = sum(f.faithfulness.set_metric.estimate(list(f.sets)) for f in recorders.values())
    ranking_cost = evaluator.engine.meter.spent
    return MethodResult(
        circuit=prefixes[severities.index(min(severities))],
        scores=scores,
        circuit_cost=ranking_cost + prefix_cost,
        ranking_cost=ranking_cost,
    )


class _RecordingFaithfulness(UnscreenedFunction):
    """f on all pairs, together with the sets for which it was asked.

    The others get no worse a judge than we do, so nothing is screened on a few pairs.
    """

    def __init__(self, faithfulness: Faithfulness) -> None:
        self.faithfulness = faithfulness
        self.everything = faithfulness.everything
        self.n_pairs = faithfulness.n_pairs
        self.is_defined = faithfulness.is_defined
        self.sets: dict[NodeSet, None] = {}

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Tensor:
        self.sets |= dict.fromkeys(sets)
        return self.faithfulness(sets, label)


def score_by_acdc(evaluator: SplitEvaluator) -> Scores:
    """Score each node by the largest τ at which it stays."""
    f = evaluator.f("resample")
    order = sorted(f.everything, reverse=True)
    largest_tau = dict.fromkeys(order, 0.0)
    for tau in ACDC_THRESHOLDS:
        circuit = f.everything
        for node in order:
            f_with, f_without = f([circuit, circuit - {node}], "ACDC").tolist()
            if abs(f_with - f_without) < tau:
                circuit = circuit - {node}
        for node in circuit:
            largest_tau[node] = max(largest_tau[node], tau)
    return largest_tau


def score_by_eap_ig(evaluator: SplitEvaluator) -> Scores:
    """Score each node by integrated gradients along the input embeddings.

    As in the authors' code, step k of n lies k/n of the way from corrupted to clean.
    """
    sites = {node: output_site(node) for node in evaluator.engine.backend.info.nodes()}
    unique_sites = sorted(set(sites.values()), key=forward_order)
    scores = dict.fromkeys(sites, 0.0)
    for _, block in evaluator.engine.blocks():
        slopes = _integrate_slopes(block, unique_sites)
        for node, site in sites.items():
            change = block.activation("clean", site) - block.activation("corrupted", site)
            scores[node] += sum_over_node(change * slopes[site], node)
    return {node: abs(score) for node, score in scores.items()}


def _integrate_slopes(block: Block, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Average the gradient of the summed metric at every site over `INTEGRATION_STEPS` runs."""
    prompts = block.prompts
    clean, corrupted = (block.activation(side, Site("resid_pre", 0)) for side in SIDES)
    slopes = {site: torch.zeros_like(block.activation("clean", site)) for site in sites}
    for step in range(1, INTEGRATION_STEPS + 1):
        point = corrupted + step / INTEGRATION_STEPS * (clean - corrupted)
        batch = Batch(
            tokens=prompts.clean,
            answer_position=prompts.answer_position,
            residual=point.detach().requires_grad_(),
        )
        with torch.enable_grad():
            outcome = block.run(batch, sites, grad=True)
            assert outcome.logits is not None
            metric = measure(block.metric, outcome.logits, prompts.answer, prompts.wrong, None)
            activations = [outcome.activations[site] for site in sites]
            gradients = torch.autograd.grad(metric.sum(), activations)
        slopes = {
            site: slopes[site] + gradient / INTEGRATION_STEPS
            for site, gradient in zip(sites, gradients, strict=True)
        }
    # A forward and a backward pass cost three forward passes.
    block.meter.add(3.0 * INTEGRATION_STEPS * len(prompts))
    return slopes


BASELINES: Mapping[str, ScoringMethod] = {
    "ACDC (from the paper)": score_by_acdc,
    "EAP-IG (from the paper)": score_by_eap_ig,
    "EAP, gradient on clean (TransformerLens)": make_attribution_patching("clean"),
    "attribution patching (TransformerLens)": make_attribution_patching("corrupted"),
    "activation patching, noising (TransformerLens)": make_activation_patching("noising"),
    "activation patching, both directions (TransformerLens)": make_activation_patching(
        "noising", "denoising"
    ),
    "direct logit attribution (TransformerLens)": score_by_direct_logit_attribution,
}
