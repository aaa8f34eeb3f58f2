"""Restrict the end of the last layer to the answer position.

After the last layer's attention, only the answer position reaches the logits. The layer's output
projection and MLP are most of its work, so their inputs are cut down to that one position. Their
outputs are then added to the whole residual stream, which is right at the answer position and void
at all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from discovery.backends.base import Batch
from discovery.backends.info import ModelInfo
from discovery.interventions import Edit
from discovery.sites import Site


def is_after_last_attention(info: ModelInfo, site: Site) -> bool:
    """Return whether a site has only the answer position in a restricted run."""
    return site.layer == info.n_layers - 1 and site.kind in ("attn_out", "resid_mid", "mlp_out")


def restrict_edits(
    info: ModelInfo, batch: Batch, reads: Sequence[Site], edits: Sequence[Edit]
) -> list[Edit]:
    """Return the edits as a restricted run applies them.

    Raises:
        ValueError: if a site is read that is computed at the answer position only.
    """
    last = Site("resid_post", info.n_layers - 1)
    if any(site == last or is_after_last_attention(info, site) for site in reads):
        raise ValueError("a site cannot be read if it is computed at one position only")
    position = batch.require_answer_position()
    return [
        edit.at_position(position, 3) if is_after_last_attention(info, edit.site) else edit
        for edit in edits
    ]


def take_answer_position(
    batch: Batch, activation: Float[Tensor, "row pos ..."]
) -> Float[Tensor, "row 1 ..."]:
    """Return each row's answer position of an activation."""
    position = batch.require_answer_position()
    return activation.take_along_dim(position.view(-1, *[1] * (activation.ndim - 1)), 1)


def unembed_columns(
    unembed: Any, hidden: Float[Tensor, "row d_model"], columns: Int[Tensor, "row k"]
) -> Float[Tensor, "row k"]:
    """Return the logits of a few vocabulary entries of each row.

    Args:
        unembed: the Linear that unembeds.
        hidden: its input at the answer position.
        columns: the entries; the logit of padding (-1) is unspecified.
    """
    columns = columns.clamp(min=0).to(unembed.weight.device)
    weights = unembed.weight[columns].to(hidden.device)  # [row k d_model]
    logits: Tensor = torch.einsum("rd,rkd->rk", hidden, weights)
    if unembed.bias is None:
        return logits
    bias: Tensor = unembed.bias[columns]
    return logits + bias.to(hidden.device)


class LastPosition:
    """Cuts the inputs of modules down to the answer position, and checks that it was done.

    The hooks are removed when the stack is closed.
    """

    def __init__(self, batch: Batch, stack: ExitStack) -> None:
        """Prepare to cut inputs of this batch; the stack removes the hooks."""
        self.batch = batch
        self.stack = stack
        self._not_yet_cut: set[str] = set()

    def cut_module_input(self, name: str, module: nn.Module) -> None:
        """Register a hook that gives a module the answer position only."""

        def cut(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self.cut(name, inputs[0]), *inputs[1:])

        self._not_yet_cut.add(name)
        self.stack.callback(module.register_forward_pre_hook(cut).remove)

    def expect_cut(self, name: str) -> None:
        """Announce that something else will call `cut` under this name."""
        self._not_yet_cut.add(name)

    def cut(self, name: str, activation: Tensor) -> Tensor:
        """Return the answer position of each row, and note that this input was cut."""
        self._not_yet_cut.discard(name)
        return take_answer_position(self.batch, activation)

    def require_all_cut(self) -> None:
        """Check that every announced input was cut.

        In some architectures (OPT) the MLP is no module of its own, and no work would be saved.

        Raises:
            RuntimeError: if one was not; the message names the first.
        """
        if self._not_yet_cut:
            name = min(self._not_yet_cut)
            raise RuntimeError(f"this architecture's {name} cannot be given one position only")
