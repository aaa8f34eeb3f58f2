"""Random tokens that are repeated, and what a model loses on their second copy without some heads.

A sequence is a prefix (what the tokenizer puts before every text), n random tokens A, and A again.
Its control has other random tokens B in place of the second A. Attention to the place where a
token stood before can then be told from attention at a fixed distance, which the control has too
(Olsson et al. 2022, "In-context learning and induction heads").

Loss is the mean negative log-likelihood of the next token in nats, over the second copy. A head is
ablated by putting its mean over the controls at the same position in its place.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.engine import Meter, row_macs
from discovery.engine.cost import forward_equivalents
from discovery.errors import MeasurementError
from discovery.interventions import Edit, replace_with
from discovery.sites import Node, Site
from discovery.tasks.task import EncodedPair, Task

MAX_HALF = 24  # random tokens in one copy
MIN_HALF = 4
UNEMBEDDED_ROWS = 128  # positions whose logits are held at once


def make_repeated_task(model: Backend, count: int, seed: int) -> tuple[Task, int, int]:
    """Draw sequences of repeated tokens; the corrupted side of each pair is its control.

    Returns:
        The sequences, the length of the prefix, and the length of one copy.

    Raises:
        MeasurementError: if the vocabulary or the context is too small for them.
    """
    prefix = tuple(model.tokenizer.encode("")) if model.tokenizer else (0,)
    drawable = [token for token in range(model.d_vocab) if token not in prefix]
    half = min(MAX_HALF, (model.n_ctx - len(prefix)) // 2, len(drawable) // 2)
    if half < MIN_HALF:
        raise MeasurementError(
            f"{model.info.name} takes {model.n_ctx} tokens of a vocabulary of {model.d_vocab}, too "
            "few for repeated random tokens.",
            "Kinds of heads are measured on sequences of at least 9 tokens.",
        )
    generator = random.Random(f"repeated-{seed}")
    pairs = []
    for _ in range(count):
        drawn = tuple(generator.sample(drawable, 2 * half))
        first = drawn[:half]
        other = drawn[half:]
        pairs.append(
            EncodedPair(
                clean=(*prefix, *first, *first),
                corrupted=(*prefix, *first, *other),
                answer=(first[0],),
                wrong=(other[0],),
            )
        )
    task = Task(
        name="repeated random tokens",
        pairs=tuple(pairs),
        splits=(None,) * count,
        split_method="none",
    )
    return task, len(prefix), half


class RepeatedLoss:
    """The loss on the second copy, with any heads ablated."""

    def __init__(self, model: Backend, task: Task, n_prefix: int, half: int, meter: Meter) -> None:
        """Measure the means that replace ablated heads.

        Args:
            task: the sequences and their controls.
            n_prefix: the number of tokens before the first copy.
            half: the number of tokens of a copy.
            meter: counts the work.
        """
        self._model = model
        self._meter = meter
        device = model.device
        self._tokens = torch.tensor([pair.clean for pair in task.pairs], device=device)
        self._first = n_prefix + half  # the first position of the second copy
        controls = torch.tensor([pair.corrupted for pair in task.pairs], device=device)
        sites = [Site("z", layer) for layer in range(model.info.n_layers)]
        read = model.run(Batch(controls, stop=model.info.n_layers), sites).activations
        self._means = {site.layer: read[site].mean(0, keepdim=True) for site in sites}
        self._count(columns=0)
        self._clean: Tensor | None = None

    def __call__(self, ablated: Collection[Node] = ()) -> Float[Tensor, "sequence"]:
        """Return the loss of each sequence with some heads ablated."""
        if not ablated and self._clean is not None:
            return self._clean
        loss = self._measure(ablated)
        if not ablated:
            self._clean = loss
        return loss

    def _measure(self, ablated: Collection[Node]) -> Float[Tensor, "sequence"]:
        info = self._model.info
        end = Site("resid_post", info.n_layers - 1)
        batch = Batch(self._tokens, stop=info.n_layers)
        stream = self._model.run(batch, [end], self._edits(ablated)).activations[end]
        # The prediction of the first repeated token is left out: nothing shows that A comes again.
        positions = range(self._first, self._tokens.shape[1] - 1)
        rows = stream[:, positions.start : positions.stop].flatten(0, 1)
        targets = self._tokens[:, positions.start + 1 : positions.stop + 1].flatten()
        losses = [
            self._next_token_loss(part, wanted)
            for part, wanted in zip(
                torch.split(rows, UNEMBEDDED_ROWS),
                torch.split(targets, UNEMBEDDED_ROWS),
                strict=True,
            )
        ]
        self._count(columns=info.n_logits * len(positions))
        return torch.cat(losses).reshape(len(self._tokens), -1).mean(1).double().cpu()

    def _next_token_loss(
        self, stream: Float[Tensor, "row d_model"], targets: Tensor
    ) -> Float[Tensor, "row"]:
        zeros = torch.zeros_like(targets)
        batch = Batch(
            zeros[:, None], zeros, start=self._model.info.n_layers, residual=stream[:, None]
        )
        logits = self._model.run(batch).logits
        assert logits is not None
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    def _edits(self, ablated: Collection[Node]) -> list[Edit]:
        edits = []
        for layer in sorted({node.layer or 0 for node in ablated}):
            where = torch.zeros(self._model.info.n_heads, dtype=torch.bool)
            where[[node.head for node in ablated if node.layer == layer]] = True
            where = where.to(self._model.device)[None, None]
            edits.append(replace_with(Site("z", layer), self._means[layer], where))
        return edits

    def _count(self, columns: int) -> None:
        info = self._model.info
        length = self._tokens.shape[1]
        macs = row_macs(info, length, columns=columns)
        self._meter.add(forward_equivalents(info, macs, [length] * len(self._tokens)))


def draw_head_sets(
    heads: Sequence[Node], excluded: Collection[Node], size: int, count: int, seed: int
) -> list[frozenset[Node]]:
    """Draw distinct random sets of heads, outside `excluded` if enough heads are left."""
    others = [node for node in heads if node not in excluded]
    pool = others if len(others) > size else list(heads)
    generator = random.Random(f"heads-{seed}-{size}")
    drawn: dict[frozenset[Node], None] = {}
    for _ in range(10 * count):
        if len(drawn) == count:
            break
        drawn.setdefault(frozenset(generator.sample(pool, min(size, len(pool)))))
    return list(drawn)
