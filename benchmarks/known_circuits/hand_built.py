"""Twelve models whose weights are written by hand, so that the circuit is known in advance.

All tasks use repeated tokens: "… A B … C D … A" is continued by B (the answer) and not by D (the
wrong answer). At each position, a previous-token head writes which token came before. An induction
head looks for the position whose predecessor is the current token and copies the token there. If
nothing matches, it attends to the first token, which it does not copy.

There are two corruptions. *Swapped*: A and C change places in their first copies, so that the same
prompt end asks for D. *Broken*: the first A (and the cue, if there is one) becomes another token,
so that nothing matches and neither B nor D is written. The redundant circuits need the broken one:
under the swapped one an ablated head writes for D, and its partner cannot make up for that.

Every node that is not part of the construction is a distractor: a head or MLP with small random
weights that reads and writes the whole stream, the subspace of the answer included.
`python -m benchmarks.known_circuits.truth` computes the true circuits by brute force.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.known_circuits.known_circuit import KnownCircuit, LayerWeights, assemble
from benchmarks.known_circuits.prompts import QUERY_MARK, Scheme, write_pairs
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
SWAPPED = Scheme(
    chunks=(("A", "B"), ("C", "D")),
    corrupted=(("C", "B"), ("A", "D")),
    query=("A",),
    spacings=SPACINGS,
)
BROKEN = Scheme(
    chunks=(("A", "B"), ("C", "D")),
    corrupted=(("E", "B"), ("C", "D")),
    query=("A",),
    spacings=SPACINGS,
)
CUED = Scheme(
    chunks=(("A", "B"), ("C", "D")),
    corrupted=(("E", "B"), ("C", "D")),
    query=(QUERY_MARK,),
    spacings=SPACINGS,
    cue=("A", "F"),
)
CONJUNCTION = Scheme(
    chunks=(("X", "A", "B"), ("X", "C", "D"), ("A", "E")),
    corrupted=(("A", "X", "B"), ("X", "C", "D"), ("A", "E")),
    query=("X", "A"),
    spacings=((0, 1, 1), (1, 1, 1), (0, 1, 3), (1, 1, 2)),
    wrongs=("D", "E"),
)
TO_PREV = (HeadOutput("prev"),)
TO_OUT = (HeadOutput("out"),)


def induction(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A previous-token head and the induction head that reads it through its keys."""
    layout = ResidualLayout(n_content=24, n_ctx=14)
    heads = [{2: previous_token_head(layout, TO_PREV)}, {1: matching_head(layout, TO_OUT)}]
    return _assemble_circuit(
        "induction", induction, layout=layout, heads=heads, scheme=SWAPPED, noise=noise
    )


