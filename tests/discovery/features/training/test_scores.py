"""The scores are what their definitions say, against the plain Hugging Face module."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import load_plain_module
from discovery.features.sae import Codes
from discovery.features.training.scores import score_sae
from discovery.sites import Site
from tests.discovery.features.training.conftest import token_rows
from tests.oracles.models.next_token_loss import next_token_loss

SITE = Site("resid_post", 1)


def exact(x):
    return Codes(x, x, torch.ones_like(x[..., :1]))


def nothing(x):
    return Codes(torch.zeros_like(x), torch.zeros_like(x), torch.ones_like(x[..., :1]))


def half(x):
    return Codes(torch.ones_like(x), 0.5 * x, torch.ones_like(x[..., :1]))


@pytest.mark.parametrize("skip", [0, 1])
def test_against_the_plain_module(skip, tiny_models):
    model = tiny_models.load("gpt2")
    module = load_plain_module(tiny_models.path("gpt2"))
    rows = token_rows(40)
    scores = score_sae(model, SITE, rows, skip, half, 0.25)
    assert (scores.tokens, scores.l0, scores.dead) == (
        sum(len(row) - skip for row in rows),
        16.0,
        0.25,
    )
    assert scores.loss_clean == pytest.approx(
        next_token_loss(module, SITE.layer, rows, None, skip), abs=1e-4
    )
    assert scores.loss_spliced == pytest.approx(
        next_token_loss(module, SITE.layer, rows, lambda x: 0.5 * x, skip), abs=1e-4
    )
    assert scores.loss_zero == pytest.approx(
        next_token_loss(module, SITE.layer, rows, torch.zeros_like, skip), abs=1e-4
    )
    recovered = (scores.loss_zero - scores.loss_spliced) / (scores.loss_zero - scores.loss_clean)
    assert scores.loss_recovered == (
        pytest.approx(recovered) if scores.loss_zero > scores.loss_clean else None
    )
    with torch.no_grad():
        hidden = torch.cat(
            [
                module(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0, skip:]
                for row in rows
            ]
        )
    residual = (0.5 * hidden).square().sum() / (hidden - hidden.mean(0)).square().sum()
    assert scores.variance_explained == pytest.approx(1 - float(residual), abs=1e-4)
    mean = hidden.mean(0)
    assert scores.loss_mean == pytest.approx(
        next_token_loss(module, SITE.layer, rows, lambda x: mean.expand_as(x), skip), abs=1e-4
    )


@pytest.mark.parametrize("name", ["gpt2", "rotary", "attn_only"])
@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "z", "k"])
def test_the_identity_loses_nothing_and_zeros_lose_all(kind, name, tiny_models):
    model = tiny_models.load(name)
    rows = token_rows(12)
    site = Site(kind, 1)
    scores = score_sae(model, site, rows, 0, exact)
    assert scores.variance_explained == pytest.approx(1)
    assert scores.loss_spliced == pytest.approx(scores.loss_clean, abs=1e-5)
    none = score_sae(model, site, rows, 0, nothing)
    assert none.l0 == 0
    assert none.loss_spliced == pytest.approx(none.loss_zero, abs=1e-6)
    if scores.loss_recovered is not None:
        assert scores.loss_recovered == pytest.approx(1, abs=1e-3)
        assert none.loss_recovered == pytest.approx(0, abs=1e-3)
