"""Random programs compiled to weights: any number of models whose circuits are known.

A seed draws a program in the terms of RASP (Weiss et al. 2021). One or two *carriers* select the
previous position and write its token. If there is a cue, a third head fetches the token to look
for. *Readers* select the positions whose carried token is the one asked for, and aggregate the
tokens there. Their output goes to the logits, or through an MLP that saturates (one reader is
enough) or has a threshold (two readers are needed). Gains, signs, places, the numbers of layers and
heads, noise and LayerNorm are drawn too. Every other node is a distractor, sometimes a loud one
without effect.

The truth is found by brute force over all subsets, as for the hand-built models. A program is
refused if brute force leaves a doubt (the effect of a node lies between MAX_FALSE_EFFECT and
MIN_CLEAR_EFFECT, or the two ablations disagree), or if the model is not always right.

    python -m benchmarks.known_circuits.random_programs

recomputes programs.json in about fifty minutes on one core.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.known_circuits.forward import run_forward
from benchmarks.known_circuits.hand_built import BROKEN, CUED, SWAPPED, TO_PREV
from benchmarks.known_circuits.known_circuit import KnownCircuit, LayerWeights, assemble
from benchmarks.known_circuits.prompts import Scheme, TokenPair, write_pairs
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

# A program is refused if a node's largest |f(S ∪ v) − f(S)| over all S lies between these bounds.
MAX_FALSE_EFFECT = 0.06
MIN_CLEAR_EFFECT = 0.15
PAIRS_PER_TEMPLATE = 60
N_PROGRAMS = 178
PROGRAMS_FILE = Path(__file__).with_name("programs.json")
# Numbers of layers and of heads in each layer, and whether there are MLPs.
MODEL_SHAPES = ((2, 4, False), (3, 4, False), (2, 4, True), (3, 3, True))
COMMAND = "python -m benchmarks.known_circuits.random_programs"


@dataclass(frozen=True)
class Program:
    """A compiled program and its truth."""

    seed: int
    known_circuit: KnownCircuit
    truth: frozenset[str]


def load_programs() -> Iterator[Program]:
    """Yield the programs whose truth has been computed, in the order of their seeds.

    Raises:
        ValueError: if a seed does not give the weights for which the truth was computed.
    """
    for seed, record in json.loads(PROGRAMS_FILE.read_text())["accepted"].items():
        circuit = compile_program(int(seed))
        if compute_fingerprint(circuit) != record["fingerprint"]:
            raise ValueError(
                f"Program {seed} is not the one whose truth is stored in {PROGRAMS_FILE.name}."
                f" To compute all truths again, run {COMMAND}."
            )
        yield Program(int(seed), circuit, frozenset(record["truth"]))


def compute_program(seed: int) -> Program | None:
    """Return the program of a seed with its truth, or None if there is a doubt about it."""
    circuit = compile_program(seed)
    if not does_task(circuit):
        return None
    groups = group_pairs(circuit)
    truths = set()
    for ablation in ABLATIONS:
        truth = find_truth(circuit.universe, tabulate_f(circuit, groups, ablation))
        if any(MAX_FALSE_EFFECT < gap < MIN_CLEAR_EFFECT for gap in truth.largest.values()):
            return None
        truths.add(frozenset(truth.nodes))
    return Program(seed, circuit, truths.pop()) if len(truths) == 1 else None


def does_task(circuit: KnownCircuit) -> bool:
    """Return whether the model is right on every clean prompt and the corruption hurts.

    "Right" means that the answer beats the wrong answer. The corruption has to lower the mean
    metric by at least half.
    """
    for length in {len(pair.clean) for pair in circuit.pairs}:
        pairs = [pair for pair in circuit.pairs if len(pair.clean) == length]
        clean = _metric_by_pair(circuit, pairs, "clean")
        corrupted = _metric_by_pair(circuit, pairs, "corrupted")
        if bool((clean <= 0).any()):
            return False
        if float((clean - corrupted).mean()) < 0.5 * float(clean.mean()):
            return False
    return True


def _metric_by_pair(circuit: KnownCircuit, pairs: Sequence[TokenPair], side: str) -> Tensor:
    """Return logit(answer) − logit(wrong) at the last position of one side, [pair]."""
    tokens = torch.tensor([getattr(pair, side) for pair in pairs])
    last = run_forward(circuit.config, circuit.state, tokens).logits[:, -1]
    rows = torch.arange(len(pairs))
    return last[rows, [p.answer for p in pairs]] - last[rows, [p.wrong for p in pairs]]


@dataclass(frozen=True, kw_only=True)
class PlacedProgram:
    """The heads and MLPs of a program at their places, before distractors fill the others.

    Attributes:
        layout: the subspaces in which the weights are written.
        heads: the program's heads by layer and number.
        mlps: the program's MLPs by layer.
        n_layers, n_heads: the shape of the model for which the program was drawn.
        has_mlps: whether that model has MLPs.
        norm: whether that model has LayerNorm.
        noise: the standard deviation of the distractors' weights in that model.
        scheme: how the prompt pairs are written.
    """

    layout: ResidualLayout
    heads: Mapping[tuple[int, int], Head]
    mlps: Mapping[int, Mlp]
    n_layers: int
    n_heads: int
    has_mlps: bool
    norm: bool
    noise: float
    scheme: Scheme


def compile_program(seed: int) -> KnownCircuit:
    """Draw the program of a seed and write its weights."""
    rng = np.random.default_rng([seed, 20])
    program = place_program(rng)
    layers = _fill_layers(program, rng)
    roles = [
        f"a{layer}.h{head} {weights.role}"
        for (layer, head), weights in sorted(program.heads.items())
    ]
    return assemble(
        f"program-{seed}",
        "; ".join(roles),
        layout=program.layout,
        layers=layers,
        pairs=write_pairs(program.scheme, program.layout, PAIRS_PER_TEMPLATE, seed),
        rng=rng,
        norm=0.17 if program.norm else None,
    )


def place_program_of_seed(seed: int, extra: Sequence[str] = ()) -> PlacedProgram:
    """Return the heads and MLPs of a seed's program, to be put into another model.

    Args:
        seed: the seed of `compile_program`.
        extra: further subspaces of the residual stream, which the program does not use.
    """
    return place_program(np.random.default_rng([seed, 20]), extra)


def place_program(rng: np.random.Generator, extra: Sequence[str] = ()) -> PlacedProgram:
    """Draw a program and place its heads and MLPs."""
    n_layers, n_heads, has_mlps = MODEL_SHAPES[rng.integers(len(MODEL_SHAPES))]
    cued = bool(rng.random() < 0.25)
    norm = bool(rng.random() < 0.4)
    through_mlp = has_mlps and not norm and bool(rng.random() < 0.6)
    n_carriers = 1 if norm or rng.random() < 0.6 else 2
    layout = _make_layout(cued=cued, through_mlp=through_mlp, further=extra)
    placement = _HeadPlacement(layout=layout, rng=rng, n_layers=n_layers, n_heads=n_heads)
    for _ in range(n_carriers):
        placement.place(0, previous_token_head(layout, TO_PREV))
    if cued:
        placement.place(0, cue_mover_head(layout, "qry"))
    mlps = _place_readers(placement, "qry" if cued else "tok", through_mlp=through_mlp, norm=norm)
    if rng.random() < 0.3:
        to_dead = (HeadOutput("dead", 3.0 if norm else 20.0),)
        placement.place(0, previous_token_head(layout, to_dead, role="loud without effect"))
    noise = float(rng.uniform(0.02, 0.08))
    may_swap = n_carriers == 1 and not through_mlp and not placement.backups
    return PlacedProgram(
        layout=layout,
        heads=placement.heads,
        mlps=mlps,
        n_layers=n_layers,
        n_heads=n_heads,
        has_mlps=has_mlps,
        norm=norm,
        noise=noise,
        scheme=_choose_scheme(rng, cued=cued, may_swap=may_swap),
    )


def _make_layout(*, cued: bool, through_mlp: bool, further: Sequence[str]) -> ResidualLayout:
    extra = ["prev"]
    if cued:
        extra.append("qry")
    if through_mlp:
        extra.append("hit")
    extra += ["dead", *further]
    return ResidualLayout(
        n_content=16 if cued else 20, n_ctx=14, extra=tuple(extra), flags=("fired",), cued=cued
    )


def _choose_scheme(rng: np.random.Generator, *, cued: bool, may_swap: bool) -> Scheme:
    """Choose the corruption. Redundant circuits need the broken one: see `hand_built`."""
    if cued:
        return CUED
    return SWAPPED if may_swap and rng.random() < 0.5 else BROKEN


@dataclass(kw_only=True)
class _HeadPlacement:
    """The heads that have been placed so far, by layer and number. The numbers are drawn."""

    layout: ResidualLayout
    rng: np.random.Generator
    n_layers: int
    n_heads: int
    heads: dict[tuple[int, int], Head] = field(default_factory=dict)
    backups: list[Head] = field(default_factory=list)

    def place(self, layer: int, head: Head) -> None:
        """Put a head into a free place of a layer. If the layer is full, leave the head out."""
        free = [number for number in range(self.n_heads) if (layer, number) not in self.heads]
        if free:
            self.heads[layer, int(self.rng.choice(free))] = head

    def draw_later_layer(self) -> int:
        """Draw a layer behind the carriers' layer."""
        return int(self.rng.integers(1, self.n_layers))


