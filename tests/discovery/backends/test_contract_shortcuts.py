"""The contract of shortcuts: a run that skips work gives what the plain module computes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discovery.backends.base import Batch
from discovery.interventions import scale
from discovery.sites import Site
from tests.discovery.backends.contract import (
    ALL_BACKENDS,
    CLOSE,
    KINDS,
    LENGTHS,
    ROWS,
    SEQUENTIAL,
    WIDTH,
    at_answer,
    has_site,
    random_edit,
    shape_of,
    tokens_of,
)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_a_layer_can_be_the_start(tiny_models, backend, plain_modules, architecture):
    """A run may start from a layer's own residual stream, and from a changed one."""
    model, last = tiny_models.load(architecture, backend, "float64"), LENGTHS - 1
    n = model.info.n_layers
    for start in range(n + 1):
        site = Site("resid_post", n - 1) if start == n else Site("resid_pre", start)
        _, seen = plain_modules(architecture).run(tokens_of(), reads=[site])
        own = model.run(Batch(tokens_of(), last, start=start, residual=seen[site])).logits
        torch.testing.assert_close(
            own, at_answer(plain_modules(architecture).run(tokens_of())[0]), **CLOSE
        )
        changed = 2 * seen[site].flip(0) + 0.3
        logits, _ = plain_modules(architecture).run(
            tokens_of(), {site: lambda _, changed=changed: changed}
        )
        torch.testing.assert_close(
            model.run(Batch(tokens_of(), last, start=start, residual=changed)).logits,
            at_answer(logits),
            **CLOSE,
        )


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_edits_and_reads_after_a_start_are_the_plain_ones(
    tiny_models, backend, plain_modules, architecture
):
    model = tiny_models.load(architecture, backend, "float64")
    rng = torch.Generator().manual_seed(5)
    start = Site("resid_pre", 1)
    residual = torch.randn(ROWS, WIDTH, model.info.d_model, generator=rng, dtype=torch.float64)
    z, post = Site("z", 1), Site("resid_post", 1)
    edit, change = random_edit(model, z, "replace", rng)
    logits, seen = plain_modules(architecture).run(
        tokens_of(), {start: lambda _: residual, z: change}, [start, post]
    )
    out = model.run(
        Batch(tokens_of(), LENGTHS - 1, start=1, residual=residual), [start, post], [edit]
    )
    torch.testing.assert_close(out.logits, at_answer(logits), **CLOSE)
    for site in (start, post):
        torch.testing.assert_close(out.activations[site], seen[site], **CLOSE)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("architecture", SEQUENTIAL)
def test_a_layer_can_be_started_after_its_attention(
    tiny_models, backend, plain_modules, architecture
):
    model = tiny_models.load(architecture, backend, "float64")
    assert model.abilities.after_attention
    for layer in range(model.info.n_layers):
        site = Site("resid_mid", layer)
        changed = torch.randn(
            ROWS,
            WIDTH,
            model.info.d_model,
            generator=torch.Generator().manual_seed(layer),
            dtype=torch.float64,
        )
        logits, _ = plain_modules(architecture).run(
            tokens_of(), {site: lambda _, changed=changed: changed}
        )
        out = model.run(
            Batch(tokens_of(), LENGTHS - 1, start=layer, residual=changed, after_attention=True)
        )
        torch.testing.assert_close(out.logits, at_answer(logits), **CLOSE)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_a_layer_can_be_the_end(tiny_models, backend, plain_modules, architecture):
    model = tiny_models.load(architecture, backend, "float64")
    for stop in range(1, model.info.n_layers + 1):
        sites = [Site("resid_pre", 0), Site("attn_out", stop - 1), Site("resid_post", stop - 1)]
        _, seen = plain_modules(architecture).run(tokens_of(), reads=sites)
        for batch in (Batch(tokens_of(), LENGTHS - 1, stop=stop), Batch(tokens_of(), stop=stop)):
            out = model.run(batch, sites)
            assert out.logits is None
            for site in sites:
                torch.testing.assert_close(out.activations[site], seen[site], **CLOSE)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_without_an_answer_position_there_are_no_logits(tiny_models, backend, architecture):
    model = tiny_models.load(architecture, backend, "float64")
    site = Site("resid_post", model.info.n_layers - 1)
    out = model.run(Batch(tokens_of()), [site])
    assert out.logits is None
    torch.testing.assert_close(
        out.activations[site], model.run(Batch(tokens_of(), LENGTHS - 1), [site]).activations[site]
    )


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_prefix_stands_for_the_positions_before(
    tiny_models, backend, plain_modules, architecture, cut
):
    """The rest is run from the first layer and from a later one, for rows in any order."""
    model = tiny_models.load(architecture, backend, "float64")
    assert model.abilities.prefix
    whole = model.run(Batch(tokens_of(), LENGTHS - 1), keep_prefix=True).prefix
    assert whole is not None
    assert len(whole.keys) == model.info.n_layers
    assert (
        whole.keys[0].shape
        == whole.values[0].shape
        == (ROWS, model.info.n_kv_heads, WIDTH, model.info.d_head)
    )
    assert (
        whole.nbytes
        == 2 * 8 * model.info.n_layers * ROWS * model.info.n_kv_heads * WIDTH * model.info.d_head
    )
    rows = torch.tensor([2, 0, 1, 0])
    prefix = whole.take(rows, cut)
    rest = tokens_of()[rows, cut:]
    last = LENGTHS[rows] - 1 - cut
    expected = at_answer(plain_modules(architecture).run(tokens_of())[0])[rows]
    torch.testing.assert_close(
        model.run(Batch(rest, last, prefix=prefix)).logits, expected, **CLOSE
    )
    site = Site("resid_pre", 1)
    _, seen = plain_modules(architecture).run(tokens_of(), reads=[site])
    torch.testing.assert_close(
        model.run(
            Batch(rest, last, start=1, residual=seen[site][rows, cut:], prefix=prefix)
        ).logits,
        expected,
        **CLOSE,
    )
    mixed = seen[site].clone()
    mixed[:, cut:] = mixed[:, cut:].flip(0)  # a change at and after the cut only
    logits, _ = plain_modules(architecture).run(tokens_of(), {site: lambda _: mixed})
    changed = model.run(
        Batch(rest, last, start=1, residual=mixed[rows, cut:], prefix=prefix)
    ).logits
    torch.testing.assert_close(changed, at_answer(logits)[rows], **CLOSE)
    again = model.run(Batch(rest, last, prefix=prefix)).logits
    torch.testing.assert_close(again, expected, **CLOSE)  # the prefix was not written to


