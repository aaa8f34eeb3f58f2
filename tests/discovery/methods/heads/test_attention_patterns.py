"""Attention from one position equals that of the plain module."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, load_plain_module, random_pairs
from discovery.errors import MeasurementError, SiteError
from discovery.methods.heads import attention_patterns

BACKENDS = ("transformerlens", "nnsight")


def attentions(module, tokens):
    """Every pattern of a prompt [layer head dst src], as Hugging Face returns it."""
    with torch.no_grad():
        out = module(torch.tensor([tokens]), output_attentions=True)
    return torch.stack([layer[0] for layer in out.attentions])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "gemma2"])
def test_shares_by_label(tiny_models, name, backend):
    model = tiny_models.load(name, backend)
    module = load_plain_module(tiny_models.path(name))
    task = as_task(random_pairs([6, 4, 7, 6], seed=3, labelled=True))
    looks = attention_patterns(model, task, top=9)
    assert looks.counts == "label"
    assert [looked.node for looked in looks.heads] == [str(n) for n in model.info.nodes("heads")]
    theirs = [attentions(module, pair.clean)[:, :, -1] for pair in task.pairs]
    for looked, node in zip(looks.heads, model.info.nodes("heads"), strict=True):
        rows = [row[node.layer, node.head] for row in theirs]
        entropies = [float(-torch.special.xlogy(row, row).sum()) for row in rows]
        assert looked.entropy.mean == pytest.approx(sum(entropies) / 4, abs=1e-5)
        assert looked.first.mean == pytest.approx(sum(float(row[0]) for row in rows) / 4, abs=1e-5)
        for share in looked.sources:
            known = [
                float(row[pair.labels[str(share.source)]])
                for row, pair in zip(rows, task.pairs, strict=True)
                if share.source in pair.labels
            ]
            assert share.share.mean == pytest.approx(sum(known) / len(known), abs=1e-5)
            assert share.share.low <= share.share.mean <= share.share.high
        means = [share.share.mean for share in looked.sources]
        assert means == sorted(means, reverse=True)


def test_whole_patterns_of_named_heads(tiny_models):
    model = tiny_models.load("llama")
    module = load_plain_module(tiny_models.path("llama"))
    looks = attention_patterns(model, prompt=(3, 9, 4, 11), nodes=["L2H1", "a0.h3"], position=2)
    expected = attentions(module, (3, 9, 4, 11))
    assert [looked.node for looked in looks.heads] == ["a0.h3", "a2.h1"]
    assert looks.patterns is not None
    torch.testing.assert_close(looks.patterns[0], expected[0, 3], atol=1e-5, rtol=0)
    torch.testing.assert_close(looks.patterns[1], expected[2, 1], atol=1e-5, rtol=0)
    assert looks.counts == "position"
    assert {share.source for share in looks.heads[0].sources} == {0, 1, 2}
    assert sum(share.share.mean for share in looks.heads[0].sources) == pytest.approx(1, abs=1e-5)
    assert looks.tokens == ("3", "9", "4", "11")


def test_prompts_of_several_lengths_count_backwards(tiny_models):
    model = tiny_models.load("gpt2")
    module = load_plain_module(tiny_models.path("gpt2"))
    task = as_task(random_pairs([6, 4, 7], seed=5))
    looks = attention_patterns(model, task, nodes=["a1.h0"], top=20)
    assert looks.counts == "offset"
    shares = {share.source: share.share.mean for share in looks.heads[0].sources}
    expected = [float(attentions(module, pair.clean)[1, 0, -1, -2]) for pair in task.pairs]
    assert shares[-1] == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_bounded_memory_gives_the_same(tiny_models):
    from discovery.engine.memory import CACHE_PERCENT, pair_bytes

    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([6] * 7, seed=6))
    memory = 2 * pair_bytes(model.info, 6) * 100 // CACHE_PERCENT + 100
    small = attention_patterns(model, task, memory=memory)
    whole = attention_patterns(model, task)
    for mine, other in zip(small.heads, whole.heads, strict=True):
        assert mine.entropy.mean == pytest.approx(other.entropy.mean, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nodes": ["m0"]}, MeasurementError, "m0 is no head"),
        ({"nodes": ["a9.h0"]}, SiteError, "does not exist"),
        ({"nodes": []}, MeasurementError, "nodes is empty"),
        ({"position": 9}, MeasurementError, "position 9"),
        ({"top": 0}, MeasurementError, "top is 0"),
    ],
)
def test_bad_input(tiny_models, arguments, error, message):
    with pytest.raises(error, match=message):
        attention_patterns(tiny_models.load("gpt2"), prompt=(1, 2, 3), **arguments)
