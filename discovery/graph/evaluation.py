"""The `evaluation` block of a circuit record: every number that a verdict rests on.

This module only has the shapes. docs/definitions.md defines the numbers, and
`discovery.evaluation` computes them. f(S) = (m(S) − m(∅)) / (m(U) − m(∅)), where means over a
split's pairs come first, then the ratio. C is the circuit, U the universe of heads and MLPs. None
means "not measured"; the outcome of a condition that was not measured is ``not_run``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from discovery.graph.base import Json, JsonModel, NodeId, Number
from discovery.sites import Universe

Verdict = Literal["verified", "partial", "rejected", "inconclusive", "no_behaviour"]
Outcome = Literal["holds", "fails", "undecided", "not_run"]
Condition = Literal["a", "b", "c", "d", "e", "f"]
EvidenceAblation = Literal["resample", "mean"]
"""The ablations that enter a verdict; zero ablation depends on weight processing and does not."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
EVIDENCE_ABLATIONS: tuple[EvidenceAblation, ...] = get_args(EvidenceAblation)


@dataclass(frozen=True)
class ConditionMeaning:
    """What a condition asks of a circuit.

    Attributes:
        name: The condition in a few words.
        explanation: What holds if the condition is met.
    """

    name: str
    explanation: str


CONDITION_MEANINGS: Mapping[Condition, ConditionMeaning] = {
    "a": ConditionMeaning(
        "sufficient", "with all else ablated the circuit keeps the behaviour: f(C) near 1"
    ),
    "b": ConditionMeaning("necessary", "without the circuit the behaviour is gone: f(U∖C) near 0"),
    "c": ConditionMeaning("complete", "nothing that matters is left out or carried along"),
    "d": ConditionMeaning("minimal", "every node is needed in some context"),
    "e": ConditionMeaning(
        "better than alternatives", "random circuits of the same size do not do as well"
    ),
    "f": ConditionMeaning("stable", "other draws of the pairs select the same nodes"),
}


class Score(JsonModel):
    """A value of f with its 95% bootstrap interval over pairs.

    Attributes:
        value: The ratio of means.
        low: The lower end of the interval.
        high: The upper end of the interval.
        median: The median of the ratios of single pairs.
        share_in_band: The share of pairs whose own ratio lies within the bounds of the condition.
    """

    value: Number = None
    low: Number = None
    high: Number = None
    median: Number = None
    share_in_band: Number = None


class Completeness(JsonModel):
    """Whether the circuit leaves out something that matters (condition c).

    Attributes:
        max_gap_in: The largest |f(C∖u) − f(U∖u)| over u in C.
        node_in: The u with the largest gap.
        max_gap_out: The largest |f(C∪v) − f(C)| over v outside C.
        node_out: The v with the largest gap.
        n_out: How many v were measured.
        n_out_possible: How many v there are.
        chosen: How the measured v were chosen, if not all were measured.
    """

    max_gap_in: Number = None
    node_in: NodeId | None = None
    max_gap_out: Number = None
    node_out: NodeId | None = None
    n_out: int | None = None
    n_out_possible: int | None = None
    chosen: str | None = None


class Minimality(JsonModel):
    """Whether one node of the circuit is needed (condition d).

    Attributes:
        node: The node v that is ablated.
        context: The nodes K that are ablated with it, chosen on discovery pairs.
        drop: |f(C∖K) − f(C∖K∖v)| on held-out pairs.
        p: The p-value of a paired sign-flip test.
        p_holm: The p-value after Holm's correction over the circuit's nodes.
    """

    node: NodeId
    context: tuple[NodeId, ...] = ()
    drop: Number = None
    p: Number = None
    p_holm: Number = None


class Control(JsonModel):
    """How other sets of the same size compare with the circuit (condition e).

    Attributes:
        n: How many sets were measured.
        n_possible: How many such sets there are.
        as_good: How many did as well: |1 − f| is no larger, and (b) and (c) are met.
        p: (1 + as_good) / (1 + n).
    """

    n: int | None = None
    n_possible: int | None = None
    as_good: int | None = None
    p: Number = None


class RandomControls(JsonModel):
    """The two kinds of alternative circuit.

    Attributes:
        size: Sets with as many heads and as many MLPs; None if there is no other such set.
        layer: Sets with as many of each kind in every layer; None if there is no other such set.
    """

    size: Control | None = None
    layer: Control | None = None


class Reference(JsonModel):
    """What replaces the value of an ablated node.

    Attributes:
        source: The origin of the values: the pair's corrupted run, or a mean over prompts.
        alignment: Whether means are by position, by label, or over all positions.
        size: The number of prompts in the smallest mean.
    """

    source: str | None = None
    alignment: str | None = None
    size: int | None = None


