"""The contract: what `run` reads and edits is what the plain module computes with torch's hooks.

Shortcuts are tested in `test_contract_shortcuts`.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from discovery.backends.base import Batch
from discovery.errors import SiteError
from discovery.interventions import Edit, add, replace_with, scale
from discovery.sites import Site
from tests.discovery.backends.contract import (
    ALL_BACKENDS,
    CLOSE,
    KINDS,
    LENGTHS,
    ROWS,
    WIDTH,
    at_answer,
    has_site,
    random_edit,
    shape_of,
    tokens_of,
)
from tests.oracles.models.hooked_module import MODULE_NAMES

# Every operation on four architectures; on the others one each, in turn.
OPERATIONS = ("replace", "add", "scale")
EDITS = [
    (architecture, site, operation)
    for architecture in MODULE_NAMES
    for number, site in enumerate(KINDS)
    if has_site(architecture, site)
    for operation in (
        OPERATIONS
        if architecture in ("gpt2", "llama", "neox", "opt")
        else OPERATIONS[number % 3 :][:1]
    )
]
MISSING = [Site("z", 99), Site("resid_pre", -1)]


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_reads_are_the_plain_activations(tiny_models, backend, plain_modules, architecture):
    model = tiny_models.load(architecture, backend, "float64")
    sites = [
        Site(site, layer)
        for layer in range(model.info.n_layers)
        for site in KINDS
        if has_site(architecture, site)
    ]
    logits, expected = plain_modules(architecture).run(tokens_of(), reads=sites)
    out = model.run(Batch(tokens_of(), LENGTHS - 1), sites)
    torch.testing.assert_close(out.logits, at_answer(logits), **CLOSE)
    assert set(out.activations) == set(sites)
    for site in sites:
        assert out.activations[site].shape == shape_of(model, site), site
        torch.testing.assert_close(
            out.activations[site],
            expected[site],
            **CLOSE,
            msg=lambda text, site=site: f"{site}: {text}",
        )


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize(("architecture", "site_kind", "operation"), EDITS)
def test_an_edit_at_each_site_is_the_plain_one(
    tiny_models, backend, plain_modules, architecture, site_kind, operation
):
    model = tiny_models.load(architecture, backend, "float64")
    rng = torch.Generator().manual_seed(1)
    last = Site("resid_post", model.info.n_layers - 1)
    unchanged = model.run(Batch(tokens_of(), LENGTHS - 1)).logits
    for layer in range(model.info.n_layers):
        site = Site(site_kind, layer)
        edit, change = random_edit(model, site, operation, rng)
        logits, seen = plain_modules(architecture).run(tokens_of(), {site: change}, [site, last])
        out = model.run(Batch(tokens_of(), LENGTHS - 1), [site, last], [edit])
        torch.testing.assert_close(out.logits, at_answer(logits), **CLOSE)
        torch.testing.assert_close(out.activations[site], seen[site], **CLOSE)
        torch.testing.assert_close(out.activations[last], seen[last], **CLOSE)
    assert not torch.allclose(
        at_answer(logits), unchanged, atol=1e-3
    )  # the edit of the last layer matters
    torch.testing.assert_close(
        model.run(Batch(tokens_of(), LENGTHS - 1)).logits, unchanged, atol=0, rtol=0
    )  # and no edit stays


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(["gpt2", "llama", "neox"]), st.integers(0, 10**6))
def test_many_edits_at_once_are_applied_in_forward_order(
    tiny_models, backend, plain_modules, architecture, seed
):
    """Later sites see the edits of earlier ones, also in the same layer."""
    model = tiny_models.load(architecture, backend, "float64")
    rng = torch.Generator().manual_seed(seed)
    pick = random.Random(seed)
    sites = [
        Site(site, layer)
        for layer in range(model.info.n_layers)
        for site in KINDS
        if has_site(architecture, site)
    ]
    edited = pick.sample(sites, pick.randint(2, 6))
    edits, changes = [], {}
    for site in edited:
        edit, changes[site] = random_edit(
            model, site, pick.choice(["replace", "add", "scale"]), rng
        )
        edits.append(edit)
    logits, seen = plain_modules(architecture).run(tokens_of(seed), changes, sites)
    out = model.run(Batch(tokens_of(seed), LENGTHS - 1), sites, edits)
    torch.testing.assert_close(out.logits, at_answer(logits), **CLOSE)
    for site in sites:
        torch.testing.assert_close(
            out.activations[site],
            seen[site],
            **CLOSE,
            msg=lambda text, site=site: f"{site} after edits at {edited}: {text}",
        )


def test_resid_mid_takes_its_value_whatever_is_edited_before_it(tiny_models, backend):
    model = tiny_models.load("gpt2", backend, "float64")
    value = torch.randn(
        ROWS,
        WIDTH,
        model.info.d_model,
        generator=torch.Generator().manual_seed(2),
        dtype=torch.float64,
    )
    earlier = [replace_with(Site("resid_pre", 1), 3 * value), add(Site("attn_out", 1), value)]
    resid_mid = Site("resid_mid", 1)
    for edits in (
        [*earlier, replace_with(resid_mid, value)],
        [replace_with(resid_mid, value), *earlier],
    ):
        seen = model.run(Batch(tokens_of(), LENGTHS - 1), [resid_mid], edits).activations[resid_mid]
        torch.testing.assert_close(seen, value, **CLOSE)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_two_edits_of_one_site_are_applied_in_their_order(tiny_models, backend, architecture):
    model = tiny_models.load(architecture, backend, "float64")
    site = Site("attn_out", 0)
    ones = torch.ones(1)
    seen = model.run(
        Batch(tokens_of(), LENGTHS - 1),
        [site],
        [replace_with(site, ones), scale(site, 3), add(site, ones)],
    ).activations[site]
    torch.testing.assert_close(seen, torch.full_like(seen, 4.0))


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_an_edit_by_index_gathers_the_rows_pairs(tiny_models, backend, architecture):
    model, site = tiny_models.load(architecture, backend, "float64"), Site("mlp_out", 1)
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


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_patterns_are_attention_weights_and_weigh_the_values(
    tiny_models, backend, plain_modules, architecture
):
    """A pattern that is read is Hugging Face's own; with a replaced one, z is pattern · v."""
    model, layer = tiny_models.load(architecture, backend, "float64"), 1
    assert model.abilities.pattern == ((architecture, backend) != ("opt", "transformerlens"))
    pattern, v, z = (Site(name, layer) for name in ("pattern", "v", "z"))  # type: ignore[arg-type]
    out = model.run(Batch(tokens_of(), LENGTHS - 1), [pattern, v, z])
    own = (
        plain_modules(architecture)
        .module(input_ids=tokens_of(), output_attentions=True)
        .attentions[layer]
    )
    torch.testing.assert_close(out.activations[pattern], own, **CLOSE)
    if not model.abilities.pattern:  # this backend would ignore the replacement
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
    logits, _ = plain_modules(architecture).run(tokens_of(), {z: lambda _: weighed})
    torch.testing.assert_close(edited.logits, at_answer(logits), **CLOSE)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_right_padding_changes_nothing(tiny_models, backend, architecture):
    model = tiny_models.load(architecture, backend, "float64")
    padded = model.run(Batch(tokens_of(), LENGTHS - 1)).logits
    other = tokens_of().masked_fill(torch.arange(WIDTH) >= LENGTHS.unsqueeze(1), 5)
    torch.testing.assert_close(model.run(Batch(other, LENGTHS - 1)).logits, padded, **CLOSE)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.run(
            Batch(tokens_of()[row : row + 1, :length], torch.tensor([length - 1]))
        ).logits
        torch.testing.assert_close(alone[0], padded[row], **CLOSE)


