"""Metrics: one number for each prompt, from the logits at the answer position.

Answers and wrong answers are sets of tokens, padded with -1 to one width. The metrics are defined
in docs/definitions.md, "Metrics".

- logit_difference: logsumexp(answer logits) - logsumexp(wrong logits), in nats. A larger number
  means more of the behaviour.
- probability_difference: sum of the answers' probabilities - sum of the wrong answers', in [-1, 1]
  (Hanna et al. 2023, arXiv 2305.00586).
- kl_divergence: KL(clean || patched) over the vocabulary, in nats; 0 means that nothing has changed
  (Conmy et al. 2023, ACDC, arXiv 2304.14997).

    >>> logits = torch.tensor([[2.0, 0.5, 0.0]])
    >>> logit_difference(logits, torch.tensor([[0]]), torch.tensor([[1]]))
    tensor([1.5000])
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.sites import MetricName

PAD_TOKEN = -1  # fills up sets of tokens that are smaller than the largest


def gather_tokens(
    logits: Float[Tensor, "row d_vocab"], tokens: Int[Tensor, "row n"]
) -> Float[Tensor, "row n"]:
    """Return the logits of each row's tokens; padding gives -inf."""
    picked = logits.gather(1, tokens.clamp(min=0))
    return picked.masked_fill(tokens == PAD_TOKEN, float("-inf"))


def logit_difference(
    logits: Float[Tensor, "row d_vocab"],
    answer: Int[Tensor, "row n_answer"],
    wrong: Int[Tensor, "row n_wrong"],
) -> Float[Tensor, "row"]:
    """Return logsumexp(answer logits) - logsumexp(wrong logits), in nats."""
    return gather_tokens(logits, answer).logsumexp(1) - gather_tokens(logits, wrong).logsumexp(1)


def probability_difference(
    logits: Float[Tensor, "row d_vocab"],
    answer: Int[Tensor, "row n_answer"],
    wrong: Int[Tensor, "row n_wrong"],
) -> Float[Tensor, "row"]:
    """Return the sum of the answers' probabilities minus the sum of the wrong answers'."""
    log_probabilities = logits.log_softmax(1)
    right_probability = gather_tokens(log_probabilities, answer).exp().sum(1)
    wrong_probability = gather_tokens(log_probabilities, wrong).exp().sum(1)
    return right_probability - wrong_probability


def kl_divergence(
    logits: Float[Tensor, "row d_vocab"], clean: Float[Tensor, "row d_vocab"]
) -> Float[Tensor, "row"]:
    """Return KL(clean || patched) in nats.

    The clean run is the reference in both directions of patching.
    """
    reference = clean.log_softmax(1)
    return (reference.exp() * (reference - logits.log_softmax(1))).sum(1)


def measure(
    name: MetricName,
    logits: Float[Tensor, "row d_vocab"],
    answer: Int[Tensor, "row n_answer"],
    wrong: Int[Tensor, "row n_wrong"],
    clean: Float[Tensor, "row d_vocab"] | None = None,
) -> Float[Tensor, "row"]:
    """Return a metric of each row, computed in float32 or float64.

    Args:
        name: the metric.
        logits: the logits at the answer position.
        answer: the token ids of the answers, padded with -1.
        wrong: the token ids of the wrong answers, padded with -1.
        clean: the logits of the clean run, which only kl_divergence needs.

    Raises:
        ValueError: if kl_divergence is asked for without the clean run's logits.
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if name == "logit_difference":
        return logit_difference(wide, answer, wrong)
    if name == "probability_difference":
        return probability_difference(wide, answer, wrong)
    if clean is None:
        raise ValueError("kl_divergence needs the clean run's logits")
    return kl_divergence(wide, clean.to(wide.dtype))


def is_right(
    logits: Float[Tensor, "row d_vocab"],
    answer: Int[Tensor, "row n_answer"],
    wrong: Int[Tensor, "row n_wrong"],
) -> Bool[Tensor, "row"]:
    """Return whether the answers have more probability than the wrong answers.

    A tie is not right. Chance is 0.5.
    """
    return logit_difference(logits.float(), answer, wrong) > 0


def is_top(
    logits: Float[Tensor, "row d_vocab"], answer: Int[Tensor, "row n_answer"]
) -> Bool[Tensor, "row"]:
    """Return whether the single most likely token is an answer."""
    return (logits.argmax(1, keepdim=True) == answer).any(1)
