"""Which shortcuts hold for a loaded model: each is tried on the probe, and taken where it gives the plain forward pass's numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.backends.info import Abilities
from discovery.backends.loading.checks import TOLERANCE, ReferenceLogits
from discovery.errors import BackendMismatchError, SiteError
from discovery.interventions import replace_with, scale
from discovery.sites import Site

SHORTCUT_TOLERANCE = TOLERANCE | {
    "float32": 2e-5
}  # the same prompt on the same engine: only the order of sums differs


@torch.no_grad()
def find_abilities(
    backend: Backend, expected: ReferenceLogits, *, untried: Collection[str] = ()
) -> Abilities:
    """Try each shortcut and keep those that give the plain numbers; some need not be tried."""
    tolerance = SHORTCUT_TOLERANCE[backend.info.dtype] * float(expected.logits.abs().max())
    plain = _run_plain(backend, expected)
    _require_restart(backend, expected, plain, tolerance)
    prefix = "prefix" not in untried and _holds(
        lambda: _prefix_error(backend, expected, plain), tolerance
    )
    return Abilities(
        prefix=prefix,
        columns=expected.unembedding_is_linear
        and _holds(lambda: _column_error(backend, expected, plain), tolerance),
        linear_heads=_holds(lambda: _head_error(backend, expected), tolerance),
        after_attention=_holds(lambda: _after_attention_error(backend, expected, plain), tolerance),
        pattern=_holds(lambda: _pattern_error(backend, expected), tolerance),
        joins=_holds(lambda: _join_error(backend, expected, plain, prefix=prefix), tolerance),
        last_position_only="last_position_only" not in untried
        and _holds(lambda: _last_position_error(backend, expected), tolerance),
    )


def _run_plain(backend: Backend, expected: ReferenceLogits) -> BatchResult:
    last = torch.tensor([expected.tokens.shape[1] - 1], device=expected.tokens.device)
    sites = [Site("resid_pre", layer) for layer in range(backend.info.n_layers)]
    return backend.run(Batch(expected.tokens, last), sites)


def _holds(error: Callable[[], float], tolerance: float) -> bool:
    try:
        return error() <= tolerance
    except torch.OutOfMemoryError:
        raise
    except (SiteError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        return False  # the architecture has no such shortcut: the plain way is used


def _require_restart(
    backend: Backend, expected: ReferenceLogits, plain: BatchResult, tolerance: float
) -> None:
    """Starting at the last layer, or after it, from its own residual stream must change nothing."""
    layer = backend.info.n_layers - 1
    last = torch.tensor([expected.tokens.shape[1] - 1], device=expected.tokens.device)
    inputs, outputs = Site("resid_pre", layer), Site("resid_post", layer)
    after = backend.run(Batch(expected.tokens), [outputs]).activations[outputs]
    assert plain.logits is not None
    worst = 0.0
    for start, residual in ((layer, plain.activations[inputs]), (layer + 1, after)):
        again = backend.run(Batch(expected.tokens, last, start=start, residual=residual)).logits
        assert again is not None
        worst = max(worst, float((again - plain.logits).abs().max()))
    if not worst <= tolerance:
        raise BackendMismatchError(
            f"{backend.info.architecture} cannot be started in the middle on {backend.info.backend}.",
            "Use the other backend.",
        )


def _prefix_error(backend: Backend, expected: ReferenceLogits, plain: BatchResult) -> float:
    """At every position after the prefix: where attention is local, only the first of them see it."""
    length, device = expected.tokens.shape[1], expected.tokens.device
    cut, rows = length // 2, torch.zeros(length - length // 2, dtype=torch.long, device=device)
    last = torch.arange(length - cut, device=device)
    prefix = backend.run(
        Batch(expected.tokens, torch.tensor([length - 1], device=device)), keep_prefix=True
    ).prefix
    assert prefix is not None
    worst = 0.0
    for start in {0, backend.info.n_layers - 1}:
        residual = plain.activations[Site("resid_pre", start)][rows, cut:]
        again = backend.run(
            Batch(
                expected.tokens[rows, cut:],
                last,
                start=start,
                residual=residual,
                prefix=prefix.take(rows, cut),
            )
        ).logits
        assert again is not None
        worst = max(worst, float((again - expected.logits[0, cut:]).abs().max()))
    return worst


def _join_error(
    backend: Backend, expected: ReferenceLogits, plain: BatchResult, *, prefix: bool
) -> float:
    """Rows that enter at different layers, with and without a prefix, each at another answer position."""
    length, device, layers = expected.tokens.shape[1], expected.tokens.device, backend.info.n_layers
    whole = (
        backend.run(
            Batch(expected.tokens, torch.tensor([length - 1], device=device)), keep_prefix=True
        ).prefix
        if prefix
        else None
    )
    worst = 0.0
    for cut in (0, length // 2) if whole is not None else (0,):
        counts = [3 if layer == layers - 1 and layers > 1 else 2 for layer in range(layers)]
        rows = torch.zeros(counts[-1], dtype=torch.long, device=device)
        last = torch.tensor([length - cut - 1, 0, (length - cut) // 2], device=device)[: counts[-1]]
        stream = {
            layer: plain.activations[Site("resid_pre", layer)][:, cut:] for layer in (0, layers - 1)
        }
        batch = Batch(
            expected.tokens[rows, cut:],
            last,
            start=0,
            residual=stream[0].expand(2, -1, -1),
            prefix=whole.take_by_layer(rows, counts, cut) if whole is not None and cut else None,
            joins={layers - 1: stream[layers - 1]} if layers > 1 else {},
        )
        again = backend.run(batch).logits
        assert again is not None
        worst = max(worst, float((again - expected.logits[0, cut + last]).abs().max()))
    return worst


def _after_attention_error(
    backend: Backend, expected: ReferenceLogits, plain: BatchResult
) -> float:
    layer, last = (
        backend.info.n_layers // 2,
        torch.tensor([expected.tokens.shape[1] - 1], device=expected.tokens.device),
    )
    site = Site("resid_mid", layer)
    residual = backend.run(Batch(expected.tokens), [site]).activations[site]
    again = backend.run(
        Batch(expected.tokens, last, start=layer, residual=residual, after_attention=True)
    ).logits
    assert again is not None
    assert plain.logits is not None
    return float((again - plain.logits).abs().max())


def _last_position_error(backend: Backend, expected: ReferenceLogits) -> float:
    """At every answer position, from the first layer and from the last, unchanged and with what the last layer adds changed."""
    info, length = backend.info, expected.tokens.shape[1]
    rows, last = (
        expected.tokens.expand(length, -1),
        torch.arange(length, device=expected.tokens.device),
    )
    site = Site("resid_pre", info.n_layers - 1)
    stream = backend.run(Batch(rows), [site]).activations[site]
    edits = [scale(Site("attn_out", info.n_layers - 1), 0.5)] + (
        [] if info.attn_only else [scale(Site("mlp_out", info.n_layers - 1), 2.0)]
    )
    worst = 0.0
    for batch in (Batch(rows, last), Batch(rows, last, start=info.n_layers - 1, residual=stream)):
        for changes in ([], edits):
            whole, narrow = (
                backend.run(each, edits=changes).logits
                for each in (batch, replace(batch, last_position_only=True))
            )
            assert whole is not None
            assert narrow is not None
            worst = max(worst, float((whole - narrow).abs().max()))
    return worst


def _column_error(backend: Backend, expected: ReferenceLogits, plain: BatchResult) -> float:
    last = torch.tensor([expected.tokens.shape[1] - 1], device=expected.tokens.device)
    columns = torch.arange(backend.info.n_logits, device=last.device)[None]
    logits = backend.run(Batch(expected.tokens, last, columns=columns)).logits
    assert logits is not None
    assert plain.logits is not None
    return float((logits - plain.logits.gather(1, columns)).abs().max())


def _pattern_error(backend: Backend, expected: ReferenceLogits) -> float:
    """Between z under a uniform pattern and the mean of the values so far."""
    info, layer = backend.info, backend.info.n_layers - 1
    pattern, v, z = (Site(kind, layer) for kind in ("pattern", "v", "z"))
    values = (
        backend.run(Batch(expected.tokens), [v])
        .activations[v]
        .repeat_interleave(info.n_heads // info.n_kv_heads, 2)
    )
    length = values.shape[1]
    uniform = torch.ones(length, length, dtype=values.dtype, device=values.device).tril()
    uniform = (uniform / uniform.sum(1, keepdim=True)).expand(1, info.n_heads, length, length)
    seen = backend.run(Batch(expected.tokens), [z], [replace_with(pattern, uniform)]).activations[z]
    return float((seen - torch.einsum("rhds,rshe->rdhe", uniform, values)).abs().max())


def _head_error(backend: Backend, expected: ReferenceLogits) -> float:
    """Between resid_post − resid_pre − mlp_out and Σ z·W_O, up to the same bias at every position."""
    info, worst = backend.info, 0.0
    for layer in {0, info.n_layers - 1}:
        kinds = ["resid_pre", "resid_post", "attn_out", "z"] + (
            [] if info.attn_only else ["mlp_out"]
        )
        sites = {kind: Site(kind, layer) for kind in kinds}  # type: ignore[arg-type]  # each kind is an ActivationKind
        seen = backend.run(Batch(expected.tokens), list(sites.values())).activations
        heads = torch.einsum(
            "rphd,hdm->rpm",
            seen[sites["z"]],
            backend.head_weights(layer).to(seen[sites["z"]].dtype),
        )
        bias = seen[sites["attn_out"]] - heads
        added = seen[sites["resid_pre"]] + seen[sites["attn_out"]] - seen[sites["resid_post"]]
        if not info.attn_only:
            added = added + seen[sites["mlp_out"]]
        worst = max(worst, float((bias - bias[:, :1]).abs().max()), float(added.abs().max()))
    return worst
