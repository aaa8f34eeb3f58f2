"""Other ways to find a circuit, at the level of nodes, on the same pairs, metric and ablation as ours. From their papers:

- *ACDC* (Conmy et al. 2023, arXiv 2304.14997): from the last node to the first, a node is dropped for good where that changes the metric by
  less than τ of the behaviour; a grid of τ.
- *EAP* (Syed et al. 2023, arXiv 2310.10348), its node form: |(corrupted − clean) · ∂m/∂node| on the clean run.
- *EAP-IG* (Hanna et al. 2024, arXiv 2403.17806): the same with the gradient averaged over five inputs between the two.

`benchmarks.lens` has those that are TransformerLens's own, `benchmarks.published` those of auto-circuit.

Each gives a score for every node. None comes with a threshold, so each is given the best one on discovery pairs: of its ranking's
prefixes (equal scores are not cut apart) the one that does best by our conditions (a) to (d), as points under both ablations; the
smaller first. That is the very rule by which ours chooses among the sets that it looked at; what is compared is where the sets come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks import lens
from benchmarks.lens import Scores
from discovery.agent.mend import examine
from discovery.engine import attributions
from discovery.evaluation import Bench, Faithfulness
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

TAUS = tuple(2.0**-n for n in range(1, 11))  # of m(U) − m(∅)


@dataclass(frozen=True)
class Found:
    """A rival's answer.

    Attributes:
        scores: the larger, the sooner a node is taken.
        circuit: the best prefix of that ranking.
        ranking: forward-pass equivalents of the scores alone.
        forward_equivalents: of all of it, the choice of the prefix included.
    """

    scores: Scores
    circuit: NodeSet
    ranking: float
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
    ranking = bench.engine.meter.spent
    return Found(scores, made[weights.index(min(weights))], ranking, ranking + cost)


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


RIVALS: Mapping[str, Callable[[Bench], Scores]] = {
    "ACDC": acdc,
    "EAP": eap,
    "EAP-IG": eap_ig,
    "attribution patching (TransformerLens)": lens.attribution_patching,
    "activation patching, noising (TransformerLens)": lens.activation_patching("noising"),
    "activation patching, both directions (TransformerLens)": lens.activation_patching("noising", "denoising"),
    "direct logit attribution (TransformerLens)": lens.direct_logit_attribution,
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
