"""The bounds of the conditions (see docs/definitions.md, "Conditions"), in one place.

Every record holds them under `evaluation.thresholds`.
"""

from __future__ import annotations

from discovery.graph import RULES_VERSION, RulesVersion
from discovery.graph.base import Json
from discovery.tasks.split import ENOUGH_PAIRS

FAITHFULNESS_BAND = (0.8, 1.2)  # (a) f(C)
REJECTION_BAND = (0.5, 1.5)  # (a) f(C) surely outside this, under one ablation, is a rejection
KNOCKOUT_BAND = (-0.2, 0.2)  # (b) f(U∖C)
MAX_GAP_IN = 0.2  # (c) |f(C∖u) − f(U∖u)|, u in C
MAX_GAP_OUT = 0.1  # (c) |f(C∪v) − f(C)|, v outside C
MAX_JOINT_CHANGE = 0.2  # (c) what outside nodes may do together before `reasons` says it
FIRST_PAIRS = 32  # (c), (d) each node is first measured on so many pairs
MAX_CHECKED_NODES = 64  # (c), (d) if a side has more nodes, only some are checked one by one
N_CHECKED_BY_EFFECT = 32  # (c), (d) of such a side, so many nodes are chosen by screened effect
N_CHECKED_AT_RANDOM = 32  # (c), (d) of such a side, so many other nodes are drawn at random
MIN_DROP = 0.02  # (d) |f(C∖K) − f(C∖K∖v)|
SIGNIFICANCE_LEVEL = 0.05  # the level of (d), after Holm's correction, and of (e)
DROP_SHARE = 0.5  # (d) a node needs this part of the average share f(C) / |C|, or MIN_DROP
MIN_FLIPS = 10_000  # (d) a test draws at least so many random signs
FLIPS_PER_NODE = 400  # (d) a test draws at least so many random signs for each node of the circuit
MAX_ALTERNATIVES = 200  # (e) if there are more, so many are drawn at random
FIRST_ALTERNATIVES = 39  # (e) the sample ends after so many if none of them is as good
MAX_ALTERNATIVE_PAIRS = 32  # (e) pairs on which alternatives are measured
FAITHFULNESS_TIE = 1e-4  # (e) values of f that differ by no more are equally good
MIN_ALTERNATIVES_FOR_P = 19  # (e) with fewer, no p can reach SIGNIFICANCE_LEVEL
MIN_JACCARD = 0.8  # (f) mean over the resamples
STABILITY_RESAMPLES = 20  # (f)
MIN_HELDOUT = ENOUGH_PAIRS  # held-out pairs that a verdict needs
MIN_PAIRS = 2 * MIN_HELDOUT  # pairs of a task that a verdict needs
MAX_REFERENCE_DISAGREEMENT = 0.05  # of f by two halves of the prompts whose mean replaces a node
MIN_REFERENCE_SIZE = 50  # with fewer such prompts `reasons` says that f is relative to them


def count_flips(size: int) -> int:
    """Return how many random signs a test of (d) draws for a circuit of this size."""
    return max(MIN_FLIPS, FLIPS_PER_NODE * size)


def as_record(rules: RulesVersion = RULES_VERSION) -> dict[str, Json]:
    """Return the bounds as they stand in a record."""
    version_1: dict[str, Json] = {
        "a_faithfulness": list(FAITHFULNESS_BAND),
        "b_knockout": list(KNOCKOUT_BAND),
        "c_gap_in": MAX_GAP_IN,
        "c_gap_out": MAX_GAP_OUT,
        "d_drop": MIN_DROP,
        "d_alpha": SIGNIFICANCE_LEVEL,
        "d_flips": MIN_FLIPS,
        "e_alpha": SIGNIFICANCE_LEVEL,
        "e_alternatives": MAX_ALTERNATIVES,
        "e_pairs": MAX_ALTERNATIVE_PAIRS,
        "e_tie": FAITHFULNESS_TIE,
        "f_jaccard": MIN_JACCARD,
        "f_resamples": STABILITY_RESAMPLES,
        "min_heldout": MIN_HELDOUT,
    }
    if rules == 1:
        return version_1
    return version_1 | {
        "a_rejected_beyond": list(REJECTION_BAND),
        "c_joint_change": MAX_JOINT_CHANGE,
        "d_drop_share": DROP_SHARE,
        "d_flips_per_node": FLIPS_PER_NODE,
        "e_first_alternatives": FIRST_ALTERNATIVES,
        "first_pairs": FIRST_PAIRS,
        "checked_nodes": MAX_CHECKED_NODES,
        "reference_agreement": MAX_REFERENCE_DISAGREEMENT,
        "reference_size": MIN_REFERENCE_SIZE,
    }