def _place_readers(
    placement: _HeadPlacement, query: str, *, through_mlp: bool, norm: bool
) -> Mapping[int, Mlp]:
    """Place the readers and return the MLPs through which they write, by layer."""
    layout = placement.layout
    rng = placement.rng
    sharp: dict[str, Any] = {"score": 24.0, "sink": 8.0} if norm else {}

    def make_reader(output: tuple[HeadOutput, ...], role: str, **options: Any) -> Head:
        return matching_head(layout, output, query=query, role=role, **options, **sharp)

    def place_weaker_reader(role: str, sign: int, low: float, high: float) -> None:
        layer = placement.draw_later_layer()
        output = HeadOutput("out", sign * float(rng.uniform(low, high)))
        placement.place(layer, make_reader((output,), role))

    if through_mlp:
        layer = placement.draw_later_layer()
        n_readers = int(rng.integers(1, 3))
        if rng.random() < 0.5:
            gain = 1.5  # one reader is enough
        else:
            gain = 0.7 if n_readers == 2 else 1.2  # two readers are needed, or there is only one
        for _ in range(n_readers):
            placement.place(layer, make_reader((HeadOutput("hit", gain),), "reader"))
        return {layer: saturating_mlp(layout, "hit")}
    first_outputs = (HeadOutput("out"), HeadOutput("fired"))
    placement.place(placement.draw_later_layer(), make_reader(first_outputs, "reader"))
    if rng.random() < 0.4:
        place_weaker_reader("second reader", 1, 0.3, 0.8)
    if rng.random() < 0.3:
        place_weaker_reader("opposing", -1, 0.25, 0.45)
    if not norm and placement.n_layers == 3 and rng.random() < 0.4:
        backup = make_reader((HeadOutput("out", 0.8),), "backup", silenced_by="fired")
        placement.backups.append(backup)
        placement.place(2, backup)
    return {}


