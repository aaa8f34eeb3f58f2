"""The bounds of INTERFACES' conditions, in one place; they stand in every record under `evaluation.thresholds`."""

from __future__ import annotations

from discovery.graph.base import Json

FAITHFULNESS_BAND = (0.8, 1.2)  # (a) f(C)
KNOCKOUT_BAND = (-0.2, 0.2)  # (b) f(U∖C)
MAX_GAP_IN = 0.2  # (c) |f(C∖u) − f(U∖u)|, u in C
MAX_GAP_OUT = 0.1  # (c) |f(C∪v) − f(C)|, v outside
MAX_OUTSIDE_NODES = 64  # (c) beyond so many outside, some are chosen
N_OUTSIDE_BY_RANK, N_OUTSIDE_AT_RANDOM = 32, 32
MIN_DROP = 0.02  # (d)
ALPHA = 0.05  # (d) after Holm, (e)
MINIMALITY_FLIPS = 10_000  # (d)
MAX_ALTERNATIVES = 200  # (e)
MAX_ALTERNATIVE_PAIRS = 32  # (e)
FAITHFULNESS_TIE = 1e-4  # (e)
MIN_ALTERNATIVES_FOR_P = 19  # (e) below that, no p can reach ALPHA
MIN_JACCARD = 0.8  # (f)
STABILITY_RESAMPLES = 20  # (f)
MIN_HELDOUT = 48


def as_record() -> dict[str, Json]:
    """The bounds as recorded."""
    return {
        "a_faithfulness": list(FAITHFULNESS_BAND),
        "b_knockout": list(KNOCKOUT_BAND),
        "c_gap_in": MAX_GAP_IN,
        "c_gap_out": MAX_GAP_OUT,
        "d_drop": MIN_DROP,
        "d_alpha": ALPHA,
        "d_flips": MINIMALITY_FLIPS,
        "e_alpha": ALPHA,
        "e_alternatives": MAX_ALTERNATIVES,
        "e_pairs": MAX_ALTERNATIVE_PAIRS,
        "e_tie": FAITHFULNESS_TIE,
        "f_jaccard": MIN_JACCARD,
        "f_resamples": STABILITY_RESAMPLES,
        "min_heldout": MIN_HELDOUT,
    }
