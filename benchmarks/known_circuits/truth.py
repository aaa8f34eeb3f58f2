"""The true circuit of each hand-built model, by brute force over all subsets.

The truth holds the nodes that move the metric in the company of some set of other nodes.

f(S) = (m(S) − m(∅)) / (m(U) − m(∅)). m is the mean over pairs of logit(answer) − logit(wrong) at
the last position of the clean prompt, with every node outside S replaced at all positions. These
are the definitions of the project's evaluation. A node v belongs to the truth if some S ⊆ U∖v has
|f(S ∪ v) − f(S)| ≥ 0.1. So backup heads, opposing heads and cancelling twins belong to it, and a
large head without effect does not.

`resample` replaces a node's value by its value in the pair's own corrupted run. `mean` replaces it
by its mean at the same position over the corrupted prompts of the same template and token count in
the whole task, without the pair itself.

    python -m benchmarks.known_circuits.truth [NAME ...]

recomputes truth.json in a few minutes on one core.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.known_circuits.forward import ForwardPass, Replacement, run_forward
from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.known_circuit import KnownCircuit
from benchmarks.known_circuits.prompts import TokenPair

Ablation = Literal["resample", "mean"]
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean")
MIN_TRUE_EFFECT = 0.1  # of |f(S ∪ v) − f(S)|, for some S
MAX_HIDDEN_EFFECT = 0.02  # of a node alone, in either direction
PAIRS_PER_TEMPLATE = 4
MAX_BATCH_ROWS = 1024
TRUTH_FILE = Path(__file__).with_name("truth.json")


@dataclass(frozen=True, kw_only=True)
class PairGroup:
    """Pairs of one template and what the ablations put in place of each node.

    Attributes:
        clean, corrupted: token ids [pair pos].
        answers, wrongs: token ids [pair].
        references: ablation -> node -> the value [pair pos d_model] that replaces it.
    """

    clean: Tensor
    corrupted: Tensor
    answers: Tensor
    wrongs: Tensor
    references: Mapping[Ablation, Mapping[str, Tensor]]

    def metric(self, logits: Tensor) -> Tensor:
        """Return logit(answer) − logit(wrong) at the last position, [repeat pair].

        The rows of `logits` [repeat*pair pos d_vocab] are whole repetitions of the group.
        """
        last = logits[:, -1].unflatten(0, (-1, len(self.answers)))  # [repeat pair d_vocab]
        index = torch.arange(len(self.answers))
        return last[:, index, self.answers] - last[:, index, self.wrongs]


@dataclass(frozen=True)
class Truth:
    """The truth of one model under one ablation.

    Attributes:
        nodes: the truth, in the order of the universe.
        largest: node v -> the largest |f(S ∪ v) − f(S)| over all S.
        witness: node -> an S for which that largest value is reached.
    """

    nodes: tuple[str, ...]
    largest: Mapping[str, float]
    witness: Mapping[str, tuple[str, ...]]


def group_pairs(
    circuit: KnownCircuit, per_template: int = PAIRS_PER_TEMPLATE
) -> tuple[PairGroup, ...]:
    """Return the first pairs of each template, with references over all pairs of the template."""
    pairs_by_template: dict[tuple[str, int], list[TokenPair]] = {}
    for pair in circuit.pairs:
        pairs_by_template.setdefault((pair.template, len(pair.clean)), []).append(pair)
    groups = pairs_by_template.values()
    return tuple(_make_group(circuit, pairs, per_template) for pairs in groups)


def _make_group(circuit: KnownCircuit, pairs: Sequence[TokenPair], count: int) -> PairGroup:
    clean, corrupted = (
        torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted")
    )
    values = run_forward(circuit.config, circuit.state, corrupted).nodes
    means = {
        node: (value.sum(0, keepdim=True) - value) / (len(pairs) - 1)
        for node, value in values.items()
    }
    references: dict[Ablation, dict[str, Tensor]] = {
        "resample": {node: value[:count] for node, value in values.items()},
        "mean": {node: value[:count] for node, value in means.items()},
    }
    answers, wrongs = (
        torch.tensor([getattr(pair, field) for pair in pairs[:count]])
        for field in ("answer", "wrong")
    )
    return PairGroup(
        clean=clean[:count],
        corrupted=corrupted[:count],
        answers=answers,
        wrongs=wrongs,
        references=references,
    )


def subset_membership(circuit: KnownCircuit, masks: Sequence[int]) -> Mapping[str, Tensor]:
    """Return for each node whether it is in each subset, [subset].

    The subsets are bit masks over the universe.
    """
    table = torch.tensor(masks)
    return {node: (table >> bit & 1).bool() for bit, node in enumerate(circuit.universe)}


def measure_subsets(
    circuit: KnownCircuit, groups: Sequence[PairGroup], ablation: Ablation, masks: Sequence[int]
) -> Tensor:
    """Measure m(S) for each subset S, given as a bit mask, [subset]."""
    total = torch.zeros(len(masks), dtype=torch.float64)
    n_pairs = 0
    for group in groups:
        count = len(group.clean)
        step = max(1, MAX_BATCH_ROWS // count)
        for start in range(0, len(masks), step):
            chunk = masks[start : start + step]
            inside = subset_membership(circuit, chunk)
            replace = {
                node: Replacement(
                    value.repeat(len(chunk), 1, 1), ~inside[node].repeat_interleave(count)
                )
                for node, value in group.references[ablation].items()
            }
            tokens = group.clean.repeat(len(chunk), 1)
            logits = run_forward(circuit.config, circuit.state, tokens, replace).logits
            total[start : start + step] += group.metric(logits).sum(1)
        n_pairs += count
    return total / n_pairs


def to_mask(circuit: KnownCircuit, nodes: Sequence[str]) -> int:
    """Return the bit mask of a set of nodes."""
    return sum(1 << circuit.universe.index(node) for node in nodes)


def measure_f(
    circuit: KnownCircuit,
    groups: Sequence[PairGroup],
    ablation: Ablation,
    subsets: Sequence[Sequence[str]],
) -> Tensor:
    """Measure f(S) of some subsets, [subset]."""
    masks = [0, to_mask(circuit, circuit.universe), *(to_mask(circuit, nodes) for nodes in subsets)]
    metrics = measure_subsets(circuit, groups, ablation, masks)
    return (metrics[2:] - metrics[0]) / (metrics[1] - metrics[0])


def tabulate_f(circuit: KnownCircuit, groups: Sequence[PairGroup], ablation: Ablation) -> Tensor:
    """Measure f of every subset of the universe, indexed by its bit mask."""
    metrics = measure_subsets(circuit, groups, ablation, range(2 ** len(circuit.universe)))
    return (metrics - metrics[0]) / (metrics[-1] - metrics[0])


def find_truth(nodes: Sequence[str], f: Tensor) -> Truth:
    """Find the truth from a table of f that holds every subset of the nodes."""
    everything = torch.arange(len(f))
    largest: dict[str, float] = {}
    witness: dict[str, tuple[str, ...]] = {}
    for bit, node in enumerate(nodes):
        without = everything[(everything >> bit & 1) == 0]
        gaps = (f[without | 1 << bit] - f[without]).abs()
        mask = int(without[gaps.argmax()])
        largest[node] = float(gaps.max())
        witness[node] = tuple(other for place, other in enumerate(nodes) if mask >> place & 1)
    truth = tuple(node for node in nodes if largest[node] >= MIN_TRUE_EFFECT)
    return Truth(truth, largest, witness)


def measure_single_effects(
    circuit: KnownCircuit, groups: Sequence[PairGroup]
) -> Mapping[str, tuple[float, float]]:
    """Return each node's (noising, denoising) effect alone, divided by m(clean) − m(corrupted).

    These are the effects of activation patching. Noising puts the node's corrupted value into the
    clean run, denoising its clean value into the corrupted run. Everything else is recomputed.
    """
    sums = torch.zeros(len(circuit.universe), 2, dtype=torch.float64)
    scale = 0.0
    for group in groups:
        clean = run_forward(circuit.config, circuit.state, group.clean)
        corrupted = run_forward(circuit.config, circuit.state, group.corrupted)
        clean_metric = group.metric(clean.logits).sum()
        corrupted_metric = group.metric(corrupted.logits).sum()
        scale += float(clean_metric - corrupted_metric)
        for row, node in enumerate(circuit.universe):
            noised = _run_patched(circuit, group.clean, node, corrupted)
            denoised = _run_patched(circuit, group.corrupted, node, clean)
            noising = clean_metric - group.metric(noised.logits).sum()
            denoising = group.metric(denoised.logits).sum() - corrupted_metric
            sums[row] += torch.stack([noising, denoising])
    effects = (sums / scale).tolist()
    return {
        node: (noising, denoising)
        for node, (noising, denoising) in zip(circuit.universe, effects, strict=True)
    }


def _run_patched(
    circuit: KnownCircuit, tokens: Tensor, node: str, source: ForwardPass
) -> ForwardPass:
    return run_forward(circuit.config, circuit.state, tokens, {node: source.nodes[node]})


def compute_fingerprint(circuit: KnownCircuit) -> str:
    """Return the sha256 of the weights and pairs, which identifies what a stored truth is about."""
    digest = hashlib.sha256(json.dumps([pair.record() for pair in circuit.pairs]).encode())
    for name in sorted(circuit.state):
        digest.update(name.encode() + circuit.state[name].numpy().tobytes())
    return digest.hexdigest()


def measure_truth(circuit: KnownCircuit) -> dict[str, Any]:
    """Return the record of one model in truth.json."""
    groups = group_pairs(circuit)
    singles = measure_single_effects(circuit, groups)
    truths = {
        ablation: find_truth(circuit.universe, tabulate_f(circuit, groups, ablation))
        for ablation in ABLATIONS
    }
    true_nodes = {node for truth in truths.values() for node in truth.nodes}
    return {
        "fingerprint": compute_fingerprint(circuit),
        "roles": dict(circuit.roles),
        "ablations": {ablation: _truth_record(truth) for ablation, truth in truths.items()},
        "singles": {
            node: [round(effect, 6) for effect in effects] for node, effects in singles.items()
        },
        "hidden": [
            node
            for node in circuit.universe
            if node in true_nodes and max(map(abs, singles[node])) < MAX_HIDDEN_EFFECT
        ],
    }


def _truth_record(truth: Truth) -> dict[str, Any]:
    true_gaps = [truth.largest[node] for node in truth.nodes]
    false_gaps = [gap for node, gap in truth.largest.items() if node not in truth.nodes]
    return {
        "truth": list(truth.nodes),
        "weakest_true": round(min(true_gaps), 4),
        "strongest_false": round(max(false_gaps, default=0.0), 4),
        "largest": {node: round(gap, 6) for node, gap in truth.largest.items()},
        "witness": {node: list(truth.witness[node]) for node in truth.nodes},
    }


def load_truth(name: str, ablation: Ablation = "resample") -> Truth:
    """Load the stored truth of a hand-built model by name."""
    stored = json.loads(TRUTH_FILE.read_text())[name]["ablations"][ablation]
    witness = {node: tuple(nodes) for node, nodes in stored["witness"].items()}
    return Truth(tuple(stored["truth"]), stored["largest"], witness)


def load_hidden_nodes(name: str) -> tuple[str, ...]:
    """Load the true nodes of a hand-built model that single-node patching cannot show.

    Alone, each of them has an effect below 0.02 in both directions.
    """
    return tuple(json.loads(TRUTH_FILE.read_text())[name]["hidden"])


def main() -> None:
    """Recompute the stored truth of all models, or of those named on the command line."""
    stored = json.loads(TRUTH_FILE.read_text()) if TRUTH_FILE.exists() else {}
    for name in sys.argv[1:] or KNOWN_CIRCUITS:
        stored[name] = measure_truth(build_known_circuit(name))
        for ablation, record in stored[name]["ablations"].items():
            margins = f"{record['weakest_true']:.3f} against {record['strongest_false']:.3f}"
            truth = " ".join(record["truth"])
            hidden = stored[name]["hidden"]
            sys.stdout.write(f"{name:20} {ablation:9} {truth}  ({margins}; hidden {hidden})\n")
    in_order = {name: stored[name] for name in KNOWN_CIRCUITS if name in stored}
    TRUTH_FILE.write_text(json.dumps(in_order, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