@pytest.mark.parametrize("start", [0, 1])
def test_gradients_are_the_plain_modules(tiny_models, backend, plain_modules, architecture, start):
    """Logits are differentiated by a site that was read, and by the residual stream put in."""
    model, site = tiny_models.load(architecture, backend, "float64"), Site("z", 1)
    _, seen = plain_modules(architecture).run(tokens_of(), reads=[Site("resid_pre", start)])
    residual = seen[Site("resid_pre", start)].detach().requires_grad_()
    out = model.run(
        Batch(tokens_of(), LENGTHS - 1, start=start, residual=residual), [site], grad=True
    )
    assert out.logits is not None
    got = torch.autograd.grad(out.logits[:, 3].sum(), [residual, out.activations[site]])
    leaf = seen[Site("resid_pre", start)].detach().requires_grad_()
    plain_z: list[Tensor] = []

    def remember(z: Tensor) -> Tensor:
        plain_z.append(z)
        return z

    logits, _ = plain_modules(architecture).run(
        tokens_of(), {Site("resid_pre", start): lambda _: leaf, site: remember}
    )
    expected = torch.autograd.grad(at_answer(logits)[:, 3].sum(), [leaf, plain_z[0]])
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
        assert theirs.abs().max() > 1e-4


def test_without_a_residual_the_reads_can_be_differentiated_too(tiny_models, backend, architecture):
    model = tiny_models.load(architecture, backend, "float64")
    first, later = Site("resid_pre", 0), Site("attn_out", 1)
    out = model.run(Batch(tokens_of(), LENGTHS - 1), [first, later], grad=True)
    for gradient in torch.autograd.grad(
        out.logits[:, 0].sum(), [out.activations[first], out.activations[later]]
    ):
        assert gradient.abs().max() > 1e-6
    assert not model.run(Batch(tokens_of(), LENGTHS - 1), [later]).activations[later].requires_grad


@pytest.mark.parametrize("site", MISSING)
def test_a_site_that_does_not_exist_is_refused_read_or_edited(
    tiny_models, backend, architecture, site
):
    model = tiny_models.load(architecture, backend, "float64")
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


def test_a_run_that_fails_leaves_nothing_behind(tiny_models, backend, architecture):
    model = tiny_models.load(architecture, backend, "float64")
    before = model.run(Batch(tokens_of(), LENGTHS - 1)).logits
    misshapen = replace_with(Site("attn_out", 1), torch.zeros(ROWS, WIDTH + 1, model.info.d_model))
    with pytest.raises(RuntimeError):
        model.run(Batch(tokens_of(), LENGTHS - 1), edits=[scale(Site("attn_out", 0), 0), misshapen])
    torch.testing.assert_close(
        model.run(Batch(tokens_of(), LENGTHS - 1)).logits, before, atol=0, rtol=0
    )


def test_weights_get_no_gradients(tiny_models, backend, architecture):
    model: Any = tiny_models.load(architecture, backend, "float64")
    out = model.run(Batch(tokens_of(), LENGTHS - 1), grad=True)
    assert out.logits.requires_grad  # by the residual stream alone
    out.logits.sum().backward()
    module = model.module if backend == "nnsight" else model.bridge
    assert all(parameter.grad is None for parameter in module.parameters())
