"""Activations and edits of the plain Hugging Face module, by torch's own hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from discovery.sites import Site

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ModuleNames:
    """The module names of an architecture; `fused` is one Linear that computes q, k and v."""

    blocks: str
    attn: str
    out: str
    mlp: str
    middle_norm: str | None
    fused: str | None = None


MODULE_NAMES = {
    "gpt2": ModuleNames("transformer.h", "attn", "attn.c_proj", "mlp", "ln_2", "attn.c_attn"),
    "llama": ModuleNames(
        "model.layers", "self_attn", "self_attn.o_proj", "mlp", "post_attention_layernorm"
    ),
    "neox": ModuleNames(
        "gpt_neox.layers", "attention", "attention.dense", "mlp", None, "attention.query_key_value"
    ),
    "opt": ModuleNames("model.decoder.layers", "self_attn", "self_attn.out_proj", "fc2", None),
}
MODULE_NAMES |= dict.fromkeys(("mistral", "qwen2", "gemma"), MODULE_NAMES["llama"])


class HookedModule:
    """A module whose activations can be read and changed by site."""

    def __init__(self, module: Any, kind: str) -> None:
        self.module = module
        self.kind = kind
        self.names = MODULE_NAMES[kind]
        config = module.config
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.d_head = getattr(config, "head_dim", None) or config.hidden_size // self.heads

    def run(
        self,
        tokens: Tensor,
        changes: Mapping[Site, Change] | None = None,
        reads: Iterable[Site] = (),
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """Return the logits [row pos d_vocab] and the sites that are read, after all changes."""
        changes, seen = changes or {}, {}
        with ExitStack() as stack:
            for site in {*changes, *reads}:
                for handle in self._hook(
                    site, changes.get(site, lambda activation: activation), seen
                ):
                    stack.callback(handle.remove)
            self.shape = tokens.shape
            logits: Tensor = self.module(input_ids=tokens, use_cache=False).logits
        return logits, {
            site: seen[site].unflatten(0, tokens.shape) if seen[site].ndim == 2 else seen[site]
            for site in reads
        }

    def _hook(self, site: Site, change: Change, seen: dict[Site, Tensor]) -> list[Any]:
        block = attrgetter(self.names.blocks)(self.module)[site.layer]
        part = {
            name: attrgetter(path)(block)
            for name, path in vars(self.names).items()
            if path and name != "blocks"
        }
        if site.kind == "resid_mid":
            return _hook_resid_mid(block, part["middle_norm"], site, change, seen)
        if site.kind == "resid_pre":
            return [_before(block, site, change, seen)]
        if site.kind == "z":
            return [
                _before(
                    part["out"],
                    site,
                    self._by_head(change, self.heads),
                    seen,
                    (self.heads, self.d_head),
                )
            ]
        if site.kind in ("q", "k", "v"):
            count = self.heads if site.kind == "q" else self.kv_heads
            if "fused" in part:
                return [
                    _after(
                        part["fused"], site, self._part_of_fused(change, site.kind, seen, site), {}
                    )
                ]
            module = getattr(part["attn"], f"{site.kind}_proj")
            return [_after(module, site, self._by_head(change, count), seen, (count, self.d_head))]
        if self.kind == "opt" and site.kind == "mlp_out":  # works on [row·pos d_model]
            inside, change = (
                change,
                lambda flat: inside(flat.unflatten(0, self.shape)).flatten(0, 1),
            )
        return [
            _after(
                {"attn_out": part["attn"], "mlp_out": part["mlp"], "resid_post": block}[site.kind],
                site,
                change,
                seen,
            )
        ]

    def _by_head(self, change: Change, count: int) -> Change:
        return lambda flat: change(flat.unflatten(-1, (count, self.d_head))).flatten(-2)

    def _part_of_fused(
        self, change: Change, slot: str, seen: dict[Site, Tensor], site: Site
    ) -> Change:
        """GPT-2 puts q, k and v side by side, GPT-NeoX head by head."""
        number = "qkv".index(slot)
        is_side_by_side = self.kind == "gpt2"

        def changed(flat: Tensor) -> Tensor:
            shape = (
                (3, self.heads, self.d_head) if is_side_by_side else (self.heads, 3, self.d_head)
            )
            parts = list(flat.unflatten(-1, shape).unbind(-3 if is_side_by_side else -2))
            parts[number] = seen[site] = change(parts[number])
            return torch.stack(parts, -3 if is_side_by_side else -2).flatten(-3)

        return changed


def _before(
    module: nn.Module,
    site: Site,
    change: Change,
    seen: dict[Site, Tensor],
    heads: tuple[int, int] | None = None,
) -> Any:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arrived = args[0] if args else kwargs["hidden_states"]
        changed = change(arrived)
        seen[site] = changed if heads is None else changed.unflatten(-1, heads)
        return (
            ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})
        )

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _after(
    module: nn.Module,
    site: Site,
    change: Change,
    seen: dict[Site, Tensor],
    heads: tuple[int, int] | None = None,
) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        changed = change(output[0] if isinstance(output, tuple) else output)
        seen[site] = changed if heads is None else changed.unflatten(-1, heads)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return module.register_forward_hook(hook)


def _hook_resid_mid(
    block: nn.Module, norm: nn.Module, site: Site, change: Change, seen: dict[Site, Tensor]
) -> list[Any]:
    """Change what the MLP's norm reads, and add the difference to the block's output.

    The stream that the norm reads is also carried past the MLP.
    """
    shift: list[Tensor] = []

    def into(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen[site] = change(args[0])
        shift.append(seen[site] - args[0])
        return (seen[site], *args[1:])

    def past(module: nn.Module, args: Any, output: Any) -> Any:
        return (
            (output[0] + shift[-1], *output[1:])
            if isinstance(output, tuple)
            else output + shift[-1]
        )

    return [norm.register_forward_pre_hook(into), block.register_forward_hook(past, prepend=True)]
