"""Which shortcuts hold for a loaded model.

Each shortcut is tried on the probe prompt when the model is loaded. It is used only if it gives the
numbers of the plain forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.backends.info import Abilities
from discovery.backends.loading.checks import LOGITS_TOLERANCE, ReferenceLogits
from discovery.errors import BackendMismatchError, SiteError
from discovery.interventions import Edit, replace_with, scale
from discovery.sites import Site

# The same prompt runs on the same backend, so in float32 only the order of sums may differ.
SHORTCUT_TOLERANCE = LOGITS_TOLERANCE | {"float32": 2e-5}


@torch.no_grad()
def find_abilities(
    backend: Backend, expected: ReferenceLogits, *, untried: Collection[str] = ()
) -> Abilities:
    """Try each shortcut, and return those that give the plain numbers.

    Args:
        backend: the loaded model.
        expected: the logits of the unwrapped module.
        untried: names of the abilities prefix and last_position_only that are not to be tried;
            they count as absent.

    Raises:
        BackendMismatchError: if a run cannot start at a later layer, which all sweeps rely on.
    """
    tolerance = SHORTCUT_TOLERANCE[backend.info.dtype] * float(expected.logits.abs().max())
    plain = _run_plain(backend, expected)
    _require_restart(backend, expected, plain, tolerance)

    def holds(error: Callable[[], float]) -> bool:
        return _reproduces(error, tolerance)

    prefix = "prefix" not in untried and holds(lambda: _prefix_error(backend, expected, plain))
    return Abilities(
        prefix=prefix,
        columns=expected.unembedding_is_linear
        and holds(lambda: _column_error(backend, expected, plain)),
        linear_heads=holds(lambda: _head_error(backend, expected)),
        after_attention=holds(lambda: _after_attention_error(backend, expected, plain)),
        pattern=holds(lambda: _pattern_error(backend, expected)),
        joins=holds(lambda: _join_error(backend, expected, plain, prefix=prefix)),
        last_position_only="last_position_only" not in untried
        and holds(lambda: _last_position_error(backend, expected)),
    )


def _run_plain(backend: Backend, expected: ReferenceLogits) -> BatchResult:
    """Run the probe without a shortcut: logits at its last position, and each layer's input."""
    sites = [Site("resid_pre", layer) for layer in range(backend.info.n_layers)]
    return backend.run(Batch(expected.tokens, expected.last_position), sites)


def _run_logits(backend: Backend, batch: Batch, edits: list[Edit] | None = None) -> Tensor:
    """Return the logits of a batch that has answer positions."""
    logits = backend.run(batch, edits=edits or []).logits
    assert logits is not None
    return logits


