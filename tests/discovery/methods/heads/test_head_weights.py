"""A head's circuits equal dense ones of the plain module, and are right on a hand-built model."""

from __future__ import annotations

import importlib

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.random_models.tiny_models import VOCAB, load_plain_module
from discovery.backends.loading.load import load_model
from discovery.backends.weights import ModelWeights
from discovery.engine import Meter
from discovery.errors import MeasurementError, SiteError
from discovery.methods.heads import head_weights
from discovery.methods.heads import vocabulary_circuit as circuits
from discovery.methods.heads.composition import ROTATIONS, draw_rotations
from discovery.methods.heads.copying import read_token_streams
from discovery.methods.heads.head_weights import HeadMaps
from discovery.sites import head
from tests.oracles import heads as plain

BACKENDS = ("transformerlens", "nnsight")
TOKENS = range(VOCAB)
HEADS = {"gpt2": ((0, 1), (2, 0)), "llama": ((0, 3), (2, 1)), "gemma": ((1, 2),), "neox": ((1, 1),)}
CASES = [(name, layer, index) for name, heads in HEADS.items() for layer, index in heads]


def check_circuit(circuit, dense, top):
    """A circuit's numbers are those of a dense centred matrix [token token]."""
    assert circuit.n_rows == circuit.n_columns == VOCAB
    for pairs, sign in ((circuit.largest, 1.0), (circuit.smallest, -1.0)):
        best = (sign * dense).max(1).values.sort(descending=True).values[:top]
        found = torch.tensor([sign * pair.value for pair in pairs])
        torch.testing.assert_close(found, best, atol=1e-3, rtol=1e-3)
        for pair in pairs:
            assert pair.value == pytest.approx(float(dense[pair.row, pair.column]), abs=1e-3)
            assert pair.row_text == str(pair.row)
    tail = circuits.TAIL
    assert circuit.same_token.value == plain.own_in_tail(dense, tail, largest=True)
    assert circuit.opposite.value == plain.own_in_tail(dense, tail, largest=False)
    share = plain.eigenvalue_share(dense)
    assert circuit.eigenvalue_share.value == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "layer", "index"), CASES)
def test_circuits_are_those_of_the_dense_matrices(tiny_models, name, layer, index, backend):
    model = tiny_models.load(name, backend)
    module = load_plain_module(tiny_models.path(name))
    found = head_weights(model, f"a{layer}.h{index}", tokens=list(TOKENS), top=6)
    check_circuit(found.ov, plain.dense_ov(module, layer, index, TOKENS), 6)
    check_circuit(found.qk, plain.dense_qk(module, layer, index, TOKENS), 6)
    assert (found.key_value_head is None) == (model.info.n_kv_heads == model.info.n_heads)
    assert any("rotary" in text for text in found.warnings) == (name != "gpt2")


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "neox"])
def test_compositions_are_those_of_the_dense_matrices(tiny_models, name):
    model = tiny_models.load(name)
    module = load_plain_module(tiny_models.path(name))
    last = model.info.n_layers - 1
    found = head_weights(model, head(last, 1), tokens=list(TOKENS), top=100)
    assert len(found.reads_from) == 3 * last * model.info.n_heads
    assert found.writes_to == ()
    first = head_weights(model, head(0, 0), tokens=list(TOKENS), top=100)
    assert first.reads_from == ()
    for pair in (*found.reads_from, *first.writes_to):
        places = [model.info.parse(node) for node in (pair.writer, pair.reader)]
        writer, reader = [(node.layer, node.head) for node in places]
        expected = plain.composition(module, writer, reader, pair.kind)
        assert pair.score == pytest.approx(expected, abs=1e-4)
        assert 0 < pair.p <= 1


def test_blocks_give_the_same(tiny_models, monkeypatch):
    model = tiny_models.load("llama")
    whole = head_weights(model, "a1.h2", tokens=list(TOKENS))
    monkeypatch.setattr(circuits, "BLOCK_ENTRIES", 4 * VOCAB)
    monkeypatch.setattr("discovery.methods.heads.copying.ROWS_PER_BATCH", 5)
    own_module = importlib.import_module("discovery.methods.heads.head_weights")
    monkeypatch.setattr(own_module, "COLUMN_ENTRIES", 50)
    small = head_weights(model, "a1.h2", tokens=list(TOKENS))
    for mine, other in ((small.ov, whole.ov), (small.qk, whole.qk)):
        assert mine.same_token == other.same_token
        assert [pair.row for pair in mine.largest] == [pair.row for pair in other.largest]


