"""The plain forward pass: numbers worked out by hand, and identities that hold for any model."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from benchmarks.known_circuits.forward import Replacement, node_names, run_forward
from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.truth import group_pairs
from benchmarks.known_circuits.weights import MATCH_SCORE, POSITION_SCORE, SINK_SCORE

ONE_HEAD = {
    "n_layers": 1,
    "n_heads": 1,
    "d_model": 2,
    "d_head": 1,
    "attn_only": False,
    "act_fn": "relu",
    "normalization_type": None,
    "positional_embedding_type": None,
}


def test_one_head_and_one_mlp_by_hand():
    """The tokens are embedded as a = (1, 0) and b = (0, 1).

    The head's q and k are the first coordinate (plus 1 for q). Its v is the first coordinate plus
    0.5, which it writes to the second coordinate.
    """
    column = torch.tensor([[[1.0], [0.0]]])
    attn = "blocks.0.attn"
    state = {
        "embed.W_E": torch.eye(2),
        "unembed.W_U": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        f"{attn}.W_Q": column,
        f"{attn}.W_K": column,
        f"{attn}.W_V": column,
        f"{attn}.W_O": torch.tensor([[[0.0, 1.0]]]),
        f"{attn}.b_Q": torch.tensor([[1.0]]),
        f"{attn}.b_V": torch.tensor([[0.5]]),
        f"{attn}.b_O": torch.tensor([0.25, 0.0]),
        "blocks.0.mlp.W_in": torch.tensor([[1.0], [-1.0]]),
        "blocks.0.mlp.W_out": torch.tensor([[3.0, 0.0]]),
        "blocks.0.mlp.b_out": torch.tensor([0.0, 7.0]),
    }
    result = run_forward(ONE_HEAD, state, torch.tensor([[0, 1]]))
    on_a = math.e / (math.e + 1)  # at b, q = 0 + 1; k = 1 at a and 0 at b
    torch.testing.assert_close(
        result.patterns["a0.h0"][0, 1], torch.tensor([on_a, 1 - on_a], dtype=torch.float64)
    )
    # A head's value includes b_V and excludes b_O, which is added after the heads.
    head = torch.tensor([[0.0, 1.5], [0.0, on_a + 0.5]], dtype=torch.float64)
    torch.testing.assert_close(result.nodes["a0.h0"][0], head)
    mid = torch.tensor([[1.25, 1.5], [0.25, 1.5 + on_a]], dtype=torch.float64)
    # relu(1.25 − 1.5) = relu(0.25 − 1.5 − …) = 0, so the MLP writes b_out alone.
    mlp = torch.tensor([[0.0, 7.0], [0.0, 7.0]], dtype=torch.float64)
    torch.testing.assert_close(result.nodes["m0"][0], mlp)
    torch.testing.assert_close(
        result.logits[0], (mid + mlp) * torch.tensor([1.0, 2.0], dtype=torch.float64)
    )


def test_scores_are_divided_by_the_root_of_d_head():
    config = {**ONE_HEAD, "attn_only": True, "d_head": 4}
    wide = torch.zeros(1, 2, 4)
    wide[0, 0] = 1.0
    names = {f"blocks.0.attn.W_{letter}": wide for letter in "QKV"}
    state = {
        "embed.W_E": torch.eye(2),
        "unembed.W_U": torch.eye(2),
        "blocks.0.attn.W_O": wide.transpose(1, 2),
        **names,
    }
    # The raw score is 4 at the two a's and 0 at b.
    pattern = run_forward(config, state, torch.tensor([[1, 0, 0]])).patterns["a0.h0"][0, -1]
    torch.testing.assert_close(
        pattern, torch.tensor([0.0, 4 / 2, 4 / 2], dtype=torch.float64).softmax(0)
    )


@pytest.mark.parametrize("kind", ["LN", "LNPre", "RMS", "RMSPre"])
def test_norms_agree_with_torch(kind):
    config = {**ONE_HEAD, "n_layers": 0, "normalization_type": kind, "eps": 1e-5}
    rng = torch.Generator().manual_seed(0)
    embedding, weight, bias = (
        torch.randn(size, generator=rng, dtype=torch.float64) for size in ((5, 6), (6,), (6,))
    )
    state = {
        "embed.W_E": embedding,
        "unembed.W_U": torch.eye(6),
        "ln_final.w": weight,
        "ln_final.b": bias,
    }
    expected = {
        "LN": functional.layer_norm(embedding, (6,), weight, bias, 1e-5),
        "LNPre": functional.layer_norm(embedding, (6,), None, None, 1e-5),
        "RMS": functional.rms_norm(embedding, (6,), weight, 1e-5),
        "RMSPre": functional.rms_norm(embedding, (6,), None, 1e-5),
    }[kind]
    torch.testing.assert_close(
        run_forward(config, state, torch.arange(5)[None]).logits[0], expected
    )


def test_the_induction_model_attends_as_its_weights_say():
    """Without distractors every score is a known number, so both patterns can be written down."""
    case = build_known_circuit("induction", noise=0.0)
    pair = case.pairs[0]
    tokens = pair.clean
    last = len(tokens) - 1
    result = run_forward(case.config, case.state, torch.tensor([tokens]))
    # The weight of src at dst: the position before has a score of 12, all others of 0, and position
    # 0 has only itself.
    previous = []
    for dst in range(len(tokens)):
        raw = [math.exp(POSITION_SCORE) if src == dst - 1 else 1.0 for src in range(dst + 1)]
        previous.append([weight / sum(raw) for weight in raw])
        written = torch.tensor(previous[-1], dtype=torch.float64)
        torch.testing.assert_close(
            result.patterns["a0.h2"][0, dst, : dst + 1], written, atol=1e-6, rtol=0
        )
    # Layer 1 also reads the output bias of layer 0.
    drift = case.state["blocks.0.attn.b_O"].double()
    query = torch.zeros(24, dtype=torch.float64)
    query[tokens[last] - 1] = 1.0
    query += drift[list(case.layout.content("tok"))]
    scores = []
    for src in range(len(tokens)):
        key = torch.zeros(24, dtype=torch.float64)
        for position, weight in enumerate(previous[src]):
            if tokens[position] != 0:
                key[tokens[position] - 1] += weight
        key += drift[list(case.layout.content("prev"))]
        first = (1.0 if src == 0 else 0.0) + float(drift[case.layout.first()])
        scores.append(MATCH_SCORE * float(query @ key) + SINK_SCORE * first)
    expected = torch.tensor(scores, dtype=torch.float64).softmax(0)
    torch.testing.assert_close(result.patterns["a1.h1"][0, last], expected, atol=1e-5, rtol=0)
    assert int(expected.argmax()) == pair.labels["B1"]
    assert expected[pair.labels["B1"]] > 0.98


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_replacing_nothing_changes_nothing(name):
    case = build_known_circuit(name)
    part = group_pairs(case)[0]
    result = run_forward(case.config, case.state, part.clean)
    repeated = run_forward(case.config, case.state, part.clean, result.nodes)
    torch.testing.assert_close(repeated.logits, result.logits, atol=0, rtol=0)


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_replacing_all_by_corrupted_values_gives_the_corrupted_logits_at_the_last_position(name):
    """The last tokens agree, so whatever differs at the last position is in the node values."""
    case = build_known_circuit(name)
    for part in group_pairs(case):
        assert torch.equal(part.clean[:, -1], part.corrupted[:, -1])
        corrupted = run_forward(case.config, case.state, part.corrupted)
        swapped = run_forward(case.config, case.state, part.clean, corrupted.nodes)
        torch.testing.assert_close(swapped.logits[:, -1], corrupted.logits[:, -1])
        assert not torch.allclose(
            part.metric(corrupted.logits),
            part.metric(run_forward(case.config, case.state, part.clean).logits),
            atol=1.0,
        )


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_single_precision_agrees(name):
    case = build_known_circuit(name)
    part = group_pairs(case)[-1]
    double, single = (
        run_forward(case.config, case.state, part.clean, dtype=dtype).logits
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(single.double(), double, atol=2e-4, rtol=1e-5)


def test_a_replacement_in_some_rows_leaves_the_others_alone():
    case = build_known_circuit("or_mlp")
    part = group_pairs(case)[0]
    corrupted = run_forward(case.config, case.state, part.corrupted).nodes["a0.h3"]
    rows = torch.tensor([True, False, True, False])
    mixed = run_forward(
        case.config, case.state, part.clean, {"a0.h3": Replacement(corrupted, rows)}
    ).logits
    swapped = run_forward(case.config, case.state, part.clean, {"a0.h3": corrupted}).logits
    plain = run_forward(case.config, case.state, part.clean).logits
    torch.testing.assert_close(mixed, torch.where(rows[:, None, None], swapped, plain))
    assert not torch.allclose(swapped, plain)


def test_unknown_nodes_and_wrong_shapes_are_refused():
    case = build_known_circuit("induction")
    tokens = torch.tensor([case.pairs[0].clean])
    assert node_names(case.config) == tuple(
        f"a{layer}.h{head}" for layer in range(2) for head in range(4)
    )
    with pytest.raises(ValueError, match=r"no such nodes: \['m0'\]"):
        run_forward(case.config, case.state, tokens, {"m0": torch.zeros(1, 8, 88)})
    with pytest.raises(ValueError, match="A replacement of shape"):
        run_forward(case.config, case.state, tokens, {"a0.h0": torch.zeros(1, 1, 88)})
