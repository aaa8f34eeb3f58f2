"""The values of mean ablation, as nested loops that follow the definition word by word."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from discovery.tasks.task import EncodedPair


def mean_by_definition(
    pairs: Sequence[EncodedPair], values: Sequence[torch.Tensor], pair: int, position: int
) -> tuple[torch.Tensor, str, int]:
    """Return one mean (docs/definitions.md, "Ablations").

    Returns:
        The mean, how positions were aligned, and how many other prompts' values it is over.
    """
    mine = pairs[pair]
    others = [other for other in range(len(pairs)) if other != pair]

    def label_at(which: int, position: int) -> str | None:
        labels = [name for name, place in pairs[which].labels.items() if place == position]
        return min(labels, default=None)

    peers = [
        other
        for other in others
        if (pairs[other].template, len(pairs[other].clean)) == (mine.template, len(mine.clean))
    ]
    if len(peers) >= 8:
        places = [(other, position) for other in peers]
        alignment = "position"
    elif any(each.labels for each in pairs):
        places = [
            (other, at)
            for other in others
            for at in range(len(pairs[other].clean))
            if label_at(other, at) == label_at(pair, position)
        ]
        alignment = "label"
    else:
        places = [(other, at) for other in others for at in range(len(pairs[other].clean))]
        alignment = "all"
    size = len(places)
    if not places:  # no other prompt has this label, or there is one pair: its own values
        places = [
            (pair, at)
            for at in range(len(mine.clean))
            if alignment == "all" or label_at(pair, at) == label_at(pair, position)
        ]
    return torch.stack([values[which][at] for which, at in places]).mean(0), alignment, size
