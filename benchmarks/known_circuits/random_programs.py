"""Random programs compiled to weights: any number of models whose circuits are known, from a seed each.

A program is drawn in the terms of RASP (Weiss et al. 2021): one or two *carriers* select the previous position and write what stands there
(where there is a cue, a third head fetches what to look for), *readers* select the positions whose carried token is the one asked for
and aggregate what stands there, and what they write goes to the output or through an MLP that saturates (one reader is enough) or
has a threshold (two are needed). Gains, signs, places, numbers of layers and heads, noise and LayerNorm are drawn too; every other
node is a distractor, now and then a loud one without effect. Truth is brute force over all subsets, as for the cases written by
hand. A program is refused where brute force leaves a doubt (a node between CLEAR_BELOW and CLEAR_ABOVE, or the two ablations disagree) or
where the model is not always right.

    python -m benchmarks.known_circuits.random_programs        recomputes programs.json (about fifty minutes on one core)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.known_circuits.forward import run_forward
from benchmarks.known_circuits.hand_built import BROKEN, CUED, SWAPPED, TO_PREV
from benchmarks.known_circuits.known_circuit import KnownCircuit, LayerWeights, assemble
from benchmarks.known_circuits.prompts import write_pairs
from benchmarks.known_circuits.truth import (
    ABLATIONS,
    compute_fingerprint,
    find_truth,
    group_pairs,
    tabulate_f,
)
from benchmarks.known_circuits.weights import (
    Head,
    HeadOutput,
    Mlp,
    ResidualLayout,
    cue_mover_head,
    distractor_head,
    distractor_mlp,
    matching_head,
    previous_token_head,
    saturating_mlp,
)

MAX_FALSE_EFFECT, MIN_CLEAR_EFFECT = 0.06, 0.15  # of the largest |f(S ∪ v) − f(S)| over S
PAIRS_PER_TEMPLATE = 60
N_PROGRAMS = 178
PROGRAMS_FILE = Path(__file__).with_name("programs.json")
MODEL_SHAPES = (
    (2, 4, False),
    (3, 4, False),
    (2, 4, True),
    (3, 3, True),
)  # layers, heads a layer, whether there are MLPs


@dataclass(frozen=True)
class Program:
    """A compiled program and its truth."""

    seed: int
    known_circuit: KnownCircuit
    truth: frozenset[str]


def load_programs() -> Iterator[Program]:
    """The programs whose truth has been computed, in the order of their seeds.

    Raises:
        ValueError: where a seed does not give the weights that the truth was computed for.
    """
    for seed, record in json.loads(PROGRAMS_FILE.read_text())["accepted"].items():
        case = compile_program(int(seed))
        if compute_fingerprint(case) != record["fingerprint"]:
            raise ValueError(
                f"program {seed} is another than the one whose truth is stored: run python -m benchmarks.known_circuits.random_programs"
            )
        yield Program(int(seed), case, frozenset(record["truth"]))


def compute_program(seed: int) -> Program | None:
    """The program of a seed with its truth, unless that leaves a doubt."""
    case = compile_program(seed)
    if not does_task(case):
        return None
    parts, found = group_pairs(case), set()
    for ablation in ABLATIONS:
        truth = find_truth(case.universe, tabulate_f(case, parts, ablation))
        if any(MAX_FALSE_EFFECT < gap < MIN_CLEAR_EFFECT for gap in truth.largest.values()):
            return None
        found.add(frozenset(truth.nodes))
    return Program(seed, case, found.pop()) if len(found) == 1 else None


def does_task(case: KnownCircuit) -> bool:
    """Whether the answer beats the wrong answer on every clean prompt, and the corruption lowers the metric."""
    for length in {len(pair.clean) for pair in case.pairs}:
        pairs = [pair for pair in case.pairs if len(pair.clean) == length]
        rows, answer, wrong = (
            torch.arange(len(pairs)),
            [p.answer for p in pairs],
            [p.wrong for p in pairs],
        )
        metrics = []
        for side in ("clean", "corrupted"):
            last = run_forward(
                case.config, case.state, torch.tensor([getattr(pair, side) for pair in pairs])
            ).logits[:, -1]
            metrics.append(last[rows, answer] - last[rows, wrong])
        if bool((metrics[0] <= 0).any()) or float((metrics[0] - metrics[1]).mean()) < 0.5 * float(
            metrics[0].mean()
        ):
            return False
    return True


def compile_program(seed: int) -> KnownCircuit:
    """The program of a seed, compiled."""
    rng = np.random.default_rng([seed, 20])
    n_layers, n_heads, has_mlps = MODEL_SHAPES[rng.integers(len(MODEL_SHAPES))]
    cued, norm = bool(rng.random() < 0.25), bool(rng.random() < 0.4)
    through = has_mlps and not norm and bool(rng.random() < 0.6)
    carriers = 1 if norm or rng.random() < 0.6 else 2
    layout = ResidualLayout(
        16 if cued else 20,
        14,
        ("prev", *(("qry",) if cued else ()), *(("hit",) if through else ()), "dead"),
        ("fired",),
        cued,
    )
    plan = _HeadPlacement(layout, rng, n_layers, n_heads, {}, [])
    for _ in range(carriers):
        plan.place(0, previous_token_head(layout, TO_PREV))
    if cued:
        plan.place(0, cue_mover_head(layout, "qry"))
    mlps = _readers(plan, "qry" if cued else "tok", through=through, norm=norm)
    if rng.random() < 0.3:
        plan.place(
            0,
            previous_token_head(
                layout, (HeadOutput("dead", 3.0 if norm else 20.0),), role="loud without effect"
            ),
        )
    noise = float(rng.uniform(0.02, 0.08))
    scheme = (
        CUED
        if cued
        else SWAPPED
        if carriers == 1 and not through and not plan.spare and rng.random() < 0.5
        else BROKEN
    )
    layers = []
    for layer in range(n_layers):
        heads = tuple(
            plan.heads.get((layer, h)) or distractor_head(layout, rng, noise, ("dead",))
            for h in range(n_heads)
        )
        width = 2 * layout.n_content if has_mlps else None
        layers.append(
            LayerWeights(
                heads,
                None
                if width is None
                else mlps.get(layer) or distractor_mlp(layout, rng, noise / 2, width),
            )
        )
    pairs = write_pairs(scheme, layout, PAIRS_PER_TEMPLATE, seed)
    words = "; ".join(
        f"a{layer}.h{h} {head.role}" for (layer, h), head in sorted(plan.heads.items())
    )
    return assemble(f"program-{seed}", words, layout, layers, pairs, rng, 0.17 if norm else None)


@dataclass
class _HeadPlacement:
    """Which head stands where; places are drawn."""

    layout: ResidualLayout
    rng: np.random.Generator
    n_layers: int
    n_heads: int
    heads: dict[tuple[int, int], Head]
    spare: list[Head]

    def place(self, layer: int, head: Head) -> None:
        """Into a free place of a layer; where there is none, left out."""
        free = [h for h in range(self.n_heads) if (layer, h) not in self.heads]
        if free:
            self.heads[layer, int(self.rng.choice(free))] = head

    def later(self) -> int:
        """A layer after the carriers'."""
        return int(self.rng.integers(1, self.n_layers))


