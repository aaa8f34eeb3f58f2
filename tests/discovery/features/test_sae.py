"""An SAE computes what SAELens computes, for every architecture and normalisation."""

from __future__ import annotations

import pytest
import torch

from discovery.features import FeatureChange, load_sae
from tests.tiny_saes import ARCHITECTURES, random_module, saelens, save

POST = "blocks.0.hook_resid_post"
NORMS = ["none", "layer_norm", "constant_norm_rescale"]

# Architectures whose decode gives the whole reconstruction.
DECODES = [name for name in ARCHITECTURES if name != "temporal" and "skip" not in name]


def activations(width: int = 12, seed: int = 1):
    return 2 * torch.randn(3, 5, width, generator=torch.Generator().manual_seed(seed)) + 0.3


def saelens_and_ours(tiny_models, tmp_path, name, d_in=12, hook=POST, **settings):
    """Return the module as SAELens loads it, and the SAE as we load it."""
    d_sae = 16 if name == "temporal" else 20
    out = "blocks.0.hook_mlp_out" if "transcoder" in name else None
    folder = save(
        random_module(name, d_in, d_sae, hook, hook_out=out, **settings), tmp_path / "sae"
    )
    return saelens().SAE.load_from_disk(folder), load_sae(folder, tiny_models.load("native"))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_encode_and_reconstruct_as_saelens(tiny_models, tmp_path, name, norm):
    theirs, ours = saelens_and_ours(tiny_models, tmp_path, name, normalize_activations=norm)
    x = activations()
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), atol=0, rtol=0)
        codes = ours.codes(x)
        torch.testing.assert_close(codes.features, theirs.encode(x), atol=0, rtol=0)
        torch.testing.assert_close(codes.reconstruction, theirs(x), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, "layer_norm") for name in DECODES] + [("standard", norm) for norm in NORMS],
)
def test_decode_as_saelens(tiny_models, tmp_path, name, norm):
    theirs, ours = saelens_and_ours(tiny_models, tmp_path, name, normalize_activations=norm)
    x = activations()
    with torch.no_grad():
        other = 1.5 * theirs.encode(x) + 0.2  # after encode, whose norm SAELens keeps for decode
        torch.testing.assert_close(ours.decode(other, x), theirs.decode(other))


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, "layer_norm") for name in ARCHITECTURES] + [("standard", norm) for norm in NORMS],
)
def test_an_edit_is_the_difference_of_two_decodes(tiny_models, tmp_path, name, norm):
    _, ours = saelens_and_ours(tiny_models, tmp_path, name, normalize_activations=norm)
    x = activations()
    z = ours.encode(x)
    feature = int((z != 0).sum((0, 1)).argmax())
    change = FeatureChange.of({feature: 3.0, (feature + 1) % ours.d_sae: 0.5}, "set", ours.d_sae)
    expected = z.clone()
    expected[..., feature], expected[..., (feature + 1) % ours.d_sae] = 3.0, 0.5
    moved = ours.decode(expected, x) - ours.codes(x).reconstruction
    torch.testing.assert_close(ours.edit(x, change), x + moved)
    torch.testing.assert_close(ours.edit(x, change, error="drop"), ours.decode(expected, x))


@pytest.mark.parametrize(("operation", "amount"), [("scale", 1.0), ("add", 0.0)])
def test_nothing_changed_is_exactly_the_activation(tiny_models, tmp_path, operation, amount):
    _, ours = saelens_and_ours(tiny_models, tmp_path, "topk", normalize_activations="layer_norm")
    x = activations()
    change = FeatureChange.of(dict.fromkeys(range(ours.d_sae), amount), operation, ours.d_sae)
    assert torch.equal(ours.edit(x, change), x)
    assert torch.equal(ours.edit(x, change, error="drop"), ours.codes(x).reconstruction)


def test_heads_lie_side_by_side(tiny_models, tmp_path):
    theirs, ours = saelens_and_ours(
        tiny_models,
        tmp_path,
        "standard",
        d_in=18,
        hook="blocks.1.attn.hook_z",
        reshape_activations="hook_z",
    )
    z = activations(18).reshape(3, 5, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(z), theirs.encode(z), atol=0, rtol=0)
        torch.testing.assert_close(
            ours.codes(z).reconstruction, theirs(z).flatten(2), atol=0, rtol=0
        )
    assert ours.edit(z, FeatureChange.of({0: 1.0}, "add", ours.d_sae)).shape == z.shape


def test_a_centred_sae_reads_without_the_mean_and_adds_it_again(tiny_models, tmp_path):
    module = random_module("standard", 12, 20, POST)
    module.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    ours = load_sae(save(module, tmp_path / "sae"), tiny_models.load("native"))
    x = activations()
    mean = x.mean(-1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), module.encode(x - mean))
        torch.testing.assert_close(ours.codes(x).reconstruction, module(x - mean) + mean)


def test_directions_and_links(tiny_models, tmp_path):
    _, ours = saelens_and_ours(tiny_models, tmp_path, "topk rescaled")
    torch.testing.assert_close(ours.directions().norm(dim=-1), torch.ones(20))
    torch.testing.assert_close(ours.directions([3, 1]), ours.directions()[[3, 1]])
    assert ours.link(3) is None
    ours.module.cfg.metadata.neuronpedia_id = "tiny/0-res"
    assert ours.link(3) == "https://neuronpedia.org/tiny/0-res/3"


@pytest.mark.parametrize("name", ["BatchTopK", "MatryoshkaBatchTopK"])
def test_what_batch_topk_training_saves_for_inference_is_loaded(tiny_models, tmp_path, name):
    library = saelens()
    more = {"matryoshka_widths": [8, 20]} if "Mat" in name else {}
    trained = getattr(library, f"{name}TrainingSAE")(
        getattr(library, f"{name}TrainingSAEConfig")(
            d_in=12, d_sae=20, k=4, decoder_init_norm=1.0, **more
        )
    )
    trained.topk_threshold.fill_(0.4)
    trained.cfg.metadata.hook_name = POST
    trained.save_inference_model(tmp_path / "sae")
    ours = load_sae(tmp_path / "sae", tiny_models.load("native"))
    assert ours.architecture == "jumprelu"
    x = activations()
    z = ours.encode(x)
    assert (z != 0).any()
    assert ((z == 0) | (z > 0.39)).all()