@pytest.mark.parametrize("cut", [0, 3])
def test_rows_that_join_at_a_layer_are_the_plain_ones(
    tiny_models, backend, plain_modules, architecture, cut
):
    """Changed residual streams enter at every layer of one pass, with a prefix or without."""
    model = tiny_models.load(architecture, backend, "float64")
    assert model.abilities.joins
    n, rows = model.info.n_layers, torch.tensor([2, 0, 1])
    whole = model.run(Batch(tokens_of(), LENGTHS - 1), keep_prefix=True).prefix if cut else None
    entering, expected = {}, []
    for layer in range(n):
        site = Site("resid_pre", layer)
        _, seen = plain_modules(architecture).run(tokens_of(), reads=[site])
        changed = seen[site].clone()
        changed[:, cut:] = 2 * changed[:, cut:].flip(0) + 0.1 * (layer + 1)
        logits, _ = plain_modules(architecture).run(
            tokens_of(), {site: lambda _, changed=changed: changed}
        )
        entering[layer] = changed[rows, cut:]
        expected.append(at_answer(logits)[rows])
    for layers in (range(n), range(n - 1, n)):
        streams = [entering[layer] for layer in layers]
        order = rows.repeat(len(streams))
        counts = [sum(len(rows) for at in layers if at <= layer) for layer in range(n)]
        batch = Batch(
            tokens_of()[order, cut:],
            LENGTHS[order] - 1 - cut,
            start=layers[0],
            residual=streams[0],
            prefix=whole.take_by_layer(order, counts, cut) if whole is not None else None,
            joins=dict(zip(layers[1:], streams[1:], strict=True)),
        )
        torch.testing.assert_close(
            model.run(batch).logits, torch.cat([expected[layer] for layer in layers]), **CLOSE
        )


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(["gpt2", "llama", "neox", "gemma"]), st.integers(0, 10**6))
def test_a_last_layer_restricted_to_the_answer_gives_the_plain_logits(
    tiny_models, backend, plain_modules, architecture, seed
):
    """Edits before, in and after the last attention are right, by row and by index."""
    model = tiny_models.load(architecture, backend, "float64")
    rng = torch.Generator().manual_seed(seed)
    pick = random.Random(seed)
    assert model.abilities.last_position_only
    n = model.info.n_layers
    sites = [
        Site(site, layer)
        for layer in (0, n - 1, n - 1)
        for site in KINDS
        if has_site(architecture, site)
    ]
    edits, changes, index = [], {}, torch.arange(ROWS)
    for site in pick.sample(sites, pick.randint(1, 5)):
        if site in changes:
            continue
        edit, changes[site] = random_edit(
            model, site, pick.choice(["replace", "add", "scale"]), rng
        )
        by_index = edit.value.ndim == len(shape_of(model, site)) and pick.random() < 0.5
        edits.append(
            replace(edit, value=edit.value.flip(0), index=index.flip(0)) if by_index else edit
        )
    logits, _ = plain_modules(architecture).run(tokens_of(seed), changes)
    read = [Site("resid_pre", n - 1)]
    out = model.run(Batch(tokens_of(seed), LENGTHS - 1, last_position_only=True), read, edits)
    torch.testing.assert_close(out.logits, at_answer(logits), **CLOSE)
    with pytest.raises(ValueError, match="computed at one position only"):
        model.run(
            Batch(tokens_of(seed), LENGTHS - 1, last_position_only=True), [Site("attn_out", n - 1)]
        )


