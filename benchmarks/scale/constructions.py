"""The circuits that are hidden among many nodes: which nodes they have and in which order.

A construction is a list of stages. The nodes of a stage read what earlier stages write, so each
stage has a layer of its own, behind the layer of the stage before. `benchmarks.scale.embedding`
draws the layers and fills every other place of a large model with bystanders.

There are seven kinds. All but the last are built of the heads and MLPs of
`benchmarks.known_circuits.hand_built`.

- chain: a previous-token head, and one or two induction heads that read it.
- or: two nodes, of which one is enough. They are previous-token heads that saturate a softmax, or
  induction heads that saturate an MLP. Of three such nodes any two would pass for the circuit, so
  three have no unique truth.
- backup: a head that acts only if another head is absent.
- and: an MLP that writes only if both heads that it reads have written.
- cancelling: two heads that write the same with opposite signs, beside the head that does the work.
- negative: a head that writes against the answer.
- program: a random program whose truth is known by brute force in a small model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from benchmarks.known_circuits.hand_built import (
    BROKEN,
    CONJUNCTION,
    SWAPPED,
    TO_OUT,
    TO_PREV,
)
from benchmarks.known_circuits.prompts import Scheme
from benchmarks.known_circuits.random_programs import (
    PROGRAMS_FILE,
    PlacedProgram,
    place_program_of_seed,
)
from benchmarks.known_circuits.weights import (
    Head,
    HeadOutput,
    Mlp,
    ResidualLayout,
    and_mlp,
    matching_head,
    previous_token_head,
    saturating_mlp,
)

Kind = Literal["chain", "or", "backup", "and", "cancelling", "negative", "program"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIDE = "side"  # the subspace through which some bystanders speak to one another
N_CONTENT = 12
N_CTX = 12


@dataclass(frozen=True)
class StageHead:
    """A head of a construction, and whether it belongs to the true circuit."""

    head: Head
    is_true: bool = True


@dataclass(frozen=True)
class Stage:
    """Nodes that are put into one layer.

    Attributes:
        heads: the heads, whose places in the layer are drawn.
        mlp: the MLP of the layer, which is always part of the true circuit.
    """

    heads: tuple[StageHead, ...]
    mlp: Mlp | None = None


@dataclass(frozen=True, kw_only=True)
class Construction:
    """A circuit that waits to be put into a large model.

    Attributes:
        kind: the kind of the circuit.
        layout: the subspaces of the residual stream, `SIDE` included.
        stages: the nodes, in the order of their layers.
        scheme: how the prompt pairs are written.
        query: the subspace that holds the token to look for, at the end of the prompt.
        writer_stage: the index of the first stage that writes to `out`.
        net: what the whole circuit writes for the answer, where one head with gain 1 writes 1.
        peak: the most that any part of the circuit writes for the answer or against it.
    """

    kind: Kind
    layout: ResidualLayout
    stages: tuple[Stage, ...]
    scheme: Scheme
    query: str = "tok"
    writer_stage: int = 1
    net: float = 1.0
    peak: float = 1.0


def new_layout(*extra: str, flags: tuple[str, ...] = (), n_ctx: int = N_CTX) -> ResidualLayout:
    """Return a narrow residual stream with `prev`, some further subspaces and `SIDE`."""
    return ResidualLayout(
        n_content=N_CONTENT, n_ctx=n_ctx, extra=("prev", *extra, SIDE), flags=flags
    )


def build_chain(rng: np.random.Generator) -> Construction:
    """Build a previous-token head and one or two induction heads that read it."""
    layout = new_layout()
    share = float(rng.uniform(0.3, 0.5)) if rng.random() < 0.5 else 0.0
    gains = (1.0 - share, share) if share else (1.0,)
    readers = tuple(
        Stage((StageHead(matching_head(layout, (HeadOutput("out", gain),))),)) for gain in gains
    )
    return Construction(
        kind="chain",
        layout=layout,
        stages=(Stage((StageHead(previous_token_head(layout, TO_PREV)),)), *readers),
        scheme=SWAPPED if rng.random() < 0.5 else BROKEN,
    )


def build_or(rng: np.random.Generator) -> Construction:
    """Build two nodes of which one is enough, before a softmax or before an MLP."""
    if rng.random() < 0.5:
        layout = new_layout()
        carriers = [StageHead(previous_token_head(layout, TO_PREV)) for _ in range(2)]
        reader = StageHead(matching_head(layout, TO_OUT))
        return Construction(
            kind="or",
            layout=layout,
            stages=(Stage(tuple(carriers)), Stage((reader,))),
            scheme=BROKEN,
        )
    layout = new_layout("hit")
    to_hit = (HeadOutput("hit", 1.5),)
    readers = [StageHead(matching_head(layout, to_hit)) for _ in range(2)]
    stages = (
        Stage((StageHead(previous_token_head(layout, TO_PREV)),)),
        Stage(tuple(readers)),
        Stage((), saturating_mlp(layout, "hit")),
    )
    return Construction(kind="or", layout=layout, stages=stages, scheme=BROKEN, writer_stage=2)


def build_backup(rng: np.random.Generator) -> Construction:
    """Build an induction head, and one that takes over if the first is absent."""
    layout = new_layout(flags=("fired",))
    main = matching_head(layout, (HeadOutput("out"), HeadOutput("fired")))
    gain = float(rng.uniform(0.6, 1.0))
    spare = matching_head(layout, (HeadOutput("out", gain),), silenced_by="fired", role="backup")
    stages = (
        Stage((StageHead(previous_token_head(layout, TO_PREV)),)),
        Stage((StageHead(main),)),
        Stage((StageHead(spare),)),
    )
    return Construction(kind="backup", layout=layout, stages=stages, scheme=BROKEN)


def build_and(rng: np.random.Generator) -> Construction:
    """Build an MLP that writes only if two heads agree.

    Either both heads look for the same token, or one looks for the token after A and the other for
    the token two after X, as in `hand_built.and_mlp_circuit`.
    """
    if rng.random() < 0.5:
        layout = new_layout("one", "two")
        readers = [
            StageHead(matching_head(layout, (HeadOutput(name, 1.2),), role=f"half: {name}"))
            for name in ("one", "two")
        ]
        carriers = [StageHead(previous_token_head(layout, TO_PREV))]
        scheme = BROKEN
        mlp_gain = 1.2
    else:
        layout = new_layout("prev2", "one", "two", n_ctx=16)
        to_one = (HeadOutput("one", 2.0),)
        to_two = (HeadOutput("two", 2.0),)
        after = matching_head(layout, to_one, score=9.0, sink=4.0, role="after A")
        two_after = matching_head(
            layout,
            to_two,
            query="prev",
            key="prev2",
            score=9.0,
            sink=4.0,
            role="two after X",
        )
        readers = [StageHead(after), StageHead(two_after)]
        to_prev2 = (HeadOutput("prev2"),)
        carriers = [
            StageHead(previous_token_head(layout, TO_PREV)),
            StageHead(previous_token_head(layout, to_prev2, offset=2)),
        ]
        scheme = CONJUNCTION
        mlp_gain = 2.0
    mlp = and_mlp(layout, ("one", "two"), threshold=1.5, gain=mlp_gain, d_mlp=2 * N_CONTENT)
    stages = (Stage(tuple(carriers)), Stage(tuple(readers)), Stage((), mlp))
    return Construction(kind="and", layout=layout, stages=stages, scheme=scheme, writer_stage=2)


def build_cancelling(rng: np.random.Generator) -> Construction:
    """Build two heads that cancel each other, beside the induction head."""
    layout = new_layout()
    gain = float(rng.uniform(0.25, 0.5))
    plus = matching_head(layout, (HeadOutput("out", gain),), role="twin")
    minus = matching_head(layout, (HeadOutput("out", -gain),), role="twin")
    stages = (
        Stage((StageHead(previous_token_head(layout, TO_PREV)),)),
        Stage((StageHead(plus), StageHead(minus))),
        Stage((StageHead(matching_head(layout, TO_OUT)),)),
    )
    return Construction(
        kind="cancelling", layout=layout, stages=stages, scheme=SWAPPED, peak=1.0 + gain
    )


def build_negative(rng: np.random.Generator) -> Construction:
    """Build an induction head and a head that writes against it."""
    layout = new_layout()
    gain = float(rng.uniform(0.15, 0.4))
    against = matching_head(layout, (HeadOutput("out", -gain),), role="opposing")
    second = [StageHead(matching_head(layout, TO_OUT)), StageHead(against)]
    if rng.random() < 0.5:
        second.reverse()
    stages = (
        Stage((StageHead(previous_token_head(layout, TO_PREV)),)),
        *(Stage((head,)) for head in second),
    )
    return Construction(
        kind="negative", layout=layout, stages=stages, scheme=SWAPPED, net=1.0 - gain
    )


def build_program(seed: int) -> Construction:
    """Return the random program of a seed whose truth is stored in programs.json."""
    program = place_program_of_seed(seed, extra=(SIDE,))
    truth = set(json.loads(PROGRAMS_FILE.read_text())["accepted"][str(seed)]["truth"])
    stages: list[Stage] = []
    writer_stage: int | None = None
    for layer in range(program.n_layers):
        heads = tuple(
            StageHead(head, f"a{layer}.h{number}" in truth)
            for (place, number), head in sorted(program.heads.items())
            if place == layer
        )
        mlp = program.mlps.get(layer)
        if not heads and mlp is None:
            continue
        writes = mlp is not None or any(_gain_on_answer(program, part.head) for part in heads)
        if writes and writer_stage is None:
            writer_stage = len(stages)
        stages.append(Stage(heads, mlp))
    if writer_stage is None:
        raise ValueError(f"Program {seed} writes nothing. Use a seed of {PROGRAMS_FILE.name}.")
    gains = [_gain_on_answer(program, head) for head in program.heads.values()]
    net = 1.0 if program.mlps else _sum_without_backup(program)
    positive = sum(gain for gain in gains if gain > 0)
    return Construction(
        kind="program",
        layout=program.layout,
        stages=tuple(stages),
        scheme=program.scheme,
        query="tok" if program.scheme.cue is None else "qry",
        writer_stage=writer_stage,
        net=net,
        peak=max(net, positive),
    )


def list_program_seeds() -> list[int]:
    """Return the seeds of the accepted programs without LayerNorm, in order.

    LayerNorm divides by the size of all that 156 nodes write, so a program that was drawn for a
    model of 12 nodes would not keep its truth.
    """
    accepted = json.loads(PROGRAMS_FILE.read_text())["accepted"]
    return [seed for seed in map(int, accepted) if not place_program_of_seed(seed).norm]


def _gain_on_answer(program: PlacedProgram, head: Head) -> float:
    """Return how much of a content token a head writes to `out`."""
    return float(head.W_O[0, program.layout.content("out")[0]])


def _sum_without_backup(program: PlacedProgram) -> float:
    return sum(
        _gain_on_answer(program, head) for head in program.heads.values() if head.role != "backup"
    )


HAND_BUILT: Mapping[str, Callable[[np.random.Generator], Construction]] = {
    "chain": build_chain,
    "or": build_or,
    "backup": build_backup,
    "and": build_and,
    "cancelling": build_cancelling,
    "negative": build_negative,
}