def test_the_norm_behind_the_attention_is_part_of_the_output(tiny_models):
    model = tiny_models.load("gemma2")
    weights = ModelWeights(model)
    streams = read_token_streams(model, TOKENS, Meter()).read_by(1)
    factors = HeadMaps(weights, head(1, 1)).ov(streams, TOKENS)
    output = weights.attention_output(1)
    one = torch.ones(VOCAB, 1)
    added = output.norm.apply_frozen(factors.rows @ output.weights[1], one)
    expected = weights.final_norm.apply_frozen(added, one) @ weights.unembedding
    torch.testing.assert_close(factors.rows @ factors.columns, expected, atol=1e-3, rtol=1e-3)


def test_normalised_queries_have_no_fixed_circuit(tiny_models):
    found = head_weights(tiny_models.load("qwen3"), "a1.h0", tokens=list(TOKENS))
    assert found.qk is None
    assert {pair.kind for pair in found.reads_from} == {"v"}
    assert any("norm of their own" in text for text in found.warnings)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_heads_of_a_known_model(tmp_path, backend):
    path = build_known_circuit("induction").save(tmp_path / "induction")
    model = load_model(str(path), backend=backend, device="cpu")
    found = head_weights(model, "a1.h1")
    assert found.ov.same_token.value == 24 / 25, "every word, and not the separator"
    assert found.ov.same_token.p == 1 / (1 + circuits.PERMUTATIONS)
    assert found.ov.eigenvalue_share.value > 0.99 > found.ov.eigenvalue_share.chance.high
    assert all(pair.row == pair.column for pair in found.ov.largest)
    assert repr(found).startswith(
        "<weights of a1.h1 on 25 tokens: OV raises the token itself for 96%"
    )
    best = found.reads_from[0]
    assert (best.writer, best.kind) == ("a0.h2", "k")
    assert best.p < 1e-6
    idle = head_weights(model, "a1.h0")
    assert idle.ov.same_token.p > 0.05
    assert idle.ov.eigenvalue_share.p > 0.05


def test_shuffled_tokens_are_chance():
    torch.manual_seed(3)
    rows, columns = torch.randn(300, 5), torch.randn(5, 300)
    ids = torch.arange(300)
    factors = circuits.CircuitFactors(rows=rows, columns=columns, row_tokens=ids, column_tokens=ids)
    circuit = circuits.read_circuit(factors, [str(i) for i in range(300)], 3, seed=0)
    for score in (circuit.same_token, circuit.opposite, circuit.eigenvalue_share):
        assert score.chance.low - 0.02 <= score.value <= score.chance.high + 0.02
        assert score.p > 0.01
    assert circuit.same_token.chance.mean == pytest.approx(circuits.TAIL, abs=0.01)


def test_a_random_rotation_composes_by_one_over_the_root_of_d_model():
    like = torch.zeros(1)
    rotations = draw_rotations(50, 6, 0, like)
    assert rotations.shape == (ROTATIONS, 6, 6)
    write, core = torch.randn(6, 6), torch.randn(6, 6)
    scores = (write @ rotations @ core).flatten(1).norm(dim=1) / (write.norm() * core.norm())
    assert float(scores.square().mean().sqrt()) == pytest.approx(50**-0.5, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"node": "m0"}, MeasurementError, "m0 is no attention head"),
        ({"node": "a9.h0"}, SiteError, "does not exist"),
        ({"node": "a0.h0", "tokens": 3}, MeasurementError, "tokens is 3"),
        ({"node": "a0.h0", "tokens": [1, 2]}, MeasurementError, "tokens names 2"),
        ({"node": "a0.h0", "tokens": [99] * 8}, MeasurementError, "Token 99 does not exist"),
        ({"node": "a0.h0", "tokens": [" a"] * 8}, MeasurementError, "no tokenizer"),
        ({"node": "a0.h0", "top": 0}, MeasurementError, "top is 0"),
    ],
)
def test_bad_input(tiny_models, arguments, error, message):
    with pytest.raises(error, match=message):
        head_weights(tiny_models.load("gpt2"), **arguments)
