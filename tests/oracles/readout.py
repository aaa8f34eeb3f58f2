"""Reading the residual stream of a plain Hugging Face module, one prompt and one layer at a time.

Circuit Scout computes nothing here: the streams are the module's own hidden states, and its final
norm, unembedding and soft cap are called by hand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FINAL_NORMS = {
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
}


def final_norm(module: Any) -> Any:
    """Return the norm after the last layer."""
    return module.get_submodule(FINAL_NORMS.get(module.config.model_type, "model.norm"))


def streams(module: Any, tokens: tuple[int, ...]) -> list[Tensor]:
    """Return the stream [pos d_model] at the input of each layer, and after the last one."""
    caught = []
    norm = final_norm(module)
    handle = norm.register_forward_pre_hook(lambda _, args: caught.append(args[0][0]))
    with torch.no_grad():
        out = module(torch.tensor([tokens]), output_hidden_states=True)
    handle.remove()
    return [state[0] for state in out.hidden_states[:-1]] + [caught[0]]


def lens_logits(module: Any, stream: Tensor) -> Tensor:
    """Return the logits that the module's end makes of a stream."""
    with torch.no_grad():
        logits = module.get_output_embeddings()(final_norm(module)(stream))
    cap = getattr(module.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits
