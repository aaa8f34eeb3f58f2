"""The linear maps reproduce what the model computes, whatever the architecture names them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.random_models.tiny_models import OTHER_ARCHITECTURES, random_pairs
from discovery.backends.base import Batch
from discovery.backends.weights import ModelWeights, measure_norm
from discovery.errors import MeasurementError
from discovery.sites import Site

BACKENDS = ("transformerlens", "nnsight")


def check(model) -> None:
    weights = ModelWeights(model)
    tokens = torch.tensor([pair.clean for pair in random_pairs([7, 7, 7], seed=11)])
    n_layers = model.info.n_layers
    for layer in range(n_layers):
        kinds = ("resid_pre", "q", "k", "v", "z", "attn_out")
        sites = {kind: Site(kind, layer) for kind in kinds}
        read = model.run(Batch(tokens), list(sites.values())).activations
        value = {kind: read[site] for kind, site in sites.items()}
        stream = weights.attention_norm(layer)(value["resid_pre"])
        for kind in ("q", "k", "v"):
            weight, bias = weights.reads(layer, kind)
            own = torch.einsum("rpm,hmd->rphd", stream, weight) + bias
            torch.testing.assert_close(own, value[kind], atol=2e-4, rtol=1e-4)
        output = weights.attention_output(layer)
        written = output.norm(output.sum_heads(value["z"]))
        torch.testing.assert_close(written, value["attn_out"], atol=2e-4, rtol=1e-4)
    end = Site("resid_post", n_layers - 1)
    last = torch.full((3,), 6)
    result = model.run(Batch(tokens, last), [end])
    own = weights.final_norm(result.activations[end][:, -1]) @ weights.unembedding
    own = own + weights.unembedding_bias
    assert torch.equal(own.argmax(1), result.logits.argmax(1))
    if model.abilities.columns:
        torch.testing.assert_close(own, result.logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "gemma2", "rotary", "attn_only"])
def test_the_maps_reproduce_the_model(tiny_models, name, backend):
    check(tiny_models.load(name, backend))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHER_ARCHITECTURES, "opt", "qwen2", "gemma", "native"])
def test_the_maps_of_other_architectures(tiny_models, name):
    check(tiny_models.load(name))


def test_folding_a_norm():
    torch.manual_seed(0)
    layer_norm = nn.LayerNorm(7)
    with torch.no_grad():
        layer_norm.weight.normal_()
        layer_norm.bias.normal_()
    norm = measure_norm(layer_norm, 7, torch.float32, torch.device("cpu"))
    assert norm.is_centred
    assert norm.eps == pytest.approx(1e-5, rel=0.05)
    stream, weight = torch.randn(3, 7), torch.randn(7, 4)
    torch.testing.assert_close(
        stream @ norm.fold(weight) / norm.scale(stream) + norm.bias @ weight,
        layer_norm(stream) @ weight,
        atol=1e-4,
        rtol=1e-4,
    )
    parts = torch.randn(5, 3, 7)
    whole = parts.sum(0)
    frozen = norm.apply_frozen(parts, norm.scale(whole)).sum(0) + norm.bias
    torch.testing.assert_close(frozen, layer_norm(whole), atol=1e-5, rtol=1e-4)


def test_another_norm_is_refused():
    class SignNorm(nn.Module):
        def forward(self, stream: torch.Tensor) -> torch.Tensor:
            return stream.sign()

    with pytest.raises(MeasurementError, match="SignNorm is neither"):
        measure_norm(SignNorm(), 8, torch.float32, torch.device("cpu"))


def test_a_wrong_weight_is_refused(tiny_models, monkeypatch):
    model = tiny_models.load("llama")
    right = model.input_weights
    monkeypatch.setattr(
        model, "input_weights", lambda layer, kind: (2 * right(layer, kind)[0], None)
    )
    with pytest.raises(MeasurementError, match=r"norm before attention 0 .* was not found"):
        ModelWeights(model).attention_norm(0)
