"""Checks at load: a backend must reproduce the logits of the plain module, and be causal.

The reference logits are computed before the Hugging Face module is wrapped. Wrapping replaces its
modules in place, so that a later comparison would be of the backend with itself. This is not only
caution: a release of a wrapper once computed a wrong Gemma-2 forward pass, and no one had compared.

`loading.abilities` then tries which shortcuts reproduce these logits too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from discovery.backends.base import Backend, Batch
from discovery.errors import BackendMismatchError, ModelError

LOGITS_TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""The allowed difference by dtype, relative to the largest logit.

float64 is no exacter than this because many architectures take norms, softmax and rotations in
float32 whatever the dtype, wrapped or not.
"""

UNEMBEDDING_GAIN = 256.0
"""By how much logits are scaled to see whether a soft cap bends them.

It is a power of two, so that scaling rounds in no dtype.
"""


@dataclass(frozen=True)
class ReferenceLogits:
    """What the unwrapped module computes on one short prompt.

    Attributes:
        tokens: the prompt [1 pos].
        logits: its logits [1 pos n_logits].
        d_vocab: the number of token ids.
        unembedding_is_linear: whether nothing follows the unembedding, neither a soft cap nor a
            scale.
    """

    tokens: Tensor
    logits: Tensor
    d_vocab: int
    unembedding_is_linear: bool = True

    @property
    def length(self) -> int:
        """The number of the prompt's tokens."""
        return self.tokens.shape[1]

    @property
    def last_position(self) -> Tensor:
        """The prompt's last position [1], as a batch takes its answer position."""
        return torch.tensor([self.length - 1], device=self.tokens.device)


def make_probe_tokens(d_vocab: int, n_ctx: int, device: str) -> Tensor:
    """Return a fixed short prompt [1 pos], with ids from all parts of the vocabulary."""
    length = min(9, n_ctx)
    return torch.tensor([[(37 + 101 * i * i) % d_vocab for i in range(length)]], device=device)


@torch.no_grad()
def run_reference(module: nn.Module, d_vocab: int, n_ctx: int, device: str) -> ReferenceLogits:
    """Run the unwrapped module on the probe prompt.

    Raises:
        ModelError: if its logits are not finite.
    """
    tokens = make_probe_tokens(d_vocab, n_ctx, device)
    out = module(input_ids=tokens)
    logits = (out if isinstance(out, Tensor) else out.logits).detach().clone()
    if not bool(logits.isfinite().all()):
        raise ModelError(
            "The model's own logits are not finite: its weights are damaged, or the dtype is too "
            "narrow for them.",
            "Save or download the weights again, or use dtype float32.",
        )
    return ReferenceLogits(tokens, logits, d_vocab, _is_unembedding_linear(module, tokens, logits))


def _is_unembedding_linear(module: nn.Module, tokens: Tensor, logits: Tensor) -> bool:
    """Return whether the output of the unembedding is the logits, without a cap or scale after it.

    The output is scaled up for the test: a soft cap leaves small logits almost unchanged.
    """
    get_unembedding = getattr(module, "get_output_embeddings", None)
    unembedding = get_unembedding() if callable(get_unembedding) else None
    if unembedding is None:
        # TransformerLens's native module lacks the method, and has nothing after its unembedding.
        return not callable(get_unembedding)
    handle = unembedding.register_forward_hook(lambda _, __, output: UNEMBEDDING_GAIN * output)
    try:
        scaled = module(input_ids=tokens).logits
    finally:
        handle.remove()
    return bool(torch.allclose(scaled, UNEMBEDDING_GAIN * logits, rtol=1e-3, atol=0.0))


def require_same_logits(backend: Backend, expected: ReferenceLogits) -> None:
    """Check that the backend gives the module's logits at every position.

    Raises:
        BackendMismatchError: if they differ by more than the tolerance of the dtype.
    """
    rows = expected.tokens.expand(expected.length, expected.length)
    positions = torch.arange(expected.length, device=rows.device)
    logits = backend.run(Batch(rows, positions)).logits
    assert logits is not None
    error = (logits - expected.logits[0]).abs().max() / expected.logits.abs().max()
    tolerance = LOGITS_TOLERANCE[backend.info.dtype]
    if not error <= tolerance:  # NaN too is a mismatch
        raise BackendMismatchError(
            f"{backend.info.backend} computes other logits than Hugging Face for "
            f"{backend.info.architecture} (by {error:.1e} of the largest logit; "
            f"{tolerance:.0e} is allowed).",
            "No number measured on it could be trusted: use another backend or another version "
            "of the model.",
        )


def require_causal(backend: Backend, expected: ReferenceLogits) -> None:
    """Check that no position sees a later one.

    Padding, reused prefixes and skipped grid cells rely on it.

    Raises:
        ModelError: if changing the last token changes the logits of an earlier position.
    """
    n_earlier = expected.length - 1
    if n_earlier < 1:
        return
    tokens = expected.tokens.clone()
    tokens[:, -1] = (tokens[:, -1] + 1) % backend.info.d_vocab
    positions = torch.arange(n_earlier, device=tokens.device)
    logits = backend.run(Batch(tokens.expand(n_earlier, -1), positions)).logits
    assert logits is not None
    error = (logits - expected.logits[0, :-1]).abs().max()
    if not error <= LOGITS_TOLERANCE[backend.info.dtype] * expected.logits.abs().max():
        raise ModelError(
            f"{backend.info.architecture} is not causal: its earlier positions see later tokens.",
            "Use a decoder-only (causal) language model.",
        )
