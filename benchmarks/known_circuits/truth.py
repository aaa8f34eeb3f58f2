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

from benchmarks.known_circuits.forward import Pass, Replacement, forward
from benchmarks.known_circuits.hand_built import CASES, build
from benchmarks.known_circuits.known_circuit import Case
from benchmarks.known_circuits.prompts import Pair

Ablation = Literal["resample", "mean"]
ABLATIONS: tuple[Ablation, ...] = ("resample", "mean")
THRESHOLD = 0.1
HIDDEN_BELOW = 0.02
PAIRS_PER_TEMPLATE = 4
ROWS = 1024
STORED = Path(__file__).with_name("truth.json")


@dataclass(frozen=True)
class Group:
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


def groups(case: Case, per_template: int = PAIRS_PER_TEMPLATE) -> tuple[Group, ...]:
    """The first pairs of each template, with references over all pairs of that template."""
    found: dict[tuple[str, int], list[Pair]] = {}
    for pair in case.pairs:
        found.setdefault((pair.template, len(pair.clean)), []).append(pair)
    return tuple(_group(case, pairs, per_template) for pairs in found.values())


def _group(case: Case, pairs: Sequence[Pair], count: int) -> Group:
    clean, corrupted = (torch.tensor([getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted"))
    values = forward(case.config, case.state, corrupted).nodes
    means = {node: (value.sum(0, keepdim=True) - value) / (len(pairs) - 1) for node, value in values.items()}
    references: dict[Ablation, dict[str, Tensor]] = {
        "resample": {node: value[:count] for node, value in values.items()},
        "mean": {node: value[:count] for node, value in means.items()},
    }
    answers, wrongs = (torch.tensor([getattr(pair, field) for pair in pairs[:count]]) for field in ("answer", "wrong"))
    return Group(clean[:count], corrupted[:count], answers, wrongs, references)


def kept(case: Case, masks: Sequence[int]) -> Mapping[str, Tensor]:
    """node -> for each subset (a bit mask over the universe), whether the node is in it."""
    table = torch.tensor(masks)
    return {node: (table >> bit & 1).bool() for bit, node in enumerate(case.universe)}


def subset_metrics(case: Case, parts: Sequence[Group], ablation: Ablation, masks: Sequence[int]) -> Tensor:
    """m(S) for each subset S given as a bit mask, [subset]."""
    total, pairs = torch.zeros(len(masks), dtype=torch.float64), 0
    for part in parts:
        count = len(part.clean)
        step = max(1, ROWS // count)
        for start in range(0, len(masks), step):
            chunk = masks[start : start + step]
            inside = kept(case, chunk)
            replace = {
                node: Replacement(value.repeat(len(chunk), 1, 1), ~inside[node].repeat_interleave(count))
                for node, value in part.references[ablation].items()
            }
            seen = forward(case.config, case.state, part.clean.repeat(len(chunk), 1), replace)
            total[start : start + step] += part.metric(seen.logits).sum(1)
        pairs += count
    return total / pairs


def mask_of(case: Case, nodes: Sequence[str]) -> int:
    """The bit mask of a set of nodes."""
    return sum(1 << case.universe.index(node) for node in nodes)


def faithfulness(case: Case, parts: Sequence[Group], ablation: Ablation, subsets: Sequence[Sequence[str]]) -> Tensor:
    """f(S) of some subsets, [subset]."""
    masks = [0, mask_of(case, case.universe), *(mask_of(case, nodes) for nodes in subsets)]
    metrics = subset_metrics(case, parts, ablation, masks)
    return (metrics[2:] - metrics[0]) / (metrics[1] - metrics[0])


def tabulate(case: Case, parts: Sequence[Group], ablation: Ablation) -> Tensor:
    """f of every subset of the universe, indexed by its bit mask."""
    metrics = subset_metrics(case, parts, ablation, range(2 ** len(case.universe)))
    return (metrics - metrics[0]) / (metrics[-1] - metrics[0])


def truth_of(nodes: Sequence[str], f: Tensor) -> Truth:
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
    return Truth(tuple(node for node in nodes if largest[node] >= THRESHOLD), largest, witness)


def single_effects(case: Case, parts: Sequence[Group]) -> Mapping[str, tuple[float, float]]:
    """node -> its (noising, denoising) effect alone, both normalised by m(clean) − m(corrupted), as in activation patching.

    Noising puts the node's corrupted value into the clean run; denoising its clean value into the corrupted run. All else is recomputed.
    """
    sums = torch.zeros(len(case.universe), 2, dtype=torch.float64)
    scale = 0.0
    for part in parts:
        runs = [forward(case.config, case.state, tokens) for tokens in (part.clean, part.corrupted)]
        metrics = [part.metric(run.logits).sum() for run in runs]
        scale += float(metrics[0] - metrics[1])
        for row, node in enumerate(case.universe):
            noised, denoised = (
                part.metric(_patched(case, tokens, node, other).logits).sum()
                for tokens, other in ((part.clean, runs[1]), (part.corrupted, runs[0]))
            )
            sums[row] += torch.stack([metrics[0] - noised, denoised - metrics[1]])
    effects = (sums / scale).tolist()
    return {node: (noising, denoising) for node, (noising, denoising) in zip(case.universe, effects, strict=True)}


def _patched(case: Case, tokens: Tensor, node: str, source: Pass) -> Pass:
    return forward(case.config, case.state, tokens, {node: source.nodes[node]})


def fingerprint(case: Case) -> str:
    """sha256 of the weights and of the pairs: what a stored truth is the truth of."""
    digest = hashlib.sha256(json.dumps([pair.record() for pair in case.pairs]).encode())
    for name in sorted(case.state):
        digest.update(name.encode() + case.state[name].numpy().tobytes())
    return digest.hexdigest()


def measure(case: Case) -> dict[str, Any]:
    """The record of one case in truth.json."""
    parts = groups(case)
    record: dict[str, Any] = {"fingerprint": fingerprint(case), "roles": dict(case.roles), "ablations": {}}
    singles = single_effects(case, parts)
    for ablation in ABLATIONS:
        truth = truth_of(case.universe, tabulate(case, parts, ablation))
        record["ablations"][ablation] = {
            "truth": list(truth.nodes),
            "weakest_true": round(min(truth.largest[node] for node in truth.nodes), 4),
            "strongest_false": round(max((gap for node, gap in truth.largest.items() if node not in truth.nodes), default=0.0), 4),
            "largest": {node: round(gap, 6) for node, gap in truth.largest.items()},
            "witness": {node: list(truth.witness[node]) for node in truth.nodes},
        }
    record["singles"] = {node: [round(effect, 6) for effect in effects] for node, effects in singles.items()}
    true = {node for ablation in ABLATIONS for node in record["ablations"][ablation]["truth"]}
    record["hidden"] = [node for node in case.universe if node in true and max(map(abs, singles[node])) < HIDDEN_BELOW]
    return record


def known(name: str, ablation: Ablation = "resample") -> Truth:
    """The stored truth of a case, by name."""
    stored = json.loads(STORED.read_text())[name]["ablations"][ablation]
    witness = {node: tuple(nodes) for node, nodes in stored["witness"].items()}
    return Truth(tuple(stored["truth"]), stored["largest"], witness)


def hidden(name: str) -> tuple[str, ...]:
    """The nodes of a case's truth whose stored effects alone are below 0.02 both ways: patching one node at a time cannot show them."""
    return tuple(json.loads(STORED.read_text())[name]["hidden"])


def main() -> None:
    """Recompute the stored truth of all cases, or of those named on the command line."""
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    for name in sys.argv[1:] or CASES:
        stored[name] = measure(build(name))
        for ablation, record in stored[name]["ablations"].items():
            margins = f"{record['weakest_true']:.3f} against {record['strongest_false']:.3f}"
            sys.stdout.write(f"{name:20} {ablation:9} {' '.join(record['truth'])}  ({margins}; hidden {stored[name]['hidden']})\n")
    STORED.write_text(json.dumps({name: stored[name] for name in CASES if name in stored}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
