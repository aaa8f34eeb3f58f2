"""The bounds of INTERFACES' conditions, in one place; they stand in every record under `evaluation.thresholds`."""

from __future__ import annotations

from discovery.graph.base import Json

FAITHFUL = (0.8, 1.2)  # (a) f(C)
NECESSARY = (-0.2, 0.2)  # (b) f(U∖C)
GAP_IN = 0.2  # (c) |f(C∖u) − f(U∖u)|, u in C
GAP_OUT = 0.1  # (c) |f(C∪v) − f(C)|, v outside
MOST_OUT = 64  # (c) beyond so many outside, some are chosen
SCREENED_OUT, RANDOM_OUT = 32, 32
DROP = 0.02  # (d)
ALPHA = 0.05  # (d) after Holm, (e)
FLIPS = 10_000  # (d)
CONTROLS = 200  # (e)
CONTROL_PAIRS = 32  # (e)
TIE = 1e-4  # (e)
FEWEST_CONTROLS = 19  # (e) below that, no p can reach ALPHA
JACCARD = 0.8  # (f)
RESAMPLES = 20  # (f)
MIN_HELDOUT = 48


def as_record() -> dict[str, Json]:
    """The bounds as recorded."""
    return {
        "a_faithfulness": list(FAITHFUL),
        "b_knockout": list(NECESSARY),
        "c_gap_in": GAP_IN,
        "c_gap_out": GAP_OUT,
        "d_drop": DROP,
        "d_alpha": ALPHA,
        "d_flips": FLIPS,
        "e_alpha": ALPHA,
        "e_alternatives": CONTROLS,
        "e_pairs": CONTROL_PAIRS,
        "e_tie": TIE,
        "f_jaccard": JACCARD,
        "f_resamples": RESAMPLES,
        "min_heldout": MIN_HELDOUT,
    }
