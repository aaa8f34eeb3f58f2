"""What the model does on one prompt, compared with the weights themselves."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from benchmarks.known_circuits.forward import run_forward
from benchmarks.random_models.tiny_models import VOCAB, save_hugging_face, save_tokenizer
from discovery.errors import MeasurementError, MemoryLimitError, SiteError
from discovery.methods.prompt_run import run_with_cache, summarise_activation
from discovery.sites import ActivationKind, Site

PROMPT = (3, 17, 5, 5, 28)


@pytest.mark.parametrize("name", ["native", "attn_only"])
def test_predictions_are_what_the_weights_give(tiny_models: Any, name: str) -> None:
    weights = tiny_models.native(name)
    run = run_with_cache(tiny_models.load(name), PROMPT, top=5)
    by_hand = run_forward(weights.config, weights.state, torch.tensor([PROMPT]))
    logits = by_hand.logits[0, -1]
    order = logits.argsort(descending=True)[:5].tolist()
    assert run.tokens == PROMPT
    assert run.texts is None
    assert [p.token for p in run.predictions] == order
    assert [p.text for p in run.predictions] == [None] * 5
    assert [p.logit for p in run.predictions] == pytest.approx(logits[order].tolist(), abs=1e-4)
    assert [p.probability for p in run.predictions] == pytest.approx(
        logits.softmax(0)[order].tolist(), abs=1e-5
    )


@pytest.mark.parametrize("name", ["native", "attn_only"])
def test_norms_and_activations_are_what_the_weights_give(tiny_models: Any, name: str) -> None:
    model = tiny_models.load(name)
    weights = tiny_models.native(name)
    run = run_with_cache(model, PROMPT, ["head_out", "pattern", "resid_pre"])
    by_hand = run_forward(weights.config, weights.state, torch.tensor([PROMPT]))
    stream = run.activations[Site("resid_pre", 0)].double()
    for layer in range(2):
        heads = torch.stack([by_hand.nodes[f"a{layer}.h{h}"][0] for h in range(3)])
        z = run.activations[Site("z", layer)]
        assert z.shape == (5, 3, 6)
        torch.testing.assert_close(
            torch.einsum("phd,hdm->hpm", z, model.head_weights(layer)).double(),
            heads,
            atol=1e-4,
            rtol=1e-4,
        )
        patterns = torch.stack([by_hand.patterns[f"a{layer}.h{h}"][0] for h in range(3)])
        torch.testing.assert_close(
            run.activations[Site("pattern", layer)].double(), patterns, atol=1e-5, rtol=1e-4
        )
        written = heads.sum(0) + weights.state[f"blocks.{layer}.attn.b_O"]
        torch.testing.assert_close(
            run.attention_norm[layer].double(), written.norm(dim=-1), atol=1e-4, rtol=1e-4
        )
        stream = stream + written
        if name == "native":
            assert run.mlp_norm is not None
            torch.testing.assert_close(
                run.mlp_norm[layer].double(),
                by_hand.nodes[f"m{layer}"][0].norm(dim=-1),
                atol=1e-4,
                rtol=1e-4,
            )
            stream = stream + by_hand.nodes[f"m{layer}"][0]
        torch.testing.assert_close(
            run.residual_norm[layer].double(), stream.norm(dim=-1), atol=1e-4, rtol=1e-4
        )
    assert (run.mlp_norm is None) is (name == "attn_only")
    assert len(run.activations) == 6


def test_every_site_has_its_shape(tiny_models: Any) -> None:
    run = run_with_cache(tiny_models.load("native"), PROMPT, get_args(ActivationKind))
    assert len(run.activations) == 2 * len(get_args(ActivationKind))
    for site, value in run.activations.items():
        shape = {
            "z": (5, 3, 6),
            "q": (5, 3, 6),
            "k": (5, 3, 6),
            "v": (5, 3, 6),
            "pattern": (3, 5, 5),
        }.get(site.kind, (5, 12))
        assert value.shape == shape, site


def test_a_single_site_and_nothing_at_all(tiny_models: Any) -> None:
    model = tiny_models.load("native")
    run = run_with_cache(model, list(PROMPT), [Site("v", 1)])
    assert list(run.activations) == [Site("v", 1)]
    none = run_with_cache(model, PROMPT)
    assert none.activations == {}
    assert none.residual_norm.shape == (2, 5)
    assert len(none.predictions) == 10


@pytest.mark.parametrize(("top", "shown"), [(0, 1), (-3, 1), (3, 3), (1000, VOCAB)])
def test_how_many_predictions(tiny_models: Any, top: int, shown: int) -> None:
    predictions = run_with_cache(tiny_models.load("native"), PROMPT, top=top).predictions
    assert len(predictions) == shown
    assert [p.probability for p in predictions] == sorted(
        (p.probability for p in predictions), reverse=True
    )
    if shown == VOCAB:
        assert sum(p.probability for p in predictions) == pytest.approx(1.0, abs=1e-5)


def test_a_prompt_in_words(tmp_path: Any) -> None:
    """Text is tokenised with the first token; predictions have texts; the ids give the same."""
    from discovery import load_model

    folder = save_tokenizer(save_hugging_face(tmp_path / "words", "gpt2", vocab_size=8), bos=True)
    model = load_model(folder)
    run = run_with_cache(model, "the cat sees", top=8)
    assert run.texts is not None
    assert run.tokens == (0, 2, 3, 5)
    assert [text.strip() for text in run.texts] == ["<s>", "the", "cat", "sees"]
    assert {str(p.text).strip() for p in run.predictions} == {
        "<s>",
        "<unk>",
        "the",
        "cat",
        "dog",
        "sees",
        "fish",
        "bones",
    }
    again = run_with_cache(model, run.tokens, top=8)
    assert again.predictions == run.predictions
    assert again.texts == run.texts


def test_its_cost_is_about_one_pass(tiny_models: Any) -> None:
    """And the unembedding is of the answer position, as in the unit itself."""
    assert run_with_cache(
        tiny_models.load("native"), PROMPT
    ).cost.forward_equivalents == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ((), "0 tokens"),
        ((1,) * 13, "13 tokens"),
        ((1, VOCAB), f"Token id {VOCAB}"),
        ((1, -1), "Token id -1"),
        ("the cat", "no tokenizer"),
    ],
)
def test_prompts_that_cannot_be_run(tiny_models: Any, prompt: Any, words: str) -> None:
    with pytest.raises(MeasurementError, match=words) as fault:
        run_with_cache(tiny_models.load("native"), prompt)
    assert fault.value.cure


@pytest.mark.parametrize(
    ("name", "site", "words"),
    [
        ("native", "resid", "'resid' is not known"),
        ("native", Site("z", 2), "Layer 2 does not exist"),
        ("native", Site("z", -1), "Layer -1 does not exist"),
        ("attn_only", "mlp_out", "attention-only"),
        ("attn_only", "resid_mid", "no MLPs"),
        ("neox", "resid_mid", "in parallel"),
    ],
)
def test_sites_that_a_model_lacks(tiny_models: Any, name: str, site: Any, words: str) -> None:
    with pytest.raises(SiteError, match=words):
        run_with_cache(tiny_models.load(name), PROMPT, [site])


def test_where_memory_ends(tiny_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.load("native")

    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(model, "run", run_out)
    with pytest.raises(
        MemoryLimitError, match="not enough memory for 7 tokens and 2 sites"
    ) as caught:
        run_with_cache(model, (1,) * 7, ["resid_pre"])
    assert "2.00 GiB" in caught.value.detail


def test_moments_leave_out_what_is_not_finite() -> None:
    summary = summarise_activation(torch.tensor([[1.0, float("inf")], [3.0, 4.0]]))
    assert (summary.shape, summary.n_nonfinite) == ((2, 2), 1)
    assert summary.mean == pytest.approx(8 / 3)
    assert (summary.low, summary.high, summary.norm) == (1.0, 4.0, 5.0)
    empty = summarise_activation(torch.tensor([float("nan")]), None)
    assert (empty.mean, empty.n_nonfinite) == (None, 1)
