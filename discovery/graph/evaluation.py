"""The `evaluation` block of a circuit record: every number that a verdict rests on.

This module only has the shapes. docs/definitions.md defines the numbers, and
`discovery.evaluation` computes them. f(S) = (m(S) − m(∅)) / (m(U) − m(∅)), where means over a
split's pairs come first, then the ratio. C is the circuit, U the universe of heads and MLPs. None
means "not measured"; the outcome of a condition that was not measured is ``not_run``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from pydantic import Field

from discovery.graph.base import Json, JsonModel, NodeId, Number, OmitsEmptyFields
from discovery.sites import Universe

Verdict = Literal["verified", "partial", "rejected", "inconclusive", "no_behaviour"]
Outcome = Literal["holds", "fails", "undecided", "not_run"]
Condition = Literal["a", "b", "c", "d", "e", "f"]
RulesVersion = Literal[1, 2]
"""The version of the rules of evaluation that a record follows; its schema ends with it."""

Side = Literal["inside", "outside"]
EvidenceAblation = Literal["resample", "mean"]
"""The ablations that enter a verdict; zero ablation depends on weight processing and does not."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
SINGLE_STATUS_CONDITIONS: tuple[Condition, ...] = ("d", "f")
"""The conditions that have one status for both ablations, from version 2 of the rules on."""

RULES_VERSION: RulesVersion = 2
"""The rules that new records follow. Older records keep the rules that they were made with."""

EVIDENCE_ABLATIONS: tuple[EvidenceAblation, ...] = get_args(EvidenceAblation)


@dataclass(frozen=True)
class ConditionMeaning:
    """What a condition asks of a circuit.

    Attributes:
        name: the condition in a few words.
        explanation: what holds if the condition is met.
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
        low: the lower end of the interval.
        high: the upper end of the interval.
        median: the median of the ratios of single pairs.
        share_in_band: the share of pairs whose own ratio lies within the bounds of the condition.
    """

    value: Number = None
    low: Number = None
    high: Number = None
    median: Number = None
    share_in_band: Number = None


class BySide(JsonModel):
    """A number for the nodes inside the circuit and one for the nodes outside.

    Attributes:
        inside: the number for the nodes of the circuit.
        outside: the number for the other nodes of the universe.
    """

    inside: Number = None
    outside: Number = None

    def on(self, side: Side) -> float | None:
        """Return the number of a side; None if it is not known."""
        return self.inside if side == "inside" else self.outside


class JointAddition(JsonModel):
    """What many nodes outside do when they are added to the circuit together (condition c).

    Attributes:
        n: how many nodes were added.
        change: f(C∪V) − f(C).
    """

    n: int
    change: Number = None


class BlockAdditions(JsonModel):
    """The unchecked nodes outside, added to the circuit in random blocks (condition c).

    Attributes:
        n: how many blocks were added, over all partitions.
        size: how many nodes a block has.
        max_change: the largest |f(C∪B) − f(C)| of a block B.
        opened: how many blocks changed f so much that their nodes were then checked one by one.
    """

    n: int
    size: int
    max_change: Number = None
    opened: int = 0


