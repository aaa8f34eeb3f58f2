from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from discovery.graph import (
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    VERDICTS,
    AblationEvidence,
    Conditions,
    CurvePoint,
    Evaluation,
    EvidenceByAblation,
    Minimality,
    OutcomeByAblation,
    SplitEvaluation,
)
from tests.discovery.graph.example import ioi_circuit


def test_the_block_has_the_names_that_interfaces_gives() -> None:
    block = json.loads(ioi_circuit().to_json())["graph"]["evaluation"]
    assert {
        "discovery",
        "heldout",
        "curve",
        "conditions",
        "tests",
        "thresholds",
        "heldout_looks",
    } <= set(block)
    assert set(block["heldout"]) == {
        "n",
        "metric_clean",
        "metric_corrupted",
        "accuracy",
        "top1",
        "ablations",
    }
    evidence = block["heldout"]["ablations"]["mean"]
    assert set(block["heldout"]["ablations"]) == {"resample", "mean"}
    assert set(evidence) == {
        "metric_full",
        "metric_empty",
        "faithfulness",
        "knockout",
        "completeness",
        "minimality",
        "random_controls",
        "reference",
    }
    for score in ("faithfulness", "knockout"):
        assert set(evidence[score]) == {"value", "low", "high", "median", "share_in_band"}
    assert {"max_gap_in", "node_in", "max_gap_out", "node_out"} <= set(evidence["completeness"])
    assert set(evidence["minimality"][0]) == {"node", "context", "drop", "p", "p_holm"}
    assert set(evidence["random_controls"]) == {"size", "layer"}
    assert set(evidence["random_controls"]["size"]) == {"n", "n_possible", "as_good", "p"}
    assert set(evidence["reference"]) == {"source", "alignment", "size"}
    assert set(block["curve"][0]) == {"ablation", "size", "nodes", "faithfulness"}
    assert block["conditions"]["d"] == {"resample": "fails", "mean": "undecided"}
    assert set(block["conditions"]) == set("abcdef")


def test_what_was_not_measured_is_null_and_what_was_not_tried_not_run() -> None:
    block = Evaluation(discovery=SplitEvaluation(n=3)).model_dump(mode="json")
    assert block["heldout"] is block["heldout_looks"] is None
    assert block["discovery"]["metric_clean"] is block["discovery"]["ablations"]["resample"] is None
    assert {outcome for row in block["conditions"].values() for outcome in row.values()} == {
        "not_run"
    }
    evidence = AblationEvidence().model_dump(mode="json")
    assert set(evidence.values()) == {None}


def test_access_by_name_agrees_with_the_attributes() -> None:
    conditions = Conditions(c=OutcomeByAblation(resample="fails", mean="holds"))
    for name in CONDITIONS:
        assert conditions.of(name) is getattr(conditions, name)
    ablations = EvidenceByAblation(mean=AblationEvidence(metric_full=1.0))
    for ablation in EVIDENCE_ABLATIONS:
        assert ablations.under(ablation) is getattr(ablations, ablation)
        assert conditions.c.under(ablation) == getattr(conditions.c, ablation)
    assert VERDICTS == ("verified", "partial", "rejected", "inconclusive", "no_behaviour")


def test_closed_choices_are_closed() -> None:
    with pytest.raises(ValidationError, match="holds"):
        OutcomeByAblation(resample="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="resample"):
        CurvePoint(ablation="zero", size=1)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="not the name of a node"):
        Minimality(node="name mover")
