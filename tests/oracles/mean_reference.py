"""The reference of mean ablation, as nested loops that read like its definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from discovery.tasks.task import EncodedPair


def mean_by_definition(
    pairs: Sequence[EncodedPair], values: Sequence[torch.Tensor], pair: int, position: int
) -> tuple[torch.Tensor, str, int]:
    """INTERFACES, "Mean": the value, how it was aligned, and how many other values are behind it."""
    mine, others = pairs[pair], [other for other in range(len(pairs)) if other != pair]

    def name(which: int, at: int) -> str | None:
        return min(
            (label for label, place in pairs[which].labels.items() if place == at), default=None
        )

    peers = [
        other
        for other in others
        if (pairs[other].template, len(pairs[other].clean)) == (mine.template, len(mine.clean))
    ]
    if len(peers) >= 8:
        places, how = [(other, position) for other in peers], "position"
    elif any(each.labels for each in pairs):
        places = [
            (other, at)
            for other in others
            for at in range(len(pairs[other].clean))
            if name(other, at) == name(pair, position)
        ]
        how = "label"
    else:
        places, how = (
            [(other, at) for other in others for at in range(len(pairs[other].clean))],
            "all",
        )
    size = len(places)
    if not places:  # nothing else carries this label, or there is one pair only: its own values
        places = [
            (pair, at)
            for at in range(len(mine.clean))
            if how == "all" or name(pair, at) == name(pair, position)
        ]
    return torch.stack([values[which][at] for which, at in places]).mean(0), how, size
