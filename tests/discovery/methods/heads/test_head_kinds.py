"""Kinds of heads: right on a hand-built model, none on random ones, scores as computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.random_models.tiny_models import load_plain_module
from discovery.backends.loading.load import load_model
from discovery.backends.weights import ModelWeights
from discovery.engine import Meter
from discovery.errors import MeasurementError
from discovery.methods.heads import head_kinds
from discovery.methods.heads.copying import copying_scores, read_token_streams, self_logits
from discovery.methods.heads.head_kinds import attention_scores
from discovery.methods.heads.repeated_tokens import RepeatedLoss, make_repeated_task
from discovery.sites import head

BACKENDS = ("transformerlens", "nnsight")


@pytest.fixture(scope="module")
def induction_path(tmp_path_factory):
    return build_known_circuit("induction").save(tmp_path_factory.mktemp("known") / "induction")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_heads_of_a_known_model_are_named(induction_path, backend):
    model = load_model(str(induction_path), backend=backend, device="cpu")
    kinds = {kind.kind: kind for kind in head_kinds(model).kinds}
    named = {name: [score.node for score in kind.heads] for name, kind in kinds.items()}
    assert named["previous_token"] == ["a0.h2"]
    assert named["induction"] == ["a1.h1"]
    assert named["copying"] == ["a1.h1"]
    assert named["duplicate_token"] == named["anti_copying"] == []
    score = kinds["induction"].heads[0]
    assert score.score.low > score.chance + kinds["induction"].minimum_effect
    assert score.p < 1e-6
    for name in ("previous_token", "induction"):
        check = kinds[name].check
        # One of the random heads is the other half of the circuit; the others do nothing.
        *idle, partner = sorted(check.controls)
        assert max(idle) < 0.1 < check.change.low
        assert check.p == (1 + (partner >= check.change.mean)) / (1 + len(check.controls))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_random_models_have_no_induction_heads(tiny_models, name):
    found = head_kinds(tiny_models.load(name), controls=0)
    kinds = {kind.kind: kind for kind in found.kinds}
    assert kinds["induction"].heads == kinds["duplicate_token"].heads == ()
    assert kinds["induction"].check is None
    assert len(kinds["induction"].runners_up) == 3
    assert found.warnings == ()


def test_scores_are_those_of_a_loop_and_of_transformer_lens(tiny_models):
    from transformer_lens.head_detector import (
        compute_head_attention_similarity_score,
        get_induction_head_detection_pattern,
        get_previous_token_head_detection_pattern,
    )

    model = tiny_models.load("gpt2")
    module = load_plain_module(tiny_models.path("gpt2"))
    task, n_prefix, half = make_repeated_task(model, 4, seed=7)
    found = head_kinds(model, sequences=4, controls=0, seed=7)
    expected = {name: torch.zeros(4, 3, 2) for name in found.scores}
    for row, pair in enumerate(task.pairs):
        tokens = torch.tensor([pair.clean])
        with torch.no_grad():
            out = module(tokens, output_attentions=True)
        length = tokens.shape[1]
        for layer, patterns in enumerate(out.attentions):
            for index, pattern in enumerate(patterns[0]):
                sums = dict.fromkeys(expected, 0.0)
                for dst in range(1, length):
                    sums["previous_token"] += float(pattern[dst, dst - 1]) / (length - 1)
                    sums["first_token"] += float(pattern[dst, 0]) / (length - 1)
                    local = pattern[dst, max(0, dst - 4) : dst + 1]
                    sums["local"] += float(local.sum()) / (length - 1)
                    if dst >= n_prefix + half:
                        sums["duplicate_token"] += float(pattern[dst, dst - half]) / half
                        sums["induction"] += float(pattern[dst, dst - half + 1]) / half
                for name in ("previous_token", "first_token", "local", "duplicate_token"):
                    expected[name][row, layer, index] = sums[name]
                expected["induction"][row, layer, index] = sums["induction"]
                # The detector's sum runs over all positions and is divided by their number.
                for name, detection, count in (
                    ("previous_token", get_previous_token_head_detection_pattern, length - 1),
                    ("induction", get_induction_head_detection_pattern, half),
                ):
                    theirs = compute_head_attention_similarity_score(
                        pattern.clone(),
                        detection(tokens),
                        exclude_bos=False,
                        exclude_current_token=False,
                        error_measure="mul",
                    )
                    assert theirs * length / count == pytest.approx(sums[name], abs=1e-4), name
    for name in ("previous_token", "first_token", "local", "duplicate_token", "induction"):
        torch.testing.assert_close(found.scores[name], expected[name].mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_copying_is_that_of_the_dense_circuit(tiny_models, name):
    model = tiny_models.load(name)
    weights = ModelWeights(model)
    tokens = tuple(range(2, 31))
    streams = read_token_streams(model, tokens, Meter()).read_by(1)
    layer, group = 1, model.info.n_heads // model.info.n_kv_heads
    logits = self_logits(weights, layer, streams, torch.tensor(tokens))
    value, bias = weights.reads(layer, "v")
    output = weights.attention_output(layer)
    scores = copying_scores(logits)
    for index in range(model.info.n_heads):
        dense = value[index // group] @ output.weights[index]  # d_model × d_model
        shift = bias[index // group] @ output.weights[index]
        added = weights.attention_norm(layer)(streams) @ dense + shift
        added = output.norm.apply_frozen(added, torch.ones(len(tokens), 1))
        whole = (
            weights.final_norm.apply_frozen(added, torch.ones(len(tokens), 1)) @ weights.unembedding
        )
        expected = whole[:, list(tokens)]
        torch.testing.assert_close(logits[index], expected, atol=1e-3, rtol=1e-3)
        centred = expected - expected.mean(0)
        for row in range(len(tokens)):
            order = centred[row].argsort(descending=True).tolist()
            assert bool(scores[0][index, row]) == (order[0] == row)
            assert bool(scores[1][index, row]) == (order[-1] == row)


def test_a_head_that_writes_nothing_copies_nothing():
    copied, anti_copied = copying_scores(torch.zeros(2, 40, 40))
    assert float(copied.sum() + anti_copied.sum()) == 0


def test_the_loss_is_that_of_the_module_with_hooks(tiny_models):
    model = tiny_models.load("gpt2")
    module = load_plain_module(tiny_models.path("gpt2"))
    task, n_prefix, half = make_repeated_task(model, 3, seed=1)
    loss = RepeatedLoss(model, task, n_prefix, half, Meter())
    tokens = torch.tensor([pair.clean for pair in task.pairs])
    controls = torch.tensor([pair.corrupted for pair in task.pairs])
    projection = module.transformer.h[1].attn.c_proj
    caught = []
    handle = projection.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        module(controls)
    handle.remove()
    mean = caught[0].mean(0, keepdim=True)
    width = model.info.d_head

    def replace(_, args):
        value = args[0].clone()
        value[..., :width] = mean[..., :width]
        return (value,)

    def losses():
        with torch.no_grad():
            logits = module(tokens).logits
        first = n_prefix + half
        return torch.nn.functional.cross_entropy(
            logits[:, first:-1].transpose(1, 2), tokens[:, first + 1 :], reduction="none"
        ).mean(1)

    torch.testing.assert_close(loss().float(), losses(), atol=1e-5, rtol=1e-4)
    handle = projection.register_forward_pre_hook(replace)
    torch.testing.assert_close(loss([head(1, 0)]).float(), losses(), atol=1e-5, rtol=1e-4)
    handle.remove()


def test_uniform_attention_is_chance():
    pattern = torch.ones(11, 11).tril()
    pattern = (pattern / pattern.sum(1, keepdim=True))[None, None]
    scores = attention_scores(pattern, 1, 5)
    every = 1 / np.arange(2, 12)
    assert float(scores["previous_token"]) == pytest.approx(every.mean(), abs=1e-6)
    assert float(scores["induction"]) == pytest.approx(every[5:].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"sequences": 2}, "sequences is 2"), ({"top": -1}, "top is -1")]
)
def test_bad_input(tiny_models, arguments, message):
    with pytest.raises(MeasurementError, match=message):
        head_kinds(tiny_models.load("gpt2"), **arguments)
