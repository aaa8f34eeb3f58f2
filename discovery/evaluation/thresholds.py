"""The bounds of the conditions (see docs/definitions.md, "Conditions"), in one place.

Every record holds them under `evaluation.thresholds`.
"""

from __future__ import annotations

from discovery.graph.base import Json

FAITHFULNESS_BAND = (0.8, 1.2)  # (a) f(C)
KNOCKOUT_BAND = (-0.2, 0.2)  # (b) f(U∖C)
MAX_GAP_IN = 0.2  # (c) |f(C∖u) − f(U∖u)|, u in C
MAX_GAP_OUT = 0.1  # (c) |f(C∪v) − f(C)|, v outside C
MAX_OUTSIDE_NODES = 64  # (c) if there are more outside, only some of them are put in
N_OUTSIDE_BY_RANK = 32  # (c) then so many of these are the highest ranked
N_OUTSIDE_AT_RANDOM = 32  # (c) and so many are drawn at random
MIN_DROP = 0.02  # (d) |f(C∖K) − f(C∖K∖v)|
ALPHA = 0.05  # the level of (d), after Holm's correction, and of (e)
MINIMALITY_FLIPS = 10_000  # (d) random signs of its test
MAX_ALTERNATIVES = 200  # (e) if there are more, so many are drawn at random
MAX_ALTERNATIVE_PAIRS = 32  # (e) pairs on which alternatives are measured
FAITHFULNESS_TIE = 1e-4  # (e) values of f that differ by no more are equally good
MIN_ALTERNATIVES_FOR_P = 19  # (e) with fewer, no p can reach ALPHA
MIN_JACCARD = 0.8  # (f) mean over the resamples
STABILITY_RESAMPLES = 20  # (f)
MIN_HELDOUT = 48  # held-out pairs that a verdict needs


def as_record() -> dict[str, Json]:
    """Return the bounds as they stand in a record."""
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
