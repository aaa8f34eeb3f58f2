"""Other ways to find a circuit, at the level of nodes, on the same pairs, metric and ablation as ours. Written from their papers:

- *ACDC* (Conmy et al. 2023, arXiv 2304.14997): from the last node to the first, a node is dropped for good where that changes the metric by
  less than τ of the behaviour, up or down; a grid of τ. A node's score is the largest τ at which it stays, so a prefix is the
  union of ACDC's circuits at that τ and at larger ones (they are seldom not nested).
- *EAP-IG* (Hanna et al. 2024, arXiv 2403.17806): |(clean − corrupted) · ∂m/∂node| with the gradient averaged over runs whose input
  embeddings lie between the two prompts'.

`benchmarks.methods.transformer_lens_tools` has those that are TransformerLens's own (EAP's node form too), `benchmarks.methods.auto_circuit_scores` those of auto-circuit.

Each gives a score for every node. None comes with a threshold, so each is given the best one on discovery pairs: of its ranking's
prefixes (equal scores are not cut apart) the one that does best by our conditions (a) to (d), as points under both ablations; the
smaller first. Ours mends what it finds by the same conditions, and where layer-matched sets are as good asks (e) too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.methods import transformer_lens_tools
from benchmarks.methods.transformer_lens_tools import Scores, sum_over_node
from discovery.agent.search.mend import find_faults
from discovery.backends.base import Batch, forward_order
from discovery.engine import SIDES
from discovery.evaluation import Faithfulness, SplitEvaluator
from discovery.methods.ablation import NodeSet
from discovery.metrics import measure
from discovery.sites import Site, output_site

ACDC_THRESHOLDS = tuple(2.0**-n for n in range(1, 11))  # of m(U) − m(∅)
INTEGRATION_STEPS = 5  # of integrated gradients


@dataclass(frozen=True)
class BaselineResult:
    """A rival's answer.

    Attributes:
        scores: the larger, the sooner a node is taken.
        circuit: the best prefix of that ranking.
        ranking: forward-pass equivalents of the scores alone.
        forward_equivalents: of all of it, the choice of the prefix included.
    """

    scores: Scores
    circuit: NodeSet
    ranking_cost: float
    forward_equivalents: float


def run_baseline(
    method: Callable[[SplitEvaluator], Scores],
    bench: SplitEvaluator,
    shared_evaluator: SplitEvaluator,
) -> BaselineResult:
    """Rank, and choose the prefix.

    Args:
        bench: fresh, so that it counts what the ranking costs.
        known: one for all rivals of a model: sets that another has asked for are not measured again, but counted.
    """
    scores = method(bench)
    made, asked = (
        ranking_prefixes(scores),
        {
            ablation: _RecordingFaithfulness(f)
            for ablation, f in shared_evaluator.f_by_ablation.items()
        },
    )
    weights: list[tuple[float, int]] = []
    for prefix in made:  # the smallest first; nothing is better than one without faults
        weights.append(find_faults(asked, prefix).severity)  # type: ignore[arg-type]  # they stand in for what they ask
        if weights[-1] == (0.0, 0):
            break
    cost = sum(f.whole.set_metric.estimate(list(f.sets)) for f in asked.values())
    ranking = bench.engine.meter.spent
    return BaselineResult(scores, made[weights.index(min(weights))], ranking, ranking + cost)


class _RecordingFaithfulness:
    """f, and which sets it was asked for."""

    def __init__(self, whole: Faithfulness) -> None:
        self.whole, self.everything, self.is_defined, self.n_pairs = (
            whole,
            whole.everything,
            whole.is_defined,
            whole.n_pairs,
        )
        self.sets: dict[NodeSet, None] = {}

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "", pairs: int | None = None
    ) -> torch.Tensor:
        self.sets |= dict.fromkeys(sets)
        return self.whole(sets, label, pairs)


def ranking_prefixes(scores: Scores) -> list[NodeSet]:
    """The nodes that score at least so much, for every score there is, the smallest set first."""
    return [
        frozenset(node for node in scores if scores[node] >= least)
        for least in sorted(set(scores.values()), reverse=True)
    ]


def score_by_acdc(bench: SplitEvaluator) -> Scores:
    """The largest τ at which a node stays."""
    f = bench.f("resample")
    order = sorted(f.everything, reverse=True)
    kept_at = dict.fromkeys(order, 0.0)
    for tau in ACDC_THRESHOLDS:
        circuit = f.everything
        for node in order:
            with_it, without = f([circuit, circuit - {node}], "ACDC").tolist()
            if abs(with_it - without) < tau:
                circuit = circuit - {node}
        for node in circuit:
            kept_at[node] = max(kept_at[node], tau)
    return kept_at


def score_by_eap_ig(bench: SplitEvaluator) -> Scores:
    """STEPS gradients, k/STEPS of the way from corrupted to clean, as the authors' code has it."""
    sites = {node: output_site(node) for node in bench.engine.backend.info.nodes()}
    kinds = sorted(set(sites.values()), key=forward_order)
    found = dict.fromkeys(sites, 0.0)
    for _, block in bench.engine.blocks():
        prompts, first = block.prompts, Site("resid_pre", 0)
        clean, corrupted = (block.activation(side, first) for side in SIDES)
        slopes = {site: torch.zeros_like(block.activation("clean", site)) for site in kinds}
        for step in range(1, INTEGRATION_STEPS + 1):
            inputs = (
                (corrupted + step / INTEGRATION_STEPS * (clean - corrupted))
                .detach()
                .requires_grad_()
            )
            with torch.enable_grad():
                outcome = block.run(
                    Batch(prompts.clean, prompts.answer_position, start=0, residual=inputs),
                    kinds,
                    grad=True,
                )
                assert outcome.logits is not None
                metric = measure(
                    block.metric, outcome.logits, prompts.answer, prompts.wrong, None
                ).sum()
                found_here = torch.autograd.grad(
                    metric, [outcome.activations[site] for site in kinds]
                )
            slopes = {
                site: slopes[site] + slope / INTEGRATION_STEPS
                for site, slope in zip(kinds, found_here, strict=True)
            }
        block.meter.add(3.0 * INTEGRATION_STEPS * len(prompts))  # a pass and its way back
        for node, site in sites.items():
            found[node] += sum_over_node(
                (block.activation("clean", site) - block.activation("corrupted", site))
                * slopes[site],
                node,
            )
    return {node: abs(value) for node, value in found.items()}


BASELINES: Mapping[str, Callable[[SplitEvaluator], Scores]] = {
    "ACDC (from the paper)": score_by_acdc,
    "EAP-IG (from the paper)": score_by_eap_ig,
    "EAP, gradient on clean (TransformerLens)": transformer_lens_tools.make_attribution_patching(
        "clean"
    ),
    "attribution patching (TransformerLens)": transformer_lens_tools.make_attribution_patching(
        "corrupted"
    ),
    "activation patching, noising (TransformerLens)": transformer_lens_tools.make_activation_patching(
        "noising"
    ),
    "activation patching, both directions (TransformerLens)": transformer_lens_tools.make_activation_patching(
        "noising", "denoising"
    ),
    "direct logit attribution (TransformerLens)": transformer_lens_tools.score_by_direct_logit_attribution,
}
