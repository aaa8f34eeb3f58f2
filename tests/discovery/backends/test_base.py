"""What a model says of itself: its nodes, and what it lacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from discovery.backends.base import WITHIN_A_LAYER, Prefix, forward_order
from discovery.errors import SiteError
from discovery.sites import EMBED, LOGITS, Site, head, mlp


def test_nodes_are_every_head_and_every_mlp_in_forward_order(shelf):
    info = shelf.load("gpt2").info
    names = [str(node) for node in info.nodes()]
    assert names == ["a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "a2.h0", "a2.h1", "m2"]
    assert [str(node) for node in info.nodes("heads")] == [name for name in names if name.startswith("a")]
    assert shelf.load("attn_only").info.nodes() == shelf.load("attn_only").info.nodes("heads")


def test_a_node_is_checked_against_the_model(shelf):
    info = shelf.load("gpt2").info
    assert [info.check(node) for node in info.nodes()] == list(info.nodes())
    for node in (head(3, 0), head(0, 2), mlp(3)):
        with pytest.raises(SiteError, match="does not exist in this model") as caught:
            info.check(node)
        assert "layers are 0 to 2, heads 0 to 1" in caught.value.cure
    for node in (EMBED, LOGITS):
        with pytest.raises(SiteError, match="is never ablated"):
            info.check(node)
    with pytest.raises(SiteError, match="attention-only"):
        shelf.load("attn_only").info.check(mlp(0))


def test_sites_sort_as_a_forward_pass_meets_them():
    sites = [Site(kind, layer) for layer in (1, 0) for kind in reversed(WITHIN_A_LAYER)]  # type: ignore[arg-type]
    expected = [(kind, layer) for layer in (0, 1) for kind in WITHIN_A_LAYER]
    assert [(site.kind, site.layer) for site in sorted(sites, key=forward_order)] == expected


def test_fewer_logits_than_token_ids(shelf):
    info = shelf.load("gpt2").info
    assert info.n_logits == info.d_vocab
    assert replace(info, d_vocab_out=5).n_logits == 5


def test_a_prefix_takes_rows_and_positions():
    keys = torch.arange(2 * 1 * 4 * 3.0).reshape(2, 1, 4, 3)
    prefix = Prefix((keys, keys + 100), (keys + 200, keys + 300))
    taken = prefix.take(torch.tensor([1, 1, 0]), 2)
    assert taken.keys[1].shape == (3, 1, 2, 3)
    torch.testing.assert_close(taken.keys[1][2], keys[0, :, :2] + 100)
    torch.testing.assert_close(taken.values[0][0], keys[1, :, :2] + 200)
    assert prefix.nbytes == 4 * keys.nbytes
