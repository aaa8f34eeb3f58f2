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


def attribution(module: Any, tokens: tuple[int, ...], answer: int, wrong: int) -> dict[str, float]:
    """Return the contributions of embedding, heads, biases and MLPs of a Gemma 2, by plain hooks.

    Both norms after the attention and after the last layer are frozen at their scales.
    """
    caught: dict[str, Tensor] = {}
    handles = []

    def keep(name: str, part: Any, *, of_input: bool) -> None:
        def hook(_: Any, args: Any, output: Any) -> None:
            value = args[0] if of_input else output
            caught[name] = (value[0] if isinstance(value, tuple) else value)[0, -1]

        handles.append(part.register_forward_hook(hook))

    for layer, block in enumerate(module.model.layers):
        keep(f"z{layer}", block.self_attn.o_proj, of_input=True)
        keep(f"m{layer}", block.post_feedforward_layernorm, of_input=False)
    keep("end", module.model.norm, of_input=True)
    with torch.no_grad():
        out = module(torch.tensor([tokens]), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    eps = module.config.rms_norm_eps
    unembed = module.lm_head.weight
    end = (caught["end"].square().mean() + eps).sqrt()
    read = (unembed[answer] - unembed[wrong]) * (1 + module.model.norm.weight) / end
    parts = {"embed": float(out.hidden_states[0][0, -1] @ read)}
    width = module.config.head_dim
    for layer, block in enumerate(module.model.layers):
        weight = block.self_attn.o_proj.weight
        z = caught[f"z{layer}"]
        behind = block.post_attention_layernorm
        scale = ((weight @ z).square().mean() + eps).sqrt()
        for head in range(module.config.num_attention_heads):
            part = slice(head * width, (head + 1) * width)
            written = (weight[:, part] @ z[part]) * (1 + behind.weight) / scale
            parts[f"a{layer}.h{head}"] = float(written @ read)
        parts[f"m{layer}"] = float(caught[f"m{layer}"] @ read)
    return parts