def test_an_mlp_that_cannot_be_given_one_position_is_run_whole(tiny_models, backend):
    """The MLP of OPT flattens rows and positions."""
    model = tiny_models.load("opt", backend)
    assert not model.abilities.last_position_only
    with pytest.raises((RuntimeError, IndexError)):
        model.run(Batch(tokens_of(), LENGTHS - 1, last_position_only=True))


def test_nothing_is_read_or_edited_if_rows_join(tiny_models, backend):
    model = tiny_models.load("gpt2", backend)
    stream = torch.zeros(ROWS, WIDTH, model.info.d_model)
    batch = Batch(
        tokens_of().repeat(2, 1), LENGTHS.repeat(2) - 1, start=0, residual=stream, joins={1: stream}
    )
    for arguments in (
        {"reads": [Site("z", 0)]},
        {"edits": [scale(Site("z", 0), 0.0)]},
        {"grad": True},
    ):
        with pytest.raises(ValueError, match="that rows join"):
            model.run(batch, **arguments)


def test_a_prefix_can_be_extended_and_kept(tiny_models, backend, architecture):
    model, cut = tiny_models.load(architecture, backend, "float64"), 3
    whole = model.run(Batch(tokens_of(), LENGTHS - 1), keep_prefix=True).prefix
    before = model.run(
        Batch(tokens_of()[:, :cut], torch.full((ROWS,), cut - 1)), keep_prefix=True
    ).prefix
    after = model.run(
        Batch(tokens_of()[:, cut:], LENGTHS - 1 - cut, prefix=before), keep_prefix=True
    ).prefix
    for got, expected in zip(
        (*after.keys, *after.values), (*whole.keys, *whole.values), strict=True
    ):
        torch.testing.assert_close(got, expected, **CLOSE)


def test_columns_are_entries_of_the_logits(tiny_models, backend, architecture):
    model = tiny_models.load(architecture, backend, "float64")
    assert model.abilities.columns
    columns = torch.tensor([[0, 5, 5], [30, 1, -1], [2, -1, -1]])
    got = model.run(Batch(tokens_of(), LENGTHS - 1, columns=columns)).logits
    full = model.run(Batch(tokens_of(), LENGTHS - 1)).logits
    real = columns >= 0
    torch.testing.assert_close(got[real], full.gather(1, columns.clamp(min=0))[real], **CLOSE)


def test_heads_and_blocks_add_up(tiny_models, backend, architecture):
    """attn_out is Σ z·W_O plus a constant bias; resid_post is resid_pre plus both outputs."""
    model = tiny_models.load(architecture, backend, "float64")
    assert model.abilities.linear_heads
    for layer in range(model.info.n_layers):
        z, attn, mlp, pre, post = (
            Site(name, layer) for name in ("z", "attn_out", "mlp_out", "resid_pre", "resid_post")
        )  # type: ignore[arg-type]
        seen = model.run(Batch(tokens_of(), LENGTHS - 1), [z, attn, mlp, pre, post]).activations
        weights = model.head_weights(layer)
        assert weights.shape == (model.info.n_heads, model.info.d_head, model.info.d_model)
        bias = seen[attn] - torch.einsum("rphd,hdm->rpm", seen[z], weights)
        torch.testing.assert_close(bias, bias[:1, :1].expand_as(bias), **CLOSE)
        torch.testing.assert_close(seen[post], seen[pre] + seen[attn] + seen[mlp], **CLOSE)


def test_a_start_without_its_residual_stream_is_a_bug(tiny_models, backend, architecture):
    with pytest.raises(ValueError, match="residual"):
        tiny_models.load(architecture, backend, "float64").run(
            Batch(tokens_of(), LENGTHS - 1, start=1)
        )
