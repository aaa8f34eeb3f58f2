"""The cases: models whose weights are written by hand, so that the circuit is known before anything is measured.

All live on repeated tokens: "… A B … C D … A" is continued by B (answer) and not by D (wrong). A previous-token head writes, at each
position, which token came before; an induction head looks for the position whose predecessor is the current token, and copies what
stands there. Where nothing matches it rests on the first token, which it does not copy.

Two corruptions. *Swapped*: A and C change places in the first copies, so that the same prompt end asks for D. *Broken*: the first A
(where there is a cue, the cue too) becomes another token, so that nothing matches and neither B nor D is written. Redundancy needs the
broken one: with the swapped one an ablated head writes for D, and its partner cannot make up for that.

Every node that is not part of the construction is a distractor: a head or MLP with small random weights that reads and writes the whole
stream, the answer's subspace included. `python -m benchmarks.known_circuits.truth` computes what the truth is, by brute force.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.known_circuits.known_circuit import KnownCircuit, LayerWeights, assemble
from benchmarks.known_circuits.prompts import Scheme, write_pairs
from benchmarks.known_circuits.weights import (
    Head,
    HeadOutput,
    Mlp,
    ResidualLayout,
    and_mlp,
    cue_mover_head,
    distractor_head,
    distractor_mlp,
    matching_head,
    previous_token_head,
    saturating_mlp,
)

N_HEADS = 4
PAIRS_PER_TEMPLATE = 60
DISTRACTOR_STD = 0.08
SPACINGS = ((0, 1, 1), (2, 0, 2), (1, 2, 3), (3, 1, 0))
SWAPPED = Scheme((("A", "B"), ("C", "D")), (("C", "B"), ("A", "D")), ("A",), SPACINGS)
BROKEN = Scheme((("A", "B"), ("C", "D")), (("E", "B"), ("C", "D")), ("A",), SPACINGS)
CUED = Scheme((("A", "B"), ("C", "D")), (("E", "B"), ("C", "D")), ("=",), SPACINGS, cue=("A", "F"))
CONJUNCTION = Scheme(
    chunks=(("X", "A", "B"), ("X", "C", "D"), ("A", "E")),
    corrupted=(("A", "X", "B"), ("X", "C", "D"), ("A", "E")),
    query=("X", "A"),
    spacings=((0, 1, 1), (1, 1, 1), (0, 1, 3), (1, 1, 2)),
    wrongs=("D", "E"),
)
TO_PREV, TO_OUT = (HeadOutput("prev"),), (HeadOutput("out"),)


def induction(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A previous-token head and the induction head that reads it through its keys."""
    layout = ResidualLayout(24, 14)
    heads = [{2: previous_token_head(layout, TO_PREV)}, {1: matching_head(layout, TO_OUT)}]
    return _assemble_circuit("induction", induction, layout, heads, SWAPPED, noise)