class Completeness(OmitsEmptyFields):
    """Whether the circuit leaves out something that matters (condition c).

    A gap is |f(C∖u) − f(U∖u)| of a node u of the circuit, or |f(C∪v) − f(C)| of a node v outside.

    Attributes:
        max_gap_in: the largest gap inside.
        node_in: the u with the largest gap.
        max_gap_out: the largest gap outside.
        node_out: the v with the largest gap.
        low: the largest lower bound of a gap on each side. All bounds hold together with 95%
            confidence.
        failing: the nodes whose lower bound exceeds the limit.
        checked: how many nodes of each side were checked one by one.
        unchecked: how many nodes of each side were not.
        refined: how many nodes of each side were measured on all pairs. The others were measured
            on the first pairs, which showed that they are clear of the limit.
        unchecked_bound: a 95% upper bound on the share of unchecked nodes whose gap exceeds the
            limit; null if none is unchecked.
        blocks: what the unchecked nodes outside do in blocks; None if there are none.
        joint_positive: what all outside nodes with a positive effect do together.
        joint_negative: what all outside nodes with a negative effect do together.
        n_out: how many v were measured (version 1 of the rules).
        n_out_possible: how many v there are (version 1).
        chosen: how the measured v were chosen, if not all were measured (version 1).
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset(
        "low failing checked unchecked refined unchecked_bound blocks joint_positive "
        "joint_negative n_out n_out_possible chosen".split()
    )

    max_gap_in: Number = None
    node_in: NodeId | None = None
    max_gap_out: Number = None
    node_out: NodeId | None = None
    low: BySide | None = None
    failing: tuple[NodeId, ...] = ()
    checked: BySide | None = None
    unchecked: BySide | None = None
    refined: BySide | None = None
    unchecked_bound: BySide | None = None
    blocks: BlockAdditions | None = None
    joint_positive: JointAddition | None = None
    joint_negative: JointAddition | None = None
    n_out: int | None = None
    n_out_possible: int | None = None
    chosen: str | None = None


class Minimality(OmitsEmptyFields):
    """Whether one node of the circuit is needed, under one ablation (condition d).

    Attributes:
        node: the node v that is ablated.
        context: the nodes K that are ablated with it, chosen on discovery pairs.
        drop: |f(C∖K) − f(C∖K∖v)| on held-out pairs.
        p: the p-value of a paired sign-flip test.
        p_holm: the p-value after Holm's correction over the circuit's nodes and, from version 2 of
            the rules on, over both ablations.
        n: the number of pairs it was measured on; None in version 1, which uses all.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"n"})

    node: NodeId
    context: tuple[NodeId, ...] = ()
    drop: Number = None
    p: Number = None
    p_holm: Number = None
    n: int | None = None


class PaddingTrial(JsonModel):
    """A smaller circuit that was tried, because many nodes of the circuit matter little (d).

    Attributes:
        left_out: the nodes that it lacks.
        meets: whether it meets (a) to (c) by point values under both ablations. If it does, the
            nodes that it lacks are padding.
        why_not: the first condition that it misses, and the ablation; None if it meets all.
    """

    left_out: tuple[NodeId, ...]
    meets: bool
    why_not: str | None = None


class MinimalityCheck(JsonModel):
    """How condition (d) was checked, over both ablations (from version 2 of the rules on).

    Attributes:
        checked: how many nodes were checked one by one.
        unchecked: how many nodes were not.
        unchecked_bound: a 95% upper bound on the share of unchecked nodes that are not needed; None
            if none is unchecked.
        flips: how many random signs each test drew.
        padding: the smaller circuits that were tried.
    """

    checked: int
    unchecked: int = 0
    unchecked_bound: Number = None
    flips: int | None = None
    padding: tuple[PaddingTrial, ...] = ()


class Control(JsonModel):
    """How other sets of the same size compare with the circuit (condition e).

    Attributes:
        n: how many sets were measured.
        n_possible: how many such sets there are.
        as_good: how many did as well: |1 − f| is no larger, and (b) and (c) are met.
        p: (1 + as_good) / (1 + n).
    """

    n: int | None = None
    n_possible: int | None = None
    as_good: int | None = None
    p: Number = None


class RandomControls(JsonModel):
    """The two kinds of alternative circuit.

    Attributes:
        size: sets with as many heads and as many MLPs; None if there is no other such set.
        layer: sets with as many of each kind in every layer; None if there is no other such set.
    """

    size: Control | None = None
    layer: Control | None = None


class Reference(OmitsEmptyFields):
    """What replaces the value of an ablated node.

    Attributes:
        source: the origin of the values: the pair's corrupted run, or a mean over prompts.
        alignment: whether means are by position, by label, or over all positions.
        size: the number of prompts in the smallest mean.
        agreement: the difference between f by the one half of the prompts and f by the other; None
            if it was not measured.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"agreement"})

    source: str | None = None
    alignment: str | None = None
    size: int | None = None
    agreement: Number = None


class AblationEvidence(OmitsEmptyFields):
    """Everything that was measured on one split under one ablation.

    Attributes:
        metric_full: m(U), with nothing ablated.
        metric_empty: m(∅), with everything ablated.
        faithfulness: f(C).
        knockout: f(U∖C).
        completeness: the gaps of condition (c).
        minimal_drop: the drop δ that every node must reach by condition (d); None in version 1 of
            the rules, which uses 0.02.
        minimality: condition (d), one row for each node that was checked; None if it was not run.
        random_controls: the alternatives of condition (e); None if it was not run.
        reference: what replaces the values of ablated nodes.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"minimal_drop"})

    metric_full: Number = None
    metric_empty: Number = None
    faithfulness: Score | None = None
    knockout: Score | None = None
    completeness: Completeness | None = None
    minimal_drop: Number = None
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