def _reproduces(error: Callable[[], float], tolerance: float) -> bool:
    """Return whether a shortcut runs and its error is within the tolerance."""
    try:
        return error() <= tolerance
    except torch.OutOfMemoryError:
        raise
    except (SiteError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        return False  # the architecture does not have this shortcut


def _require_restart(
    backend: Backend, expected: ReferenceLogits, plain: BatchResult, tolerance: float
) -> None:
    """Check that a run can start at the last layer, and after it, from its own residual stream.

    Raises:
        BackendMismatchError: if the logits then change.
    """
    layer = backend.info.n_layers - 1
    outputs = Site("resid_post", layer)
    after = backend.run(Batch(expected.tokens), [outputs]).activations[outputs]
    assert plain.logits is not None
    residuals = {layer: plain.activations[Site("resid_pre", layer)], layer + 1: after}
    error = 0.0
    for start, residual in residuals.items():
        batch = Batch(expected.tokens, expected.last_position, start=start, residual=residual)
        again = _run_logits(backend, batch)
        error = _larger_error(error, again - plain.logits)
    if not error <= tolerance:
        raise BackendMismatchError(
            f"{backend.info.architecture} cannot be started in the middle on "
            f"{backend.info.backend}.",
            "Use the other backend.",
        )


def _prefix_error(backend: Backend, expected: ReferenceLogits, plain: BatchResult) -> float:
    """Return the error of runs after a cached prefix, at every position after it.

    All positions are tested because with local attention only the first of them see the prefix.
    """
    cut = expected.length // 2
    n_rest = expected.length - cut
    device = expected.tokens.device
    rows = torch.zeros(n_rest, dtype=torch.long, device=device)
    positions = torch.arange(n_rest, device=device)
    batch = Batch(expected.tokens, expected.last_position)
    prefix = backend.run(batch, keep_prefix=True).prefix
    assert prefix is not None
    error = 0.0
    for start in {0, backend.info.n_layers - 1}:
        residual = plain.activations[Site("resid_pre", start)][rows, cut:]
        rest = Batch(
            expected.tokens[rows, cut:],
            positions,
            start=start,
            residual=residual,
            prefix=prefix.take(rows, cut),
        )
        again = _run_logits(backend, rest)
        error = _larger_error(error, again - expected.logits[0, cut:])
    return error


def _join_error(
    backend: Backend, expected: ReferenceLogits, plain: BatchResult, *, prefix: bool
) -> float:
    """Return the error of rows that enter at different layers, each with its own answer position.

    It is tested without a prefix and, if the backend can reuse one, with a prefix too.
    """
    device = expected.tokens.device
    top = backend.info.n_layers - 1
    # Two rows start at the first layer; a third joins at the last one, if that is another.
    counts = [3 if layer == top and top > 0 else 2 for layer in range(top + 1)]
    n_rows = counts[-1]
    rows = torch.zeros(n_rows, dtype=torch.long, device=device)
    cached = None
    if prefix:
        batch = Batch(expected.tokens, expected.last_position)
        cached = backend.run(batch, keep_prefix=True).prefix
    error = 0.0
    for cut in (0, expected.length // 2) if cached is not None else (0,):
        n_rest = expected.length - cut
        positions = torch.tensor([n_rest - 1, 0, n_rest // 2], device=device)[:n_rows]
        stream = {layer: plain.activations[Site("resid_pre", layer)][:, cut:] for layer in (0, top)}
        batch = Batch(
            expected.tokens[rows, cut:],
            positions,
            start=0,
            residual=stream[0].expand(2, -1, -1),
            prefix=cached.take_by_layer(rows, counts, cut) if cached is not None and cut else None,
            joins={top: stream[top]} if top > 0 else {},
        )
        again = _run_logits(backend, batch)
        error = _larger_error(error, again - expected.logits[0, cut + positions])
    return error


def _after_attention_error(
    backend: Backend, expected: ReferenceLogits, plain: BatchResult
) -> float:
    """Return the error of a run that starts after the attention of the middle layer."""
    layer = backend.info.n_layers // 2
    site = Site("resid_mid", layer)
    residual = backend.run(Batch(expected.tokens), [site]).activations[site]
    batch = Batch(
        expected.tokens,
        expected.last_position,
        start=layer,
        residual=residual,
        after_attention=True,
    )
    again = _run_logits(backend, batch)
    assert plain.logits is not None
    return float((again - plain.logits).abs().max())


def _last_position_error(backend: Backend, expected: ReferenceLogits) -> float:
    """Return the error of computing the last layer at the answer position only.

    It is tested for every answer position, for runs from the first layer and from the last, and
    with the last layer's outputs unchanged and changed.
    """
    info = backend.info
    layer = info.n_layers - 1
    rows = expected.tokens.expand(expected.length, -1)
    positions = torch.arange(expected.length, device=expected.tokens.device)
    site = Site("resid_pre", layer)
    stream = backend.run(Batch(rows), [site]).activations[site]
    changes = [scale(Site("attn_out", layer), 0.5)]
    if not info.attn_only:
        changes.append(scale(Site("mlp_out", layer), 2.0))
    error = 0.0
    for batch in (Batch(rows, positions), Batch(rows, positions, start=layer, residual=stream)):
        for edits in ([], changes):
            whole = _run_logits(backend, batch, edits)
            narrow = _run_logits(backend, replace(batch, last_position_only=True), edits)
            error = _larger_error(error, whole - narrow)
    return error


def _column_error(backend: Backend, expected: ReferenceLogits, plain: BatchResult) -> float:
    """Return the error of logits from single columns of the unembedding, over all columns."""
    columns = torch.arange(backend.info.n_logits, device=expected.tokens.device)[None]
    batch = Batch(expected.tokens, expected.last_position, columns=columns)
    logits = _run_logits(backend, batch)
    assert plain.logits is not None
    return float((logits - plain.logits.gather(1, columns)).abs().max())


def _pattern_error(backend: Backend, expected: ReferenceLogits) -> float:
    """Return how far z under a uniform attention pattern is from the mean of the values so far."""
    info = backend.info
    pattern, v, z = (Site(kind, info.n_layers - 1) for kind in ("pattern", "v", "z"))
    values = backend.run(Batch(expected.tokens), [v]).activations[v]
    values = values.repeat_interleave(info.n_heads // info.n_kv_heads, 2)
    length = values.shape[1]
    uniform = torch.ones(length, length, dtype=values.dtype, device=values.device).tril()
    uniform = (uniform / uniform.sum(1, keepdim=True)).expand(1, info.n_heads, length, length)
    edits = [replace_with(pattern, uniform)]
    heads = backend.run(Batch(expected.tokens), [z], edits).activations[z]
    return float((heads - torch.einsum("rhds,rshe->rdhe", uniform, values)).abs().max())


def _head_error(backend: Backend, expected: ReferenceLogits) -> float:
    """Return how far the residual stream is from a sum of head and MLP outputs.

    Two differences count: between attn_out and Σ_h z_h·W_O[h], up to a bias that is the same at
    every position; and between resid_post and resid_pre + attn_out + mlp_out.
    """
    info = backend.info
    error = 0.0
    for layer in {0, info.n_layers - 1}:
        resid_pre = Site("resid_pre", layer)
        resid_post = Site("resid_post", layer)
        attn_out = Site("attn_out", layer)
        mlp_out = Site("mlp_out", layer)
        z = Site("z", layer)
        sites = [resid_pre, resid_post, attn_out, z] + ([] if info.attn_only else [mlp_out])
        read = backend.run(Batch(expected.tokens), sites).activations
        weights = backend.head_weights(layer).to(read[z].dtype)
        heads = torch.einsum("rphd,hdm->rpm", read[z], weights)
        bias = read[attn_out] - heads
        rest = read[resid_pre] + read[attn_out] - read[resid_post]
        if not info.attn_only:
            rest = rest + read[mlp_out]
        error = _larger_error(_larger_error(error, bias - bias[:, :1]), rest)
    return error


def _larger_error(error: float, difference: Tensor) -> float:
    """Return the larger of an error so far and the largest absolute difference.

    NaN is an error that no tolerance allows, so it is never lost (`max(0.0, nan)` would be 0.0).
    """
    largest = float(difference.abs().max())
    return largest if math.isnan(largest) else max(error, largest)