def induction_layernorm(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """The induction circuit behind LayerNorm, which couples every node to every later one."""
    layout = ResidualLayout(24, 14)
    heads = [
        {1: previous_token_head(layout, TO_PREV)},
        {3: matching_head(layout, TO_OUT, score=24.0, sink=8.0)},
    ]
    return _assemble_circuit(
        "induction_layernorm", induction_layernorm, layout, heads, SWAPPED, noise, norm=0.17
    )


def or_mlp(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """Two induction heads write the same feature, and an MLP that saturates reads it: either head is enough."""
    layout = ResidualLayout(20, 14, ("prev", "hit"))
    to_hit = (HeadOutput("hit", 1.5),)
    heads = [
        {3: previous_token_head(layout, TO_PREV)},
        {0: matching_head(layout, to_hit), 2: matching_head(layout, to_hit)},
    ]
    return _assemble_circuit(
        "or_mlp", or_mlp, layout, heads, BROKEN, noise, {1: saturating_mlp(layout, "hit")}, d_mlp=40
    )


def or_softmax(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """Two previous-token heads write the same feature; the induction head's softmax is saturated by either."""
    layout = ResidualLayout(24, 14)
    heads = [
        {0: previous_token_head(layout, TO_PREV), 3: previous_token_head(layout, TO_PREV)},
        {2: matching_head(layout, TO_OUT)},
    ]
    return _assemble_circuit("or_softmax", or_softmax, layout, heads, BROKEN, noise)


def or_softmax_gated(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """As `or_softmax`, but what to look for is a cue that a third head fetches, and both cue and first copy are corrupted.

    The two previous-token heads have no effect alone in either direction: noising one leaves the other, and denoising one leaves the
    question corrupted. Only ablations of sets show them.
    """
    layout = ResidualLayout(16, 14, ("prev", "qry"), cued=True)
    first = {
        1: previous_token_head(layout, TO_PREV),
        2: previous_token_head(layout, TO_PREV),
        3: cue_mover_head(layout, "qry"),
    }
    return _assemble_circuit(
        "or_softmax_gated",
        or_softmax_gated,
        layout,
        [first, {0: matching_head(layout, TO_OUT, query="qry")}],
        CUED,
        noise,
    )


def backup(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A backup induction head in layer 2 that is silent while the main one of layer 1 fires, and else takes over at gain 0.8."""
    layout = ResidualLayout(20, 14, flags=("fired",))
    main = matching_head(layout, (HeadOutput("out"), HeadOutput("fired")))
    spare = matching_head(layout, (HeadOutput("out", 0.8),), silenced_by="fired", role="backup")
    return _assemble_circuit(
        "backup",
        backup,
        layout,
        [{1: previous_token_head(layout, TO_PREV)}, {3: main}, {0: spare}],
        BROKEN,
        noise,
    )


def opposing_030(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A head that writes against the answer, with 0.3 of the induction head's gain."""
    return _opposing("opposing_030", opposing_030, 0.30, noise)


def opposing_015(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A head that writes against the answer, with 0.15 of the induction head's gain."""
    return _opposing("opposing_015", opposing_015, 0.15, noise)


def slight_head(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A head that writes for the answer with 0.05 of the induction head's gain: a real effect, below the threshold of the truth."""
    layout = ResidualLayout(20, 14)
    second = {
        1: matching_head(layout, (HeadOutput("out", 0.05),), role="slight"),
        2: matching_head(layout, TO_OUT),
    }
    return _assemble_circuit(
        "slight_head",
        slight_head,
        layout,
        [{0: previous_token_head(layout, TO_PREV)}, second],
        SWAPPED,
        noise,
    )


def big_no_effect(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """Two heads with the largest activations of the model, which differ between clean and corrupted, and no effect.

    One writes the previous token where nobody reads; the other attends like the induction head and raises all logits alike.
    """
    layout = ResidualLayout(20, 14, ("prev", "dead"))
    role = "large without effect"
    first = {
        0: previous_token_head(layout, TO_PREV),
        2: previous_token_head(layout, (HeadOutput("dead", 40.0),), role=role),
    }
    second = {
        1: matching_head(
            layout, (HeadOutput("dead", 40.0), HeadOutput("out", 40.0, uniform=True)), role=role
        ),
        2: matching_head(layout, TO_OUT),
    }
    return _assemble_circuit(
        "big_no_effect", big_no_effect, layout, [first, second], SWAPPED, noise, blind_to=("dead",)
    )


def cancelling_twins(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """Two induction heads in layer 1 write the answer at +0.4 and −0.4; together nothing, so the layer's attention output shows nothing."""
    layout = ResidualLayout(20, 14)
    twins = {
        0: matching_head(layout, (HeadOutput("out", 0.4),), role="twin"),
        3: matching_head(layout, (HeadOutput("out", -0.4),), role="twin"),
    }
    heads = [{2: previous_token_head(layout, TO_PREV)}, twins, {1: matching_head(layout, TO_OUT)}]
    return _assemble_circuit("cancelling_twins", cancelling_twins, layout, heads, SWAPPED, noise)


def and_mlp_circuit(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """In "… X A B … X C D … A E … X A" an MLP fires for the token that both an "after A" head and a "two after X" head point at.

    Each head splits its attention between two matches, one of them the answer. The corruption turns X A B into A X B: both heads still
    find two matches, but no token is pointed at by both. The split turns on small differences of scores, so the noise is a third here
    and the match less sharp.
    """
    layout = ResidualLayout(16, 16, ("prev", "prev2", "one", "two"))
    to_prev2, role = (HeadOutput("prev2"),), "token before the previous"
    first = {
        1: previous_token_head(layout, TO_PREV),
        2: previous_token_head(layout, to_prev2, offset=2, role=role),
    }
    after = matching_head(
        layout, (HeadOutput("one", 2.0),), score=9.0, sink=4.0, role="feature: after A"
    )
    two_after = matching_head(
        layout,
        (HeadOutput("two", 2.0),),
        query="prev",
        key="prev2",
        score=9.0,
        sink=4.0,
        role="feature: two after X",
    )
    mlp = and_mlp(layout, ("one", "two"), threshold=1.5, gain=2.0, d_mlp=32)
    heads = [first, {0: after, 3: two_after}]
    return _assemble_circuit(
        "and_mlp", and_mlp_circuit, layout, heads, CONJUNCTION, noise / 3, {1: mlp}, d_mlp=32
    )


def _opposing(
    name: str, builder: Callable[..., KnownCircuit], gain: float, noise: float
) -> KnownCircuit:
    layout = ResidualLayout(20, 14)
    against = matching_head(layout, (HeadOutput("out", -gain),), role="opposing")
    heads = [
        {3: previous_token_head(layout, TO_PREV)},
        {0: matching_head(layout, TO_OUT)},
        {2: against},
    ]
    return _assemble_circuit(name, builder, layout, heads, SWAPPED, noise)


def _assemble_circuit(
    name: str,
    builder: Callable[..., KnownCircuit],
    layout: ResidualLayout,
    heads: Sequence[Mapping[int, Head]],
    scheme: Scheme,
    noise: float,
    mlps: Mapping[int, Mlp] | None = None,
    d_mlp: int | None = None,
    blind_to: Sequence[str] = (),
    norm: float | None = None,
) -> KnownCircuit:
    """The constructed nodes in their places, distractors everywhere else."""
    seed = zlib.crc32(name.encode())
    rng = np.random.default_rng(seed)
    layers: list[LayerWeights] = []
    for index, placed in enumerate(heads):
        row = tuple(
            placed[head] if head in placed else distractor_head(layout, rng, noise, blind_to)
            for head in range(N_HEADS)
        )
        mlp = (
            None
            if d_mlp is None
            else (mlps or {}).get(index) or distractor_mlp(layout, rng, noise / 2, d_mlp)
        )
        layers.append(LayerWeights(row, mlp))
    pairs = write_pairs(scheme, layout, PAIRS_PER_TEMPLATE, seed)
    return assemble(name, builder.__doc__ or "", layout, layers, pairs, rng, norm)


KNOWN_CIRCUITS: Mapping[str, Callable[..., KnownCircuit]] = {
    "induction": induction,
    "induction_layernorm": induction_layernorm,
    "or_mlp": or_mlp,
    "or_softmax": or_softmax,
    "or_softmax_gated": or_softmax_gated,
    "backup": backup,
    "opposing_030": opposing_030,
    "opposing_015": opposing_015,
    "slight_head": slight_head,
    "big_no_effect": big_no_effect,
    "cancelling_twins": cancelling_twins,
    "and_mlp": and_mlp_circuit,
}


def build_known_circuit(name: str, noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """One case by name."""
    return KNOWN_CIRCUITS[name](noise)
