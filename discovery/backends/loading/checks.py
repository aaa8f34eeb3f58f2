"""At load, a backend proves itself against the plain module: the same logits. (`backends.shortcuts`: what else reproduces them.)

The reference is taken from the Hugging Face module *before* it is wrapped: wrapping replaces its modules in place, so a later
comparison would be of the backend with itself. (A wrong Gemma-2 forward pass was once shipped by a wrapper; nobody compared.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from discovery.backends.base import Backend, Batch
from discovery.errors import BackendMismatchError, ModelError

# Of the largest logit. Many architectures take norms, softmax and rotations in float32 whatever the width, wrapped or not.
TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
UNEMBEDDING_GAIN = 256.0  # what would bend large logits (a soft cap) bends these; a power of two, which no width rounds


@dataclass(frozen=True)
class ReferenceLogits:
    """What the unwrapped module computes on one short prompt.

    Attributes:
        tokens: [1 pos], of d_vocab ids; logits: [1 pos d_vocab_out].
        linear: nothing comes after the unembedding, no soft cap and no scale.
    """

    tokens: Tensor
    logits: Tensor
    d_vocab: int
    unembedding_is_linear: bool = True


def make_probe_tokens(d_vocab: int, n_ctx: int, device: str) -> Tensor:
    """A fixed short prompt of ids spread over the vocabulary."""
    length = min(9, n_ctx)
    return torch.tensor([[(37 + 101 * i * i) % d_vocab for i in range(length)]], device=device)


@torch.no_grad()
def run_reference(module: nn.Module, d_vocab: int, n_ctx: int, device: str) -> ReferenceLogits:
    """Run the unwrapped module.

    Raises:
        ModelError: where its logits are not finite.
    """
    tokens = make_probe_tokens(d_vocab, n_ctx, device)
    out = module(input_ids=tokens)
    logits = (out if isinstance(out, Tensor) else out.logits).detach().clone()
    if not bool(logits.isfinite().all()):
        cause = "The model's own logits are not finite: its weights are damaged, or the dtype is too narrow for them."
        raise ModelError(cause, "Save or download the weights again, or use dtype float32.")
    return ReferenceLogits(tokens, logits, d_vocab, _is_unembedding_linear(module, tokens, logits))


def _is_unembedding_linear(module: nn.Module, tokens: Tensor, logits: Tensor) -> bool:
    """Whether what the unembedding gives are the logits, also where it is large: small logits pass a soft cap unbent."""
    find = getattr(module, "get_output_embeddings", None)
    head = find() if callable(find) else None
    if head is None:
        return not callable(
            find
        )  # TransformerLens's own module has no such name, and nothing behind its unembedding
    handle = head.register_forward_hook(lambda _, __, output: UNEMBEDDING_GAIN * output)
    try:
        loud = module(input_ids=tokens).logits
    finally:
        handle.remove()
    return bool(torch.allclose(loud, UNEMBEDDING_GAIN * logits, rtol=1e-3, atol=0.0))


def require_same_logits(backend: Backend, expected: ReferenceLogits) -> None:
    """Hold the backend's logits at every position against the module's.

    Raises:
        BackendMismatchError: where they differ by more than the tolerance of the width.
    """
    length = expected.tokens.shape[1]
    rows = expected.tokens.expand(length, length)
    last = torch.arange(length, device=rows.device)
    logits = backend.run(Batch(rows, last)).logits
    assert logits is not None
    worst = (logits - expected.logits[0]).abs().max() / expected.logits.abs().max()
    if not worst <= TOLERANCE[backend.info.dtype]:
        raise BackendMismatchError(
            f"{backend.info.backend} computes other logits than Hugging Face for {backend.info.architecture} "
            f"(by {worst:.1e} of the largest logit; {TOLERANCE[backend.info.dtype]:.0e} is allowed).",
            "No number measured on it could be trusted: use another backend or another version of the model.",
        )


def require_causal(backend: Backend, expected: ReferenceLogits) -> None:
    """Check that no position sees a later one: padding, reused prefixes and skipped cells all rest on it.

    Raises:
        ModelError: where changing the last token changes an earlier position's logits.
    """
    earlier = expected.tokens.shape[1] - 1
    if earlier < 1:
        return
    tokens = expected.tokens.clone()
    tokens[:, -1] = (tokens[:, -1] + 1) % backend.info.d_vocab
    logits = backend.run(
        Batch(tokens.expand(earlier, -1), torch.arange(earlier, device=tokens.device))
    ).logits
    assert logits is not None
    if (
        not (logits - expected.logits[0, :-1]).abs().max()
        <= TOLERANCE[backend.info.dtype] * expected.logits.abs().max()
    ):
        raise ModelError(
            f"{backend.info.architecture} is not causal: its earlier positions see later tokens.",
            "Use a decoder-only (causal) language model.",
        )
