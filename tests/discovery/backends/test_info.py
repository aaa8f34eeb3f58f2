"""The description of a model: its nodes, and which nodes it lacks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from discovery.errors import SiteError
from discovery.sites import EMBED, LOGITS, head, mlp


def test_nodes_are_every_head_and_every_mlp_in_forward_order(tiny_models):
    info = tiny_models.load("gpt2").info
    names = [str(node) for node in info.nodes()]
    assert names == ["a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "a2.h0", "a2.h1", "m2"]
    assert [str(node) for node in info.nodes("heads")] == [
        name for name in names if name.startswith("a")
    ]
    assert tiny_models.load("attn_only").info.nodes() == tiny_models.load("attn_only").info.nodes(
        "heads"
    )


def test_a_node_is_checked_against_the_model(tiny_models):
    info = tiny_models.load("gpt2").info
    assert [info.require_node(node) for node in info.nodes()] == list(info.nodes())
    for node in (head(3, 0), head(0, 2), mlp(3)):
        with pytest.raises(SiteError, match="does not exist in this model") as caught:
            info.require_node(node)
        assert "layers are 0 to 2, heads 0 to 1" in caught.value.cure
    for node in (EMBED, LOGITS):
        with pytest.raises(SiteError, match="is never ablated"):
            info.require_node(node)
    with pytest.raises(SiteError, match="attention-only"):
        tiny_models.load("attn_only").info.require_node(mlp(0))


def test_fewer_logits_than_token_ids(tiny_models):
    info = tiny_models.load("gpt2").info
    assert info.n_logits == info.d_vocab
    assert replace(info, d_vocab_out=5).n_logits == 5
