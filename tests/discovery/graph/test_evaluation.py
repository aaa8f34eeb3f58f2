from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from discovery.graph import (
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    VERDICTS,
    AblationEvidence,
    Completeness,
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
        "minimality",
    }
    evidence = block["heldout"]["ablations"]["mean"]
    assert set(block["heldout"]["ablations"]) == {"resample", "mean"}
    assert set(evidence) == {
        "metric_full",
        "metric_empty",
        "faithfulness",
        "knockout",
        "completeness",
        "minimal_drop",
        "minimality",
        "random_controls",
        "reference",
    }
    for score in ("faithfulness", "knockout"):
        assert set(evidence[score]) == {"value", "low", "high", "median", "share_in_band"}
    assert set(evidence["random_controls"]) == {"size", "layer"}
    assert set(evidence["random_controls"]["size"]) == {"n", "n_possible", "as_good", "p"}
    assert set(evidence["reference"]) == {"source", "alignment", "size"}
    assert set(block["curve"][0]) == {"ablation", "size", "nodes", "faithfulness"}
    assert block["conditions"]["e"] == {"resample": "undecided", "mean": "fails"}
    assert (block["conditions"]["d"], block["conditions"]["f"]) == ("fails", "not_run")
    assert set(block["conditions"]) == set("abcdef")


def test_the_parts_of_c_and_d_have_the_names_that_interfaces_gives() -> None:
    heldout = json.loads(ioi_circuit().to_json())["graph"]["evaluation"]["heldout"]
    check = {"checked", "unchecked", "unchecked_bound", "flips", "padding"}
    assert set(heldout["minimality"]) == check
    evidence = heldout["ablations"]["mean"]
    assert {"max_gap_in", "node_in", "max_gap_out", "node_out"} <= set(evidence["completeness"])
    assert {"checked", "unchecked", "unchecked_bound"} <= set(evidence["completeness"])
    assert set(evidence["completeness"]["checked"]) == {"inside", "outside"}
    assert set(evidence["minimality"][0]) == {"node", "context", "drop", "p", "p_holm", "n"}


def test_what_was_not_measured_is_null_and_what_was_not_tried_not_run() -> None:
    block = Evaluation(discovery=SplitEvaluation(n=3)).model_dump(mode="json")
    assert block["heldout"] is block["heldout_looks"] is None
    assert block["discovery"]["metric_clean"] is block["discovery"]["ablations"]["resample"] is None
    by_ablation = {"resample": "not_run", "mean": "not_run"}
    assert block["conditions"] == dict.fromkeys("abce", by_ablation) | dict.fromkeys(
        "df", "not_run"
    )
    evidence = AblationEvidence().model_dump(mode="json")
    assert set(evidence.values()) == {None}


def test_access_by_name_agrees_with_the_attributes() -> None:
    conditions = Conditions(c=OutcomeByAblation(resample="fails", mean="holds"))
    for name in CONDITIONS:
        assert conditions.of(name) is getattr(conditions, name)
        assert conditions.has_one_status(name) is (name in "df")
    assert conditions.under("c", "resample") == "fails"
    assert Conditions(d="undecided").under("d", "mean") == "undecided"
    ablations = EvidenceByAblation(mean=AblationEvidence(metric_full=1.0))
    for ablation in EVIDENCE_ABLATIONS:
        assert ablations.under(ablation) is getattr(ablations, ablation)
        assert conditions.c.under(ablation) == getattr(conditions.c, ablation)
    assert VERDICTS == ("verified", "partial", "rejected", "inconclusive", "no_behaviour")


def test_conditions_of_version_1_keep_their_shape() -> None:
    """(d) and (f) had an outcome under each ablation."""
    before = Conditions.none_run(1).model_dump(mode="json")
    by_ablation = {"resample": "not_run", "mean": "not_run"}
    assert before == dict.fromkeys("abcdef", by_ablation)
    conditions = Conditions.model_validate(before | {"d": {"resample": "fails", "mean": "holds"}})
    assert conditions.under("d", "mean") == "holds"
    assert not conditions.has_one_status("d")
    assert conditions.model_dump(mode="json")["d"] == {"resample": "fails", "mean": "holds"}


def test_fields_of_version_2_are_left_out_of_records_of_version_1() -> None:
    """A number that is 0 is no missing number, so it is written."""
    completeness = Completeness(max_gap_in=0.1, n_out=3)
    assert set(completeness.model_dump()) == {
        "max_gap_in",
        "node_in",
        "max_gap_out",
        "node_out",
        "n_out",
    }
    assert AblationEvidence(minimal_drop=0.0).model_dump()["minimal_drop"] == 0.0
    assert "minimal_drop" not in AblationEvidence().model_dump()


def test_closed_choices_are_closed() -> None:
    with pytest.raises(ValidationError, match="holds"):
        OutcomeByAblation(resample="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="resample"):
        CurvePoint(ablation="zero", size=1)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="not the name of a node"):
        Minimality(node="name mover")