def _readers(plan: _HeadPlacement, query: str, *, through: bool, norm: bool) -> Mapping[int, Mlp]:
    """Place the readers; the MLPs that they write through, by layer."""
    layout, rng = plan.layout, plan.rng
    sharp: dict[str, Any] = {"score": 24.0, "sink": 8.0} if norm else {}

    def reader(writes: tuple[HeadOutput, ...], role: str, silenced_by: str | None = None) -> Head:
        return matching_head(
            layout, writes, query=query, role=role, silenced_by=silenced_by, **sharp
        )

    if through:  # one head is enough, or it takes two
        layer, count = plan.later(), int(rng.integers(1, 3))
        gain = 1.5 if rng.random() < 0.5 else 0.7 if count == 2 else 1.2
        for _ in range(count):
            plan.place(layer, reader((HeadOutput("hit", gain),), "reader"))
        return {layer: saturating_mlp(layout, "hit")}
    plan.place(plan.later(), reader((HeadOutput("out"), HeadOutput("fired")), "reader"))
    if rng.random() < 0.4:
        plan.place(
            plan.later(),
            reader((HeadOutput("out", float(rng.uniform(0.3, 0.8))),), "second reader"),
        )
    if rng.random() < 0.3:
        plan.place(
            plan.later(), reader((HeadOutput("out", -float(rng.uniform(0.25, 0.45))),), "opposing")
        )
    if not norm and plan.n_layers == 3 and rng.random() < 0.4:
        spare = reader((HeadOutput("out", 0.8),), "backup", "fired")
        plan.spare.append(spare)
        plan.place(2, spare)
    return {}


def main() -> None:
    """Go through seeds until enough programs are accepted; what is there already is kept."""
    found: dict[str, Any] = (
        json.loads(PROGRAMS_FILE.read_text())
        if PROGRAMS_FILE.exists()
        else {"tried": 0, "accepted": {}}
    )
    while len(found["accepted"]) < N_PROGRAMS:
        seed = found["tried"]
        made = compute_program(seed)
        found["tried"] += 1
        if made is not None:
            found["accepted"][str(seed)] = {
                "fingerprint": compute_fingerprint(made.known_circuit),
                "truth": sorted(made.truth),
            }
            sys.stdout.write(
                f"{seed} {len(made.known_circuit.universe)} {' '.join(sorted(made.truth))}: {made.known_circuit.summary}\n"
            )
        PROGRAMS_FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