def induction_layernorm(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """The induction circuit behind LayerNorm, which couples every node to every later one."""
    layout = ResidualLayout(n_content=24, n_ctx=14)
    heads = [
        {1: previous_token_head(layout, TO_PREV)},
        {3: matching_head(layout, TO_OUT, score=24.0, sink=8.0)},
    ]
    return _assemble_circuit(
        "induction_layernorm",
        induction_layernorm,
        layout=layout,
        heads=heads,
        scheme=SWAPPED,
        noise=noise,
        norm=0.17,
    )


def or_mlp(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """Two induction heads write one feature, and an MLP that saturates reads it.

    Either head is enough.
    """
    layout = ResidualLayout(n_content=20, n_ctx=14, extra=("prev", "hit"))
    to_hit = (HeadOutput("hit", 1.5),)
    heads = [
        {3: previous_token_head(layout, TO_PREV)},
        {0: matching_head(layout, to_hit), 2: matching_head(layout, to_hit)},
    ]
    return _assemble_circuit(
        "or_mlp",
        or_mlp,
        layout=layout,
        heads=heads,
        scheme=BROKEN,
        noise=noise,
        mlps={1: saturating_mlp(layout, "hit")},
        d_mlp=40,
    )


def or_softmax(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """Two previous-token heads write one feature.

    Either of them saturates the softmax of the induction head that reads it.
    """
    layout = ResidualLayout(n_content=24, n_ctx=14)
    heads = [
        {0: previous_token_head(layout, TO_PREV), 3: previous_token_head(layout, TO_PREV)},
        {2: matching_head(layout, TO_OUT)},
    ]
    return _assemble_circuit(
        "or_softmax", or_softmax, layout=layout, heads=heads, scheme=BROKEN, noise=noise
    )


def or_softmax_gated(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """As `or_softmax`, but a third head fetches a cue that says which token to look for.

    The corruption changes both the cue and the first copy. So the two previous-token heads have no
    effect alone in either direction: when one is noised, the other remains, and when one is
    denoised, the cue is still corrupted. Only ablations of sets show them.
    """
    layout = ResidualLayout(n_content=16, n_ctx=14, extra=("prev", "qry"), cued=True)
    first_layer = {
        1: previous_token_head(layout, TO_PREV),
        2: previous_token_head(layout, TO_PREV),
        3: cue_mover_head(layout, "qry"),
    }
    return _assemble_circuit(
        "or_softmax_gated",
        or_softmax_gated,
        layout=layout,
        heads=[first_layer, {0: matching_head(layout, TO_OUT, query="qry")}],
        scheme=CUED,
        noise=noise,
    )


def backup(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A backup induction head in layer 2 that is silent while the main head in layer 1 fires.

    If the main head does not fire, the backup head takes over at gain 0.8.
    """
    layout = ResidualLayout(n_content=20, n_ctx=14, flags=("fired",))
    main = matching_head(layout, (HeadOutput("out"), HeadOutput("fired")))
    spare = matching_head(layout, (HeadOutput("out", 0.8),), silenced_by="fired", role="backup")
    return _assemble_circuit(
        "backup",
        backup,
        layout=layout,
        heads=[{1: previous_token_head(layout, TO_PREV)}, {3: main}, {0: spare}],
        scheme=BROKEN,
        noise=noise,
    )


def opposing_030(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A head that writes against the answer, with 0.3 of the induction head's gain."""
    return _opposing("opposing_030", opposing_030, 0.30, noise)


def opposing_015(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A head that writes against the answer, with 0.15 of the induction head's gain."""
    return _opposing("opposing_015", opposing_015, 0.15, noise)


def slight_head(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """A head that writes for the answer with 0.05 of the induction head's gain.

    Its effect is real, but below the threshold of the truth.
    """
    layout = ResidualLayout(n_content=20, n_ctx=14)
    second_layer = {
        1: matching_head(layout, (HeadOutput("out", 0.05),), role="slight"),
        2: matching_head(layout, TO_OUT),
    }
    return _assemble_circuit(
        "slight_head",
        slight_head,
        layout=layout,
        heads=[{0: previous_token_head(layout, TO_PREV)}, second_layer],
        scheme=SWAPPED,
        noise=noise,
    )


def big_no_effect(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """Two heads with the model's largest activations, which the corruption changes, and no effect.

    One writes the previous token into a subspace that nobody reads. The other attends like the
    induction head and raises all logits alike.
    """
    layout = ResidualLayout(n_content=20, n_ctx=14, extra=("prev", "dead"))
    role = "large without effect"
    to_dead = HeadOutput("dead", 40.0)
    to_all_logits = HeadOutput("out", 40.0, uniform=True)
    first_layer = {
        0: previous_token_head(layout, TO_PREV),
        2: previous_token_head(layout, (to_dead,), role=role),
    }
    second_layer = {
        1: matching_head(layout, (to_dead, to_all_logits), role=role),
        2: matching_head(layout, TO_OUT),
    }
    return _assemble_circuit(
        "big_no_effect",
        big_no_effect,
        layout=layout,
        heads=[first_layer, second_layer],
        scheme=SWAPPED,
        noise=noise,
        blind_to=("dead",),
    )


def cancelling_twins(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """Two induction heads in layer 1 that write the answer with gains +0.4 and −0.4.

    Together they write nothing, so the attention output of the layer does not show them.
    """
    layout = ResidualLayout(n_content=20, n_ctx=14)
    twins = {
        0: matching_head(layout, (HeadOutput("out", 0.4),), role="twin"),
        3: matching_head(layout, (HeadOutput("out", -0.4),), role="twin"),
    }
    heads = [{2: previous_token_head(layout, TO_PREV)}, twins, {1: matching_head(layout, TO_OUT)}]
    return _assemble_circuit(
        "cancelling_twins",
        cancelling_twins,
        layout=layout,
        heads=heads,
        scheme=SWAPPED,
        noise=noise,
    )


def and_mlp_circuit(noise: float = DISTRACTOR_STD) -> KnownCircuit:
    """In "… X A B … X C D … A E … X A" an MLP writes the token to which two heads both attend.

    One head looks for tokens after A, the other for tokens two after X. Each splits its attention
    between two matches, one of them the answer. The corruption turns X A B into A X B: both heads
    still find two matches, but no token is found by both. The split depends on small differences of
    scores, so the noise is a third here, and the match is less sharp.
    """
    layout = ResidualLayout(n_content=16, n_ctx=16, extra=("prev", "prev2", "one", "two"))
    to_prev2 = (HeadOutput("prev2"),)
    role = "token before the previous"
    first_layer = {
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
    return _assemble_circuit(
        "and_mlp",
        and_mlp_circuit,
        layout=layout,
        heads=[first_layer, {0: after, 3: two_after}],
        scheme=CONJUNCTION,
        noise=noise / 3,
        mlps={1: mlp},
        d_mlp=32,
    )


def _opposing(
    name: str, builder: Callable[..., KnownCircuit], gain: float, noise: float
) -> KnownCircuit:
    layout = ResidualLayout(n_content=20, n_ctx=14)
    against = matching_head(layout, (HeadOutput("out", -gain),), role="opposing")
    heads = [
        {3: previous_token_head(layout, TO_PREV)},
        {0: matching_head(layout, TO_OUT)},
        {2: against},
    ]
    return _assemble_circuit(name, builder, layout=layout, heads=heads, scheme=SWAPPED, noise=noise)


def _assemble_circuit(
    name: str,
    builder: Callable[..., KnownCircuit],
    *,
    layout: ResidualLayout,
    heads: Sequence[Mapping[int, Head]],
    scheme: Scheme,
    noise: float,
    mlps: Mapping[int, Mlp] | None = None,
    d_mlp: int | None = None,
    blind_to: Sequence[str] = (),
    norm: float | None = None,
) -> KnownCircuit:
    """Put the constructed nodes into a model and fill the rest with distractors.

    Args:
        name: the name of the model, from which the seed of its random parts follows.
        builder: the function that builds the model; its docstring becomes the summary.
        layout: the subspaces of the residual stream.
        heads: for each layer, the constructed heads by their number.
        scheme: how the prompt pairs are written.
        noise: the standard deviation of the weights of distractor heads; MLPs have half of it.
        mlps: the constructed MLPs by layer.
        d_mlp: the width of the MLPs. None makes a model of attention layers only.
        blind_to: the subspaces that distractors do not read.
        norm: the norm weights of a LayerNorm model. None makes a model without norms.
    """
    seed = zlib.crc32(name.encode())
    rng = np.random.default_rng(seed)
    constructed_mlps = mlps or {}
    layers: list[LayerWeights] = []
    for index, constructed in enumerate(heads):
        layer_heads = tuple(
            constructed[head]
            if head in constructed
            else distractor_head(layout, rng, noise, blind_to)
            for head in range(N_HEADS)
        )
        mlp = constructed_mlps.get(index)
        if d_mlp is not None and mlp is None:
            mlp = distractor_mlp(layout, rng, noise / 2, d_mlp)
        layers.append(LayerWeights(layer_heads, mlp))
    pairs = write_pairs(scheme, layout, PAIRS_PER_TEMPLATE, seed)
    summary = builder.__doc__ or ""
    return assemble(name, summary, layout=layout, layers=layers, pairs=pairs, rng=rng, norm=norm)


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
    """Build one of `KNOWN_CIRCUITS` by name."""
    return KNOWN_CIRCUITS[name](noise)
