"""A narrow run: behind the last layer's attention, only the answer position is computed.

Nothing else of what the last layer writes reaches the logits, and its output projection and MLP are most of its work. What they are given
is cut down to one position; added to the whole residual stream, their outputs are right at that position and meaningless elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from discovery.backends.base import Batch
from discovery.backends.info import ModelInfo
from discovery.interventions import Edit
from discovery.sites import Site


def is_after_last_attention(info: ModelInfo, site: Site) -> bool:
    """Whether a site holds one position only in a narrow run."""
    return site.layer == info.n_layers - 1 and site.kind in ("attn_out", "resid_mid", "mlp_out")


def restrict_edits(
    info: ModelInfo, batch: Batch, reads: Sequence[Site], edits: Sequence[Edit]
) -> list[Edit]:
    """The edits as a narrow run makes them.

    Raises:
        ValueError: where something is read that is only computed at one position.
    """
    last = Site("resid_post", info.n_layers - 1)
    if any(site == last or is_after_last_attention(info, site) for site in reads):
        raise ValueError(
            "what the last layer does behind its attention is not read where it is done at one position only"
        )
    return [
        edit.at_position(batch.require_answer_position, 3)
        if is_after_last_attention(info, edit.site)
        else edit
        for edit in edits
    ]


def take_answer_position(
    batch: Batch, activation: Float[Tensor, "row pos ..."]
) -> Float[Tensor, "row 1 ..."]:
    """Each row's answer position."""
    return activation.take_along_dim(
        batch.require_answer_position.view(-1, *[1] * (activation.ndim - 1)), 1
    )


class LastPosition:
    """Cuts down what modules are given, until the stack is left; and knows whether they were reached."""

    def __init__(self, batch: Batch, stack: ExitStack) -> None:
        self.batch, self.stack = batch, stack
        self._waiting: set[str] = set()

    def cut_module_input(self, name: str, module: nn.Module) -> None:
        """A module that is given one position."""

        def cut(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self.cut(name, inputs[0]), *inputs[1:])

        self._waiting.add(name)
        self.stack.callback(module.register_forward_pre_hook(cut).remove)

    def expect_cut(self, name: str) -> None:
        """Something else that calls `cut` on what it is given."""
        self._waiting.add(name)

    def cut(self, name: str, activation: Tensor) -> Tensor:
        """One position of each row."""
        self._waiting.discard(name)
        return take_answer_position(self.batch, activation)

    def require_all_cut(self) -> None:
        """Check that every module was reached: where an MLP is not a module of its own (OPT), its work would not be spared.

        Raises:
            RuntimeError: names the first that was not.
        """
        if self._waiting:
            raise RuntimeError(
                f"this architecture's {min(self._waiting)} cannot be given one position"
            )
