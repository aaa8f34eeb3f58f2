"""The contract: what `run` reads, edits and skips is what the plain module computes when it is hooked by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.random_models.tiny_models import VOCAB, TinyModels, load_plain_module
from discovery.backends.base import Batch
from discovery.errors import SiteError
from discovery.interventions import Edit, add, replace_with, scale
from discovery.sites import ActivationKind, Site
from tests.oracles.hooked_module import MODULE_NAMES, Change, HookedModule

ROWS, WIDTH = 3, 7
LENGTHS = torch.tensor([7, 5, 6])
KINDS: tuple[ActivationKind, ...] = (
    "resid_pre",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
)
SEQUENTIAL = ("gpt2", "llama", "mistral", "qwen2", "gemma")
CLOSE = {
    "atol": 1e-5,
    "rtol": 1e-5,
}  # in float64; some norms and softmaxes of Hugging Face stay in float32


def tokens_of(seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (ROWS, WIDTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def plains(tiny_models: TinyModels) -> Callable[[str], HookedModule]:
    """Plain modules, loaded once."""
    kept: dict[str, HookedModule] = {}

    def get(kind: str) -> HookedModule:
        if kind not in kept:
            kept[kind] = HookedModule(
                load_plain_module(tiny_models.path(kind), torch.float64), kind
            )
        return kept[kind]

    return get


@pytest.fixture(params=list(MODULE_NAMES))
def kind(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    name: str = request.param
    return name


def has(kind: str, site: ActivationKind) -> bool:
    if kind == "opt" and site == "q":
        return False  # Hugging Face scales it behind the projection; where the scale goes is the engine's affair
    return site != "resid_mid" or kind in SEQUENTIAL


def at_last(logits: Tensor) -> Tensor:
    return logits[torch.arange(ROWS), LENGTHS - 1]


def shape_of(model: Any, site: Site) -> tuple[int, ...]:
    if site.kind in ("q", "z", "k", "v"):
        return (
            ROWS,
            WIDTH,
            model.info.n_heads if site.kind in "qz" else model.info.n_kv_heads,
            model.info.d_head,
        )
    return ROWS, WIDTH, model.info.d_model


def random_edit(
    model: Any, site: Site, operation: str, rng: torch.Generator
) -> tuple[Edit, Change]:
    """An edit in random places, as a value and as a function."""
    shape = shape_of(model, site)
    value = torch.randn(shape, generator=rng, dtype=torch.float64)
    where = torch.rand(shape[:-1], generator=rng) < 0.4
    where[torch.arange(ROWS), LENGTHS - 1] = True
    inside = where.unsqueeze(-1)
    if operation == "replace":
        return replace_with(site, value, where), lambda a: torch.where(inside, value, a)
    if operation == "add":
        return add(site, value, where), lambda a: a + inside * value
    return scale(site, -1.5, where), lambda a: torch.where(inside, -1.5 * a, a)


def test_reads_are_the_plain_activations(tiny_models, backend, plains, kind):
    model = tiny_models.load(kind, backend, "float64")
    sites = [
        Site(site, layer)
        for layer in range(model.info.n_layers)
        for site in KINDS
        if has(kind, site)
    ]
    logits, expected = plains(kind).run(tokens_of(), reads=sites)
    out = model.run(Batch(tokens_of(), LENGTHS - 1), sites)
    torch.testing.assert_close(out.logits, at_last(logits), **CLOSE)
    assert set(out.activations) == set(sites)
    for site in sites:
        assert out.activations[site].shape == shape_of(model, site), site
        torch.testing.assert_close(
            out.activations[site],
            expected[site],
            **CLOSE,
            msg=lambda text, site=site: f"{site}: {text}",
        )


OPERATIONS = ("replace", "add", "scale")
EDITS = [
    (kind, site, operation)
    for kind in MODULE_NAMES
    for number, site in enumerate(KINDS)
    if has(kind, site)
    for operation in (
        OPERATIONS if kind in ("gpt2", "llama", "neox", "opt") else OPERATIONS[number % 3 :][:1]
    )  # by turns on the rest
]


@pytest.mark.parametrize(("kind", "site_kind", "operation"), EDITS)
def test_an_edit_at_each_site_is_the_plain_one(
    tiny_models, backend, plains, kind, site_kind, operation
):
    model, rng = tiny_models.load(kind, backend, "float64"), torch.Generator().manual_seed(1)
    last = Site("resid_post", model.info.n_layers - 1)
    unchanged = model.run(Batch(tokens_of(), LENGTHS - 1)).logits
    for layer in range(model.info.n_layers):
        site = Site(site_kind, layer)
        edit, change = random_edit(model, site, operation, rng)
        logits, seen = plains(kind).run(tokens_of(), {site: change}, [site, last])
        out = model.run(Batch(tokens_of(), LENGTHS - 1), [site, last], [edit])
        torch.testing.assert_close(out.logits, at_last(logits), **CLOSE)
        torch.testing.assert_close(out.activations[site], seen[site], **CLOSE)
        torch.testing.assert_close(out.activations[last], seen[last], **CLOSE)
    assert not torch.allclose(
        at_last(logits), unchanged, atol=1e-3
    )  # the last layer's: these weights do matter
    torch.testing.assert_close(
        model.run(Batch(tokens_of(), LENGTHS - 1)).logits, unchanged, atol=0, rtol=0
    )  # and nothing stays


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(["gpt2", "llama", "neox"]), st.integers(0, 10**6))
def test_many_edits_at_once_are_applied_in_forward_order(tiny_models, backend, plains, kind, seed):
    """Several sites of one layer too: what stands later sees what was changed earlier."""
    model, rng, pick = (
        tiny_models.load(kind, backend, "float64"),
        torch.Generator().manual_seed(seed),
        random.Random(seed),
    )
    sites = [
        Site(site, layer)
        for layer in range(model.info.n_layers)
        for site in KINDS
        if has(kind, site)
    ]
    chosen = pick.sample(sites, pick.randint(2, 6))
    edits, changes = [], {}
    for site in chosen:
        edit, changes[site] = random_edit(
            model, site, pick.choice(["replace", "add", "scale"]), rng
        )
        edits.append(edit)
    logits, seen = plains(kind).run(tokens_of(seed), changes, sites)
    out = model.run(Batch(tokens_of(seed), LENGTHS - 1), sites, edits)
    torch.testing.assert_close(out.logits, at_last(logits), **CLOSE)
    for site in sites:
        torch.testing.assert_close(
            out.activations[site],
            seen[site],
            **CLOSE,
            msg=lambda text, site=site: f"{site} after {chosen}: {text}",
        )


def test_resid_mid_takes_its_value_whatever_is_edited_before_it(tiny_models, backend):
    model = tiny_models.load("gpt2", backend, "float64")
    wanted = torch.randn(
        ROWS,
        WIDTH,
        model.info.d_model,
        generator=torch.Generator().manual_seed(2),
        dtype=torch.float64,
    )
    earlier = [replace_with(Site("resid_pre", 1), 3 * wanted), add(Site("attn_out", 1), wanted)]
    middle = Site("resid_mid", 1)
    for edits in (
        [*earlier, replace_with(middle, wanted)],
        [replace_with(middle, wanted), *earlier],
    ):
        seen = model.run(Batch(tokens_of(), LENGTHS - 1), [middle], edits).activations[middle]
        torch.testing.assert_close(seen, wanted, **CLOSE)


def test_two_edits_of_one_site_are_applied_in_their_order(tiny_models, backend, kind):
    model = tiny_models.load(kind, backend, "float64")
    site = Site("attn_out", 0)
    ones = torch.ones(1)
    seen = model.run(
        Batch(tokens_of(), LENGTHS - 1),
        [site],
        [replace_with(site, ones), scale(site, 3), add(site, ones)],
    ).activations[site]
    torch.testing.assert_close(seen, torch.full_like(seen, 4.0))


def test_an_edit_by_index_gathers_the_rows_pairs(tiny_models, backend, kind):
    model, site = tiny_models.load(kind, backend, "float64"), Site("mlp_out", 1)
    values = torch.randn(
        5,
        WIDTH,
        model.info.d_model,
        generator=torch.Generator().manual_seed(3),
        dtype=torch.float64,
    )
    pair = torch.tensor([4, 0, 4])
    by_index = model.run(
        Batch(tokens_of(), LENGTHS - 1), edits=[Edit(site, values, index=pair)]
    ).logits
    torch.testing.assert_close(
        by_index,
        model.run(Batch(tokens_of(), LENGTHS - 1), edits=[replace_with(site, values[pair])]).logits,
    )


def test_patterns_are_attention_weights_and_weigh_the_values(tiny_models, backend, plains, kind):
    """Read: Hugging Face's own. Replaced: z is then pattern · v, head by head."""
    model, layer = tiny_models.load(kind, backend, "float64"), 1
    assert model.abilities.pattern == ((kind, backend) != ("opt", "transformerlens"))
    pattern, v, z = (Site(name, layer) for name in ("pattern", "v", "z"))  # type: ignore[arg-type]
    out = model.run(Batch(tokens_of(), LENGTHS - 1), [pattern, v, z])
    own = plains(kind).module(input_ids=tokens_of(), output_attentions=True).attentions[layer]
    torch.testing.assert_close(out.activations[pattern], own, **CLOSE)
    if not model.abilities.pattern:  # its engine would not notice
        with pytest.raises(SiteError, match="can be read but not replaced"):
            model.run(Batch(tokens_of(), LENGTHS - 1), edits=[replace_with(pattern, own)])
        return
    drawn = torch.rand(
        own.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    ).tril()
    drawn = drawn / drawn.sum(-1, keepdim=True)
    values = out.activations[v].repeat_interleave(model.info.n_heads // model.info.n_kv_heads, 2)
    weighed = torch.einsum("rhds,rshe->rdhe", drawn, values)
    edited = model.run(Batch(tokens_of(), LENGTHS - 1), [z], [replace_with(pattern, drawn)])
    torch.testing.assert_close(edited.activations[z], weighed, **CLOSE)
    logits, _ = plains(kind).run(tokens_of(), {z: lambda _: weighed})
    torch.testing.assert_close(edited.logits, at_last(logits), **CLOSE)


def test_right_padding_changes_nothing(tiny_models, backend, kind):
    model = tiny_models.load(kind, backend, "float64")
    padded = model.run(Batch(tokens_of(), LENGTHS - 1)).logits
    other = tokens_of().masked_fill(torch.arange(WIDTH) >= LENGTHS.unsqueeze(1), 5)
    torch.testing.assert_close(model.run(Batch(other, LENGTHS - 1)).logits, padded, **CLOSE)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.run(
            Batch(tokens_of()[row : row + 1, :length], torch.tensor([length - 1]))
        ).logits
        torch.testing.assert_close(alone[0], padded[row], **CLOSE)


def test_a_layer_can_be_the_start(tiny_models, backend, plains, kind):
    """From each layer's own residual stream, and from a changed one."""
    model, last = tiny_models.load(kind, backend, "float64"), LENGTHS - 1
    n = model.info.n_layers
    for start in range(n + 1):
        site = Site("resid_post", n - 1) if start == n else Site("resid_pre", start)
        _, seen = plains(kind).run(tokens_of(), reads=[site])
        own = model.run(Batch(tokens_of(), last, start=start, residual=seen[site])).logits
        torch.testing.assert_close(own, at_last(plains(kind).run(tokens_of())[0]), **CLOSE)
        changed = 2 * seen[site].flip(0) + 0.3
        logits, _ = plains(kind).run(tokens_of(), {site: lambda _, changed=changed: changed})
        torch.testing.assert_close(
            model.run(Batch(tokens_of(), last, start=start, residual=changed)).logits,
            at_last(logits),
            **CLOSE,
        )


def test_edits_and_reads_after_a_start_are_the_plain_ones(tiny_models, backend, plains, kind):
    model, rng = tiny_models.load(kind, backend, "float64"), torch.Generator().manual_seed(5)
    start = Site("resid_pre", 1)
    residual = torch.randn(ROWS, WIDTH, model.info.d_model, generator=rng, dtype=torch.float64)
    z, post = Site("z", 1), Site("resid_post", 1)
    edit, change = random_edit(model, z, "replace", rng)
    logits, seen = plains(kind).run(
        tokens_of(), {start: lambda _: residual, z: change}, [start, post]
    )
    out = model.run(
        Batch(tokens_of(), LENGTHS - 1, start=1, residual=residual), [start, post], [edit]
    )
    torch.testing.assert_close(out.logits, at_last(logits), **CLOSE)
    for site in (start, post):
        torch.testing.assert_close(out.activations[site], seen[site], **CLOSE)


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_a_layer_can_be_started_after_its_attention(tiny_models, backend, plains, kind):
    model = tiny_models.load(kind, backend, "float64")
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
        logits, _ = plains(kind).run(tokens_of(), {site: lambda _, changed=changed: changed})
        out = model.run(
            Batch(tokens_of(), LENGTHS - 1, start=layer, residual=changed, after_attention=True)
        )
        torch.testing.assert_close(out.logits, at_last(logits), **CLOSE)


def test_a_layer_can_be_the_end(tiny_models, backend, plains, kind):
    model = tiny_models.load(kind, backend, "float64")
    for stop in range(1, model.info.n_layers + 1):
        sites = [Site("resid_pre", 0), Site("attn_out", stop - 1), Site("resid_post", stop - 1)]
        _, seen = plains(kind).run(tokens_of(), reads=sites)
        for batch in (Batch(tokens_of(), LENGTHS - 1, stop=stop), Batch(tokens_of(), stop=stop)):
            out = model.run(batch, sites)
            assert out.logits is None
            for site in sites:
                torch.testing.assert_close(out.activations[site], seen[site], **CLOSE)


def test_without_an_answer_position_there_are_no_logits(tiny_models, backend, kind):
    model = tiny_models.load(kind, backend, "float64")
    site = Site("resid_post", model.info.n_layers - 1)
    out = model.run(Batch(tokens_of()), [site])
    assert out.logits is None
    torch.testing.assert_close(
        out.activations[site], model.run(Batch(tokens_of(), LENGTHS - 1), [site]).activations[site]
    )


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_prefix_stands_for_the_positions_before(tiny_models, backend, plains, kind, cut):
    """Tokens after it, from the first layer and from a later one; its rows can be taken in any order."""
    model = tiny_models.load(kind, backend, "float64")
    assert model.abilities.prefix
    kept = model.run(Batch(tokens_of(), LENGTHS - 1), keep_prefix=True)
    assert kept.prefix is not None
    assert len(kept.prefix.keys) == model.info.n_layers
    assert (
        kept.prefix.keys[0].shape
        == kept.prefix.values[0].shape
        == (ROWS, model.info.n_kv_heads, WIDTH, model.info.d_head)
    )
    assert (
        kept.prefix.nbytes
        == 2 * 8 * model.info.n_layers * ROWS * model.info.n_kv_heads * WIDTH * model.info.d_head
    )
    rows = torch.tensor([2, 0, 1, 0])
    prefix, rest, last = (
        kept.prefix.take(rows, cut),
        tokens_of()[rows, cut:],
        LENGTHS[rows] - 1 - cut,
    )
    expected = at_last(plains(kind).run(tokens_of())[0])[rows]
    torch.testing.assert_close(
        model.run(Batch(rest, last, prefix=prefix)).logits, expected, **CLOSE
    )
    site, mixed = (
        Site("resid_pre", 1),
        torch.zeros(ROWS, WIDTH, model.info.d_model, dtype=torch.float64),
    )
    _, seen = plains(kind).run(tokens_of(), reads=[site])
    torch.testing.assert_close(
        model.run(
            Batch(rest, last, start=1, residual=seen[site][rows, cut:], prefix=prefix)
        ).logits,
        expected,
        **CLOSE,
    )
    mixed[:] = seen[site]
    mixed[:, cut:] = mixed[:, cut:].flip(0)  # a change at and after the cut only
    logits, _ = plains(kind).run(tokens_of(), {site: lambda _: mixed})
    changed = model.run(
        Batch(rest, last, start=1, residual=mixed[rows, cut:], prefix=prefix)
    ).logits
    torch.testing.assert_close(changed, at_last(logits)[rows], **CLOSE)
    again = model.run(Batch(rest, last, prefix=prefix)).logits
    torch.testing.assert_close(again, expected, **CLOSE)  # the prefix was not written to


@pytest.mark.parametrize("cut", [0, 3])
def test_rows_that_join_at_a_layer_are_the_plain_ones(tiny_models, backend, plains, kind, cut):
    """Changed residual streams entering at every layer of one pass, after a prefix or not; also two pairs at the last layer only."""
    model = tiny_models.load(kind, backend, "float64")
    assert model.abilities.joins
    n, rows = model.info.n_layers, torch.tensor([2, 0, 1])
    whole = model.run(Batch(tokens_of(), LENGTHS - 1), keep_prefix=True).prefix if cut else None
    entering, expected = {}, []
    for layer in range(n):
        site = Site("resid_pre", layer)
        _, seen = plains(kind).run(tokens_of(), reads=[site])
        changed = seen[site].clone()
        changed[:, cut:] = 2 * changed[:, cut:].flip(0) + 0.1 * (layer + 1)
        logits, _ = plains(kind).run(tokens_of(), {site: lambda _, changed=changed: changed})
        entering[layer] = changed[rows, cut:]
        expected.append(at_last(logits)[rows])
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
def test_a_narrow_last_layer_gives_the_plain_logits(tiny_models, backend, plains, kind, seed):
    """Whatever is edited: before, in and behind the last attention; by row and by index."""
    model, rng, pick = (
        tiny_models.load(kind, backend, "float64"),
        torch.Generator().manual_seed(seed),
        random.Random(seed),
    )
    assert model.abilities.last_position_only
    n = model.info.n_layers
    sites = [Site(site, layer) for layer in (0, n - 1, n - 1) for site in KINDS if has(kind, site)]
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
    logits, _ = plains(kind).run(tokens_of(seed), changes)
    read = [Site("resid_pre", n - 1)]
    out = model.run(Batch(tokens_of(seed), LENGTHS - 1, last_position_only=True), read, edits)
    torch.testing.assert_close(out.logits, at_last(logits), **CLOSE)
    with pytest.raises(ValueError, match="computed at one position only"):
        model.run(
            Batch(tokens_of(seed), LENGTHS - 1, last_position_only=True), [Site("attn_out", n - 1)]
        )


def test_an_mlp_that_cannot_be_given_one_position_is_run_whole(tiny_models, backend):
    """OPT's flattens rows and positions."""
    model = tiny_models.load("opt", backend)
    assert not model.abilities.last_position_only
    with pytest.raises((RuntimeError, IndexError)):
        model.run(Batch(tokens_of(), LENGTHS - 1, last_position_only=True))


def test_nothing_is_read_or_edited_where_rows_join(tiny_models, backend):
    model = tiny_models.load("gpt2", backend)
    stream = torch.zeros(ROWS, WIDTH, model.info.d_model)
    batch = Batch(
        tokens_of().repeat(2, 1), LENGTHS.repeat(2) - 1, start=0, residual=stream, joins={1: stream}
    )
    for wrong in ({"reads": [Site("z", 0)]}, {"edits": [scale(Site("z", 0), 0.0)]}, {"grad": True}):
        with pytest.raises(ValueError, match="where rows join"):
            model.run(batch, **wrong)


def test_a_prefix_can_be_extended_and_kept(tiny_models, backend, kind):
    model, cut = tiny_models.load(kind, backend, "float64"), 3
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


def test_columns_are_entries_of_the_logits(tiny_models, backend, kind):
    model = tiny_models.load(kind, backend, "float64")
    assert model.abilities.columns
    columns = torch.tensor([[0, 5, 5], [30, 1, -1], [2, -1, -1]])
    got = model.run(Batch(tokens_of(), LENGTHS - 1, columns=columns)).logits
    full = model.run(Batch(tokens_of(), LENGTHS - 1)).logits
    real = columns >= 0
    torch.testing.assert_close(got[real], full.gather(1, columns.clamp(min=0))[real], **CLOSE)


def test_heads_and_blocks_add_up(tiny_models, backend, kind):
    """attn_out is Σ z·W_O plus a bias that is the same everywhere; resid_post is resid_pre plus both outputs."""
    model = tiny_models.load(kind, backend, "float64")
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


@pytest.mark.parametrize("start", [0, 1])
def test_gradients_are_the_plain_modules(tiny_models, backend, plains, kind, start):
    """Of the logits with respect to a site that was read, and to the residual stream put in."""
    model, site = tiny_models.load(kind, backend, "float64"), Site("z", 1)
    _, seen = plains(kind).run(tokens_of(), reads=[Site("resid_pre", start)])
    residual = seen[Site("resid_pre", start)].detach().requires_grad_()
    out = model.run(
        Batch(tokens_of(), LENGTHS - 1, start=start, residual=residual), [site], grad=True
    )
    assert out.logits is not None
    got = torch.autograd.grad(out.logits[:, 3].sum(), [residual, out.activations[site]])
    leaf, held = seen[Site("resid_pre", start)].detach().requires_grad_(), []

    def hold(z: Tensor) -> Tensor:
        held.append(z)
        return z

    logits, _ = plains(kind).run(
        tokens_of(), {Site("resid_pre", start): lambda _: leaf, site: hold}
    )
    expected = torch.autograd.grad(at_last(logits)[:, 3].sum(), [leaf, held[0]])
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
        assert theirs.abs().max() > 1e-4


def test_without_a_residual_the_reads_can_be_differentiated_too(tiny_models, backend, kind):
    model = tiny_models.load(kind, backend, "float64")
    first, later = Site("resid_pre", 0), Site("attn_out", 1)
    out = model.run(Batch(tokens_of(), LENGTHS - 1), [first, later], grad=True)
    for gradient in torch.autograd.grad(
        out.logits[:, 0].sum(), [out.activations[first], out.activations[later]]
    ):
        assert gradient.abs().max() > 1e-6
    assert not model.run(Batch(tokens_of(), LENGTHS - 1), [later]).activations[later].requires_grad


MISSING = [Site("z", 99), Site("resid_pre", -1)]


@pytest.mark.parametrize("site", MISSING)
def test_a_site_that_does_not_exist_is_refused_read_or_edited(tiny_models, backend, kind, site):
    model = tiny_models.load(kind, backend, "float64")
    for call in ({"reads": [site]}, {"edits": [scale(site, 0)]}):
        with pytest.raises(SiteError, match="does not exist"):
            model.run(Batch(tokens_of(), LENGTHS - 1), **call)


def test_resid_mid_of_a_parallel_model_and_mlp_out_without_mlps_are_refused(tiny_models, backend):
    with pytest.raises(SiteError, match="parallel"):
        tiny_models.load("neox", backend).run(
            Batch(tokens_of(), LENGTHS - 1), [Site("resid_mid", 0)]
        )
    attn_only = tiny_models.load("attn_only", backend)
    for kind, why in (("mlp_out", "attention-only"), ("resid_mid", "no MLPs")):
        with pytest.raises(SiteError, match=why):
            attn_only.run(Batch(tokens_of(), LENGTHS - 1), [Site(kind, 0)])  # type: ignore[arg-type]


def test_a_run_that_fails_leaves_nothing_behind(tiny_models, backend, kind):
    model = tiny_models.load(kind, backend, "float64")
    before = model.run(Batch(tokens_of(), LENGTHS - 1)).logits
    misshapen = replace_with(Site("attn_out", 1), torch.zeros(ROWS, WIDTH + 1, model.info.d_model))
    with pytest.raises(RuntimeError):
        model.run(Batch(tokens_of(), LENGTHS - 1), edits=[scale(Site("attn_out", 0), 0), misshapen])
    torch.testing.assert_close(
        model.run(Batch(tokens_of(), LENGTHS - 1)).logits, before, atol=0, rtol=0
    )


def test_a_start_without_its_residual_stream_is_a_bug(tiny_models, backend, kind):
    with pytest.raises(ValueError, match="residual"):
        tiny_models.load(kind, backend, "float64").run(Batch(tokens_of(), LENGTHS - 1, start=1))


def test_weights_want_no_gradients(tiny_models, backend, kind):
    model: Any = tiny_models.load(kind, backend, "float64")
    out = model.run(Batch(tokens_of(), LENGTHS - 1), grad=True)
    assert out.logits.requires_grad  # by the residual stream alone
    out.logits.sum().backward()
    module = model.module if backend == "nnsight" else model.bridge
    assert all(parameter.grad is None for parameter in module.parameters())
