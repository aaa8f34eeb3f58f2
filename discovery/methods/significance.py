"""Which cells of a grid differ from nothing, all cells at once? Sign-flip max-statistic (Nichols & Holmes 2002; Westfall & Young 1993).

If patching a cell did nothing, a pair's effect would be as likely to have the other sign. So the signs of whole pairs are flipped at
random, each time keeping the largest statistic of the grid: a cell is significant where its own is among the largest of these, and the
chance of one false cell anywhere is at most the level. Descriptive: it says that an effect is not noise, not that it matters.

    from discovery.methods.significance import max_statistic
    max_statistic(effects)      # [pair cell] -> p [cell], corrected for looking at all cells
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

FLIPS = 10_000
ROWS = 500  # flips at a time
ROUNDING = 1e-9


def max_statistic(effects: Float64[np.ndarray, "pair cell"], *, flips: int = FLIPS, seed: int = 0) -> Float64[np.ndarray, "cell"]:
    """p of each cell, corrected over all cells.

    The statistic is |Σ x| / √(Σ x²) over pairs: like t, of which it is a monotone function, and Σ x² does not change with the signs.

    Args:
        effects: one number a pair and cell, 0 being no effect; NaN where a pair lacks the cell.

    Returns:
        (1 + flips at which the grid's largest statistic is as large) / (1 + flips); 1 where a cell never differs from 0.
    """
    known = np.nan_to_num(effects, nan=0.0)
    size = np.sqrt((known**2).sum(0))
    live = size > 0
    scaled = np.divide(known, size, out=np.zeros_like(known), where=live)
    own = np.abs(scaled.sum(0))
    generator = np.random.default_rng(seed)
    larger = np.zeros(effects.shape[1])
    for begin in range(0, flips, ROWS):
        signs = generator.choice((-1.0, 1.0), size=(min(ROWS, flips - begin), len(known)))
        largest = np.abs(signs @ scaled).max(1, initial=0.0)
        larger += (largest[:, None] >= own - ROUNDING).sum(0)
    found: Float64[np.ndarray, "cell"] = np.where(live, (1 + larger) / (1 + flips), 1.0)
    return found
