"""The truth of each case by brute force: which nodes move the metric in the company of some set of others.

f(S) = (m(S) − m(∅)) / (m(U) − m(∅)), m the mean over pairs of logit(answer) − logit(wrong) at the last position of the clean prompt,
with every node outside S replaced at all positions (the definitions of the project's evaluation). A node v belongs to the truth when
some S ⊆ U∖v has |f(S ∪ v) − f(S)| ≥ 0.1. So backups, opposing heads and cancelling twins belong; a large head without effect does not.

`resample` replaces by the node's value in the pair's own corrupted run; `mean` by its mean at the same position over the corrupted
prompts of the same template and token count in the whole task, leaving the pair itself out.

    python -m benchmarks.known_circuits.truth        recomputes truth.json (a few minutes on one core)
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
MIN_TRUE_EFFECT = 0.1
MAX_HIDDEN_EFFECT = 0.02
PAIRS_PER_TEMPLATE = 4
MAX_BATCH_ROWS = 1024
TRUTH_FILE = Path(__file__).with_name("truth.json")


@dataclass(frozen=True)
class PairGroup:
    """Pairs of one template, their tokens, and what each ablation puts in place of each node ([pair pos d_model])."""

    clean: Tensor
    corrupted: Tensor
    answers: Tensor
    wrongs: Tensor
    references: Mapping[Ablation, Mapping[str, Tensor]]

    def metric(self, logits: Tensor) -> Tensor:
        """logit(answer) − logit(wrong) at the last position, one number a pair; the rows are whole repetitions of the group."""
        last = logits[:, -1].unflatten(0, (-1, len(self.answers)))  # [repeat pair d_vocab]
        index = torch.arange(len(self.answers))
        return last[:, index, self.answers] - last[:, index, self.wrongs]


@dataclass(frozen=True)
class Truth:
    """What brute force says about one case under one ablation.

    Attributes:
        nodes: the truth, in universe order.
        largest: node -> the largest |f(S ∪ v) − f(S)| over all S.
        witness: node -> an S at which it is reached.
    """

    nodes: tuple[str, ...]
    largest: Mapping[str, float]
    witness: Mapping[str, tuple[str, ...]]


def group_pairs(
    case: KnownCircuit, per_template: int = PAIRS_PER_TEMPLATE
) -> tuple[PairGroup, ...]:
    """The first pairs of each template, with references over all pairs of that template."""
    found: dict[tuple[str, int], list[TokenPair]] = {}
    for pair in case.pairs:
        found.setdefault((pair.template, len(pair.clean)), []).append(pair)
    return tuple(_group(case, pairs, per_template) for pairs in found.values())


def _group(case: KnownCircuit, pairs: Sequence[TokenPair], count: int) -> PairGroup:
    clean, corrupted = (
        torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted")
    )
    values = run_forward(case.config, case.state, corrupted).nodes
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
    return PairGroup(clean[:count], corrupted[:count], answers, wrongs, references)


def subset_membership(case: KnownCircuit, masks: Sequence[int]) -> Mapping[str, Tensor]:
    """node -> for each subset (a bit mask over the universe), whether the node is in it."""
    table = torch.tensor(masks)
    return {node: (table >> bit & 1).bool() for bit, node in enumerate(case.universe)}


def measure_subsets(
    case: KnownCircuit, parts: Sequence[PairGroup], ablation: Ablation, masks: Sequence[int]
) -> Tensor:
    """m(S) for each subset S given as a bit mask, [subset]."""
    total, pairs = torch.zeros(len(masks), dtype=torch.float64), 0
    for part in parts:
        count = len(part.clean)
        step = max(1, MAX_BATCH_ROWS // count)
        for start in range(0, len(masks), step):
            chunk = masks[start : start + step]
            inside = subset_membership(case, chunk)
            replace = {
                node: Replacement(
                    value.repeat(len(chunk), 1, 1), ~inside[node].repeat_interleave(count)
                )
                for node, value in part.references[ablation].items()
            }
            seen = run_forward(case.config, case.state, part.clean.repeat(len(chunk), 1), replace)
            total[start : start + step] += part.metric(seen.logits).sum(1)
        pairs += count
    return total / pairs


def to_mask(case: KnownCircuit, nodes: Sequence[str]) -> int:
    """The bit mask of a set of nodes."""
    return sum(1 << case.universe.index(node) for node in nodes)


def measure_f(
    case: KnownCircuit,
    parts: Sequence[PairGroup],
    ablation: Ablation,
    subsets: Sequence[Sequence[str]],
) -> Tensor:
    """f(S) of some subsets, [subset]."""
    masks = [0, to_mask(case, case.universe), *(to_mask(case, nodes) for nodes in subsets)]
    metrics = measure_subsets(case, parts, ablation, masks)
    return (metrics[2:] - metrics[0]) / (metrics[1] - metrics[0])


def tabulate_f(case: KnownCircuit, parts: Sequence[PairGroup], ablation: Ablation) -> Tensor:
    """f of every subset of the universe, indexed by its bit mask."""
    metrics = measure_subsets(case, parts, ablation, range(2 ** len(case.universe)))
    return (metrics - metrics[0]) / (metrics[-1] - metrics[0])


def find_truth(nodes: Sequence[str], f: Tensor) -> Truth:
    """The truth of a universe whose every subset has been tabulated."""
    everything = torch.arange(len(f))
    largest: dict[str, float] = {}
    witness: dict[str, tuple[str, ...]] = {}
    for bit, node in enumerate(nodes):
        without = everything[(everything >> bit & 1) == 0]
        gaps = (f[without | 1 << bit] - f[without]).abs()
        chosen = int(without[gaps.argmax()])
        largest[node] = float(gaps.max())
        witness[node] = tuple(other for place, other in enumerate(nodes) if chosen >> place & 1)
    return Truth(
        tuple(node for node in nodes if largest[node] >= MIN_TRUE_EFFECT), largest, witness
    )


def measure_single_effects(
    case: KnownCircuit, parts: Sequence[PairGroup]
) -> Mapping[str, tuple[float, float]]:
    """node -> its (noising, denoising) effect alone, both normalised by m(clean) − m(corrupted), as in activation patching.

    Noising puts the node's corrupted value into the clean run; denoising its clean value into the corrupted run. All else is recomputed.
    """
    sums = torch.zeros(len(case.universe), 2, dtype=torch.float64)
    scale = 0.0
    for part in parts:
        runs = [
            run_forward(case.config, case.state, tokens) for tokens in (part.clean, part.corrupted)
        ]
        metrics = [part.metric(run.logits).sum() for run in runs]
        scale += float(metrics[0] - metrics[1])
        for row, node in enumerate(case.universe):
            noised, denoised = (
                part.metric(_patched(case, tokens, node, other).logits).sum()
                for tokens, other in ((part.clean, runs[1]), (part.corrupted, runs[0]))
            )
            sums[row] += torch.stack([metrics[0] - noised, denoised - metrics[1]])
    effects = (sums / scale).tolist()
    return {
        node: (noising, denoising)
        for node, (noising, denoising) in zip(case.universe, effects, strict=True)
    }


def _patched(case: KnownCircuit, tokens: Tensor, node: str, source: ForwardPass) -> ForwardPass:
    return run_forward(case.config, case.state, tokens, {node: source.nodes[node]})


def compute_fingerprint(case: KnownCircuit) -> str:
    """sha256 of the weights and of the pairs: what a stored truth is the truth of."""
    digest = hashlib.sha256(json.dumps([pair.record() for pair in case.pairs]).encode())
    for name in sorted(case.state):
        digest.update(name.encode() + case.state[name].numpy().tobytes())
    return digest.hexdigest()


def measure_truth(case: KnownCircuit) -> dict[str, Any]:
    """The record of one case in truth.json."""
    parts = group_pairs(case)
    record: dict[str, Any] = {
        "fingerprint": compute_fingerprint(case),
        "roles": dict(case.roles),
        "ablations": {},
    }
    singles = measure_single_effects(case, parts)
    for ablation in ABLATIONS:
        truth = find_truth(case.universe, tabulate_f(case, parts, ablation))
        record["ablations"][ablation] = {
            "truth": list(truth.nodes),
            "weakest_true": round(min(truth.largest[node] for node in truth.nodes), 4),
            "strongest_false": round(
                max(
                    (gap for node, gap in truth.largest.items() if node not in truth.nodes),
                    default=0.0,
                ),
                4,
            ),
            "largest": {node: round(gap, 6) for node, gap in truth.largest.items()},
            "witness": {node: list(truth.witness[node]) for node in truth.nodes},
        }
    record["singles"] = {
        node: [round(effect, 6) for effect in effects] for node, effects in singles.items()
    }
    true = {node for ablation in ABLATIONS for node in record["ablations"][ablation]["truth"]}
    record["hidden"] = [
        node
        for node in case.universe
        if node in true and max(map(abs, singles[node])) < MAX_HIDDEN_EFFECT
    ]
    return record


def load_truth(name: str, ablation: Ablation = "resample") -> Truth:
    """The stored truth of a case, by name."""
    stored = json.loads(TRUTH_FILE.read_text())[name]["ablations"][ablation]
    witness = {node: tuple(nodes) for node, nodes in stored["witness"].items()}
    return Truth(tuple(stored["truth"]), stored["largest"], witness)


def load_hidden_nodes(name: str) -> tuple[str, ...]:
    """The nodes of a case's truth whose stored effects alone are below 0.02 both ways: patching one node at a time cannot show them."""
    return tuple(json.loads(TRUTH_FILE.read_text())[name]["hidden"])


def main() -> None:
    """Recompute the stored truth of all cases, or of those named on the command line."""
    stored = json.loads(TRUTH_FILE.read_text()) if TRUTH_FILE.exists() else {}
    for name in sys.argv[1:] or KNOWN_CIRCUITS:
        stored[name] = measure_truth(build_known_circuit(name))
        for ablation, record in stored[name]["ablations"].items():
            margins = f"{record['weakest_true']:.3f} against {record['strongest_false']:.3f}"
            sys.stdout.write(
                f"{name:20} {ablation:9} {' '.join(record['truth'])}  ({margins}; hidden {stored[name]['hidden']})\n"
            )
    TRUTH_FILE.write_text(
        json.dumps({name: stored[name] for name in KNOWN_CIRCUITS if name in stored}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