class AblationEvidence(JsonModel):
    """Everything that was measured on one split under one ablation.

    Attributes:
        metric_full: m(U), with nothing ablated.
        metric_empty: m(∅), with everything ablated.
        faithfulness: f(C).
        knockout: f(U∖C).
        completeness: The gaps of condition (c).
        minimality: Condition (d), one row for each node of the circuit; None if it was not run.
        random_controls: The alternatives of condition (e).
        reference: What replaces the values of ablated nodes.
    """

    metric_full: Number = None
    metric_empty: Number = None
    faithfulness: Score | None = None
    knockout: Score | None = None
    completeness: Completeness | None = None
    minimality: tuple[Minimality, ...] | None = None
    random_controls: RandomControls | None = None
    reference: Reference | None = None


class EvidenceByAblation(JsonModel):
    """One split's evidence under each ablation that enters a verdict."""

    resample: AblationEvidence | None = None
    mean: AblationEvidence | None = None

    def under(self, ablation: EvidenceAblation) -> AblationEvidence | None:
        """Return the evidence under an ablation; None if nothing was measured."""
        return self.resample if ablation == "resample" else self.mean


class SplitEvaluation(JsonModel):
    """What was measured on the pairs of one split.

    Attributes:
        n: The number of pairs.
        metric_clean: The mean metric of the clean prompts.
        metric_corrupted: The mean metric of the corrupted prompts.
        accuracy: The share of clean prompts on which the answer beats the wrong answer; chance is
            0.5.
        top1: The share of clean prompts on which the answer is the most likely token of all.
        ablations: The evidence under each ablation.
    """

    n: int
    metric_clean: Number = None
    metric_corrupted: Number = None
    accuracy: Number = None
    top1: Number = None
    ablations: EvidenceByAblation = EvidenceByAblation()


class CurvePoint(JsonModel):
    """Faithfulness of one set: the ranking's first nodes, or the circuit itself.

    Attributes:
        ablation: The ablation.
        size: The number of heads and MLPs in the set.
        nodes: The nodes of the set.
        faithfulness: f of the set.
    """

    ablation: EvidenceAblation
    size: int
    nodes: tuple[NodeId, ...] = ()
    faithfulness: Number = None


class OutcomeByAblation(JsonModel):
    """The outcome of one condition under each ablation."""

    resample: Outcome = "not_run"
    mean: Outcome = "not_run"

    def under(self, ablation: EvidenceAblation) -> Outcome:
        """Return the outcome under an ablation."""
        return self.resample if ablation == "resample" else self.mean


class Conditions(JsonModel):
    """The outcomes of the conditions that a verified circuit must meet, on held-out pairs.

    Attributes:
        a: Sufficient: f(C) is near 1.
        b: Necessary: f(U∖C) is near 0.
        c: Complete: nothing that matters is left out.
        d: Minimal: every node is needed.
        e: Better than alternatives of the same size.
        f: Stable if the pairs are drawn again.
    """

    a: OutcomeByAblation = OutcomeByAblation()
    b: OutcomeByAblation = OutcomeByAblation()
    c: OutcomeByAblation = OutcomeByAblation()
    d: OutcomeByAblation = OutcomeByAblation()
    e: OutcomeByAblation = OutcomeByAblation()
    f: OutcomeByAblation = OutcomeByAblation()

    def of(self, condition: Condition) -> OutcomeByAblation:
        """Return the outcome of a condition."""
        by_name: dict[Condition, OutcomeByAblation] = {
            "a": self.a,
            "b": self.b,
            "c": self.c,
            "d": self.d,
            "e": self.e,
            "f": self.f,
        }
        return by_name[condition]


class Evaluation(JsonModel):
    """The whole `evaluation` block.

    Attributes:
        universe: What could be ablated: "all" heads and MLPs, or "heads", which keeps the MLPs.
        discovery: What was measured on the pairs that selected the circuit.
        heldout: What was measured on held-out pairs; None before they were looked at.
        curve: Faithfulness against size.
        conditions: The outcomes of (a) to (f).
        tests: Each further statistical test by name, with its numbers.
        thresholds: The bounds that were applied.
        heldout_looks: How many circuits had used these held-out pairs, this one included.
    """

    universe: Universe = "all"
    discovery: SplitEvaluation | None = None
    heldout: SplitEvaluation | None = None
    curve: tuple[CurvePoint, ...] = ()
    conditions: Conditions = Conditions()
    tests: Mapping[str, Json] = Field(default_factory=dict)
    thresholds: Mapping[str, Json] = Field(default_factory=dict)
    heldout_looks: int | None = None