class SplitEvaluation(OmitsEmptyFields):
    """What was measured on the pairs of one split.

    Attributes:
        n: the number of pairs.
        metric_clean: the mean metric of the clean prompts.
        metric_corrupted: the mean metric of the corrupted prompts.
        accuracy: the share of clean prompts on which the answer beats the wrong answer; chance is
            0.5.
        top1: the share of clean prompts on which the answer is the most likely token of all.
        ablations: the evidence under each ablation.
        minimality: how condition (d) was checked over both ablations; None if it was not run.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"minimality"})

    n: int
    metric_clean: Number = None
    metric_corrupted: Number = None
    accuracy: Number = None
    top1: Number = None
    ablations: EvidenceByAblation = EvidenceByAblation()
    minimality: MinimalityCheck | None = None


class CurvePoint(JsonModel):
    """Faithfulness of one set: the ranking's first nodes, or the circuit itself.

    Attributes:
        ablation: the ablation.
        size: the number of heads and MLPs in the set.
        nodes: the nodes of the set.
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

    Conditions (a), (b), (c) and (e) have an outcome under each ablation. (d) and (f) have one
    status. In version 1 of the rules these two had an outcome under each ablation as well.

    Attributes:
        a: sufficient: f(C) is near 1.
        b: necessary: f(U∖C) is near 0.
        c: complete: nothing that matters is left out.
        d: minimal: every node is needed.
        e: better than alternatives of the same size.
        f: stable if the pairs are drawn again.
    """

    a: OutcomeByAblation = OutcomeByAblation()
    b: OutcomeByAblation = OutcomeByAblation()
    c: OutcomeByAblation = OutcomeByAblation()
    d: OutcomeByAblation | Outcome = "not_run"
    e: OutcomeByAblation = OutcomeByAblation()
    f: OutcomeByAblation | Outcome = "not_run"

    @classmethod
    def none_run(cls, rules: RulesVersion = RULES_VERSION) -> Conditions:
        """Return the outcomes before anything was run, in the shape of a version of the rules."""
        return cls() if rules == 2 else cls(d=OutcomeByAblation(), f=OutcomeByAblation())

    def of(self, condition: Condition) -> OutcomeByAblation | Outcome:
        """Return the outcome of a condition: under each ablation, or one for both."""
        by_name: dict[Condition, OutcomeByAblation | Outcome] = {
            "a": self.a,
            "b": self.b,
            "c": self.c,
            "d": self.d,
            "e": self.e,
            "f": self.f,
        }
        return by_name[condition]

    def under(self, condition: Condition, ablation: EvidenceAblation) -> Outcome:
        """Return the outcome of a condition under an ablation, which may be that for both."""
        outcome = self.of(condition)
        return outcome.under(ablation) if isinstance(outcome, OutcomeByAblation) else outcome

    def has_one_status(self, condition: Condition) -> bool:
        """Whether a condition has one outcome for both ablations."""
        return not isinstance(self.of(condition), OutcomeByAblation)


class Evaluation(JsonModel):
    """The whole `evaluation` block.

    Attributes:
        universe: what could be ablated: "all" heads and MLPs, or "heads", which keeps the MLPs.
        discovery: what was measured on the pairs that selected the circuit.
        heldout: what was measured on held-out pairs; None before they were looked at.
        curve: faithfulness against size.
        conditions: the outcomes of (a) to (f).
        tests: each further statistical test by name, with its numbers.
        thresholds: the bounds that were applied.
        heldout_looks: how many circuits had used these held-out pairs, this one included.
    """

    universe: Universe = "all"
    discovery: SplitEvaluation | None = None
    heldout: SplitEvaluation | None = None
    curve: tuple[CurvePoint, ...] = ()
    conditions: Conditions = Conditions()
    tests: Mapping[str, Json] = Field(default_factory=dict)
    thresholds: Mapping[str, Json] = Field(default_factory=dict)
    heldout_looks: int | None = None
