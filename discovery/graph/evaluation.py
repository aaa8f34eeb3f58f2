"""The `evaluation` block of a circuit record: every number that a verdict rests on.

These are the shapes only; INTERFACES' "Evaluation" defines the numbers and `discovery.evaluation` computes them.
f(S) = (m(S) − m(∅)) / (m(U) − m(∅)), means over a split's pairs first, then the ratio. C is the circuit,
U the universe of heads and MLPs. None is "not measured"; a condition that was not tried is ``not_run``.
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
        name: the condition in one or a few words.
        explanation: what holds if it is met.
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
        value: the ratio of means.
        low: the interval's lower end.
        high: its upper end.
        median: of the per-pair ratios.
        share_in_band: share of pairs whose own ratio lies within the condition's bounds.
    """

    value: Number = None
    low: Number = None
    high: Number = None
    median: Number = None
    share_in_band: Number = None


class Completeness(JsonModel):
    """Does the circuit leave out, or carry along, something that matters? (condition c)

    Attributes:
        max_gap_in: the largest |f(C∖u) − f(U∖u)| over u in C.
        node_in: the u that has it.
        max_gap_out: the largest |f(C∪v) − f(C)| over v outside C.
        node_out: the v that has it.
        n_out: how many v were tried.
        n_out_possible: how many there are.
        chosen: how those tried were chosen, where not all were.
    """

    max_gap_in: Number = None
    node_in: NodeId | None = None
    max_gap_out: Number = None
    node_out: NodeId | None = None
    n_out: int | None = None
    n_out_possible: int | None = None
    chosen: str | None = None


class Minimality(JsonModel):
    """Is one node of the circuit needed? (condition d)

    Attributes:
        node: the v that is taken out.
        context: the K taken out with it, chosen on discovery pairs.
        drop: |f(C∖K) − f(C∖K∖v)| on held-out pairs.
        p: of a paired sign-flip test.
        p_holm: after Holm's correction over the circuit's nodes.
    """

    node: NodeId
    context: tuple[NodeId, ...] = ()
    drop: Number = None
    p: Number = None
    p_holm: Number = None


class Control(JsonModel):
    """Other circuits of the same size, against this one (condition e).

    Attributes:
        n: how many were tried.
        n_possible: how many there are.
        as_good: how many did as well: |1 − f| no larger, and (b) and (c) met.
        p: (1 + as_good) / (1 + n).
    """

    n: int | None = None
    n_possible: int | None = None
    as_good: int | None = None
    p: Number = None


class RandomControls(JsonModel):
    """The two kinds of alternative circuit.

    Attributes:
        size: with as many heads and as many MLPs; None where there is no other.
        layer: with as many of each kind in every layer; None where there is no other.
    """

    size: Control | None = None
    layer: Control | None = None


class Reference(JsonModel):
    """What an ablated node was given.

    Attributes:
        source: where the values come from: the pair's corrupted run, or a mean over corrupted prompts.
        alignment: by position, by label, or over all positions.
        size: prompts in the smallest mean.
    """

    source: str | None = None
    alignment: str | None = None
    size: int | None = None


class AblationEvidence(JsonModel):
    """Everything measured on one split under one ablation.

    Attributes:
        metric_full: m(U): nothing ablated.
        metric_empty: m(∅): everything ablated.
        faithfulness: f(C).
        knockout: f(U∖C).
        completeness: condition c's gaps.
        minimality: condition d, a row per node of the circuit; None where it was not tried.
        random_controls: condition e's alternatives.
        reference: what the ablated nodes were given.
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
        """The evidence under `ablation`, None where nothing was measured."""
        return self.resample if ablation == "resample" else self.mean


class SplitEvaluation(JsonModel):
    """One split's pairs, and what was measured on them.

    Attributes:
        n: pairs.
        metric_clean: mean metric of the clean prompts.
        metric_corrupted: mean metric of the corrupted ones.
        accuracy: share of clean prompts on which the answer beats the wrong answer; chance is 0.5.
        top1: share on which the answer is the most likely token of all.
        ablations: the evidence under each ablation.
    """

    n: int
    metric_clean: Number = None
    metric_corrupted: Number = None
    accuracy: Number = None
    top1: Number = None
    ablations: EvidenceByAblation = EvidenceByAblation()


class CurvePoint(JsonModel):
    """Faithfulness of the best circuit of one size.

    Attributes:
        ablation: resample or mean.
        size: heads and MLPs in it.
        nodes: which.
        faithfulness: f of them.
    """

    ablation: EvidenceAblation
    size: int
    nodes: tuple[NodeId, ...] = ()
    faithfulness: Number = None


class OutcomeByAblation(JsonModel):
    """One condition under each ablation."""

    resample: Outcome = "not_run"
    mean: Outcome = "not_run"

    def under(self, ablation: EvidenceAblation) -> Outcome:
        """How the condition came out under `ablation`."""
        return self.resample if ablation == "resample" else self.mean


class Conditions(JsonModel):
    """What a verified circuit must meet, on held-out pairs.

    Attributes:
        a: sufficient: f(C) near 1.
        b: necessary: f(U∖C) near 0.
        c: complete.
        d: minimal.
        e: better than alternatives of its size.
        f: stable when the pairs are drawn again.
    """

    a: OutcomeByAblation = OutcomeByAblation()
    b: OutcomeByAblation = OutcomeByAblation()
    c: OutcomeByAblation = OutcomeByAblation()
    d: OutcomeByAblation = OutcomeByAblation()
    e: OutcomeByAblation = OutcomeByAblation()
    f: OutcomeByAblation = OutcomeByAblation()

    def of(self, condition: Condition) -> OutcomeByAblation:
        """How `condition` came out."""
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
    """The whole block.

    Attributes:
        universe: what could be ablated: `all` heads and MLPs, or `heads` with the MLPs kept.
        discovery: on the pairs that selected the circuit.
        heldout: on the pairs that judge it; None until they have been looked at.
        curve: faithfulness against size.
        conditions: (a) to (f).
        tests: each statistical test by name, with what it was given and what it gave.
        thresholds: the bounds that were applied.
        heldout_looks: how many circuits had looked at these held-out pairs, this one included.
    """

    universe: Universe = "all"
    discovery: SplitEvaluation | None = None
    heldout: SplitEvaluation | None = None
    curve: tuple[CurvePoint, ...] = ()
    conditions: Conditions = Conditions()
    tests: Mapping[str, Json] = Field(default_factory=dict)
    thresholds: Mapping[str, Json] = Field(default_factory=dict)
    heldout_looks: int | None = None
