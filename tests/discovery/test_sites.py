"""Names of places: they are parsed as printed, refused if wrong, and sort in forward order."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.errors import SiteError
from discovery.sites import (
    EMBED,
    LOGITS,
    Edge,
    FeatureSite,
    Node,
    Site,
    feature,
    head,
    mlp,
    slots_of,
)

LAYERS = st.integers(0, 200)
HEADS = st.builds(head, LAYERS, LAYERS)
MLPS = st.builds(mlp, LAYERS)
FEATURES = st.builds(feature, LAYERS, LAYERS, st.sampled_from(get_args(FeatureSite)))
NODES = st.one_of(HEADS, MLPS, FEATURES, st.sampled_from([EMBED, LOGITS]))


@given(NODES)
def test_every_node_is_parsed_as_it_is_printed(node):
    assert Node.parse(str(node)) == node
    assert Node.parse(node.label) == node
    assert Node.parse(f"  {node}\n") == node


@pytest.mark.parametrize("text", ["a9.h6", "L9H6", "9.6"])
def test_three_ways_to_write_a_head(text):
    node = Node.parse(text)
    assert (node.kind, node.layer, node.head, str(node), node.label) == (
        "attention_head",
        9,
        6,
        "a9.h6",
        "L9H6",
    )


@pytest.mark.parametrize("text", ["m5", "M5", "MLP5", "mlp5"])
def test_four_ways_to_write_an_mlp(text):
    node = Node.parse(text)
    assert (node.kind, node.layer, node.head, str(node), node.label) == (
        "mlp",
        5,
        None,
        "m5",
        "MLP5",
    )


@pytest.mark.parametrize("text", ["f8.12", "L8F12", "f8.12@resid_pre"])
def test_three_ways_to_write_a_feature(text):
    node = Node.parse(text)
    assert (node.kind, node.layer, node.feature, node.site) == ("feature", 8, 12, "resid_pre")
    assert (str(node), node.label, slots_of(node)) == ("f8.12", "L8F12", ("feature",))
    assert str(Node.parse("L8F12@mlp_out")) == "f8.12@mlp_out"
    assert str(Edge.parse("a7.h0->f8.12<feature>")) == "a7.h0->f8.12<feature>"


def test_a_feature_sorts_at_the_site_it_is_written_to():
    sites = ["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    nodes = [*(feature(1, 0, site) for site in sites), head(1, 0), mlp(1), mlp(0), head(2, 0)]
    assert " ".join(map(str, sorted(nodes))) == (
        "m0 f1.0 a1.h0 f1.0@z f1.0@attn_out f1.0@resid_mid m1 f1.0@mlp_out f1.0@resid_post a2.h0"
    )
    assert not feature(1, 0).feeds(feature(1, 1))


@pytest.mark.parametrize(
    "text",
    [
        "f8.12@q",
        "f8",
        "f8.12@",
        "F8.12",
        "f8.h1",
        "",
        "a9",
        "a9.h",
        "h6",
        "9",
        "9.6.1",
        "a-1.h0",
        "m",
        "m5.5",
        "a9h6",
        "embed0",
        "a9.h6 m5",
        "x5",
    ],
)
def test_other_names_are_refused_with_the_way_to_write_them(text):
    with pytest.raises(SiteError, match="is not the name of a node") as caught:
        Node.parse(text)
    assert "a9.h6" in caught.value.cure
    assert "m5" in caught.value.cure


@given(st.lists(NODES, max_size=8))
def test_nodes_sort_in_forward_order(nodes):
    ordered = sorted(nodes)
    assert ordered == sorted(random.Random(0).sample(nodes, len(nodes)))
    for earlier, later in pairwise(ordered):
        assert earlier.order <= later.order
        assert not later.feeds(earlier)


def test_forward_order_by_hand():
    nodes = [LOGITS, mlp(1), head(1, 0), mlp(0), head(0, 10), head(0, 2), EMBED]
    assert [str(node) for node in sorted(nodes)] == [
        "embed",
        "a0.h2",
        "a0.h10",
        "m0",
        "a1.h0",
        "m1",
        "logits",
    ]


def test_heads_of_one_layer_do_not_feed_each_other_but_they_feed_the_mlp():
    assert not head(1, 0).feeds(head(1, 1))
    assert not head(1, 1).feeds(head(1, 0))
    assert head(1, 0).feeds(mlp(1))
    assert not mlp(1).feeds(head(1, 0))
    assert mlp(1).feeds(head(2, 0))
    assert EMBED.feeds(head(0, 0))
    assert mlp(7).feeds(LOGITS)
    assert not LOGITS.feeds(LOGITS)


@given(NODES, NODES, st.sampled_from(["q", "k", "v", "mlp", "logits"]))
def test_an_edge_exists_if_the_source_is_earlier_and_the_target_has_the_input(source, target, slot):
    text = f"{source}->{target}<{slot}>"
    if source.feeds(target) and slot in slots_of(target):
        assert str(Edge.parse(text)) == text
        assert Edge.parse(text) == Edge(source, target, slot)
    else:
        with pytest.raises(SiteError, match="cannot exist"):
            Edge.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "a0.h0",
        "a0.h0->m1",
        "a0.h0->m1<>",
        "a0.h0->a1.h0<z>",
        "a0.h0-a1.h0<q>",
        "->m1<mlp>",
        "a0.h0->b1<q>",
    ],
)
def test_other_names_of_edges_are_refused(text):
    with pytest.raises(SiteError):
        Edge.parse(text)


def test_slots():
    assert slots_of(head(0, 0)) == ("q", "k", "v")
    assert slots_of(mlp(0)) == ("mlp",)
    assert slots_of(LOGITS) == ("logits",)
    assert slots_of(EMBED) == ()


def test_sites_are_values():
    assert Site("z", 1) == Site("z", 1)
    assert len({Site("z", 1), Site("z", 1), Site("z", 2)}) == 2
    assert sorted([Site("z", 0), Site("q", 3), Site("q", 1)]) == [
        Site("q", 1),
        Site("q", 3),
        Site("z", 0),
    ]