def _fill_layers(program: PlacedProgram, rng: np.random.Generator) -> list[LayerWeights]:
    """Put distractors in all places that are still free."""
    layout = program.layout
    layers = []
    for layer in range(program.n_layers):
        heads = tuple(
            program.heads.get((layer, number))
            or distractor_head(layout, rng, program.noise, ("dead",))
            for number in range(program.n_heads)
        )
        mlp = program.mlps.get(layer)
        if program.has_mlps and mlp is None:
            mlp = distractor_mlp(layout, rng, program.noise / 2, 2 * layout.n_content)
        layers.append(LayerWeights(heads, mlp))
    return layers


def main() -> None:
    """Go through the seeds until enough programs are accepted. Stored programs are kept."""
    record: dict[str, Any] = {"tried": 0, "accepted": {}}
    if PROGRAMS_FILE.exists():
        record = json.loads(PROGRAMS_FILE.read_text())
    while len(record["accepted"]) < N_PROGRAMS:
        seed = record["tried"]
        program = compute_program(seed)
        record["tried"] += 1
        if program is not None:
            circuit = program.known_circuit
            truth = sorted(program.truth)
            record["accepted"][str(seed)] = {
                "fingerprint": compute_fingerprint(circuit),
                "truth": truth,
            }
            sys.stdout.write(
                f"{seed} {len(circuit.universe)} {' '.join(truth)}: {circuit.summary}\n"
            )
        PROGRAMS_FILE.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
