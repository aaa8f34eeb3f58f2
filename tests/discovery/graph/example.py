"""Records for tests: one with every field, one with a feature, and any record by hypothesis."""

from __future__ import annotations

import json
from typing import Any, get_args

from hypothesis import strategies as st

from discovery.graph import (
    AblationEvidence,
    BlockAdditions,
    BySide,
    CircuitEdge,
    CircuitGraph,
    CircuitNode,
    Completeness,
    Conditions,
    Control,
    Cost,
    CurvePoint,
    Effect,
    Evaluation,
    EvidenceByAblation,
    JointAddition,
    JsonModel,
    Minimality,
    MinimalityCheck,
    ModelFacts,
    NodeEffect,
    OutcomeByAblation,
    PaddingTrial,
    Provenance,
    RandomControls,
    Reference,
    Score,
    SplitEvaluation,
    TaskFacts,
)
from discovery.sites import FeatureSite, Node, feature, head, mlp, slots_of


def ablation_evidence(faithfulness: float) -> AblationEvidence:
    """Return evidence with every field."""
    return AblationEvidence(
        metric_full=3.5,
        metric_empty=0.1,
        faithfulness=Score(
            value=faithfulness,
            low=faithfulness - 0.05,
            high=faithfulness + 0.05,
            median=0.9,
            share_in_band=0.8,
        ),
        knockout=Score(value=0.05, low=-0.02, high=0.1, median=0.04, share_in_band=0.95),
        completeness=Completeness(
            max_gap_in=0.1,
            node_in="a9.h6",
            max_gap_out=0.04,
            node_out="m0",
            low=BySide(inside=0.05, outside=0.0),
            failing=("a9.h6",),
            checked=BySide(inside=2, outside=64),
            unchecked=BySide(inside=0, outside=90),
            refined=BySide(inside=2, outside=9),
            unchecked_bound=BySide(inside=None, outside=0.1),
            blocks=BlockAdditions(n=24, size=8, max_change=0.02),
            joint_positive=JointAddition(n=80, change=0.11),
            joint_negative=JointAddition(n=74, change=-0.09),
        ),
        minimal_drop=0.02,
        minimality=(
            Minimality(node="a9.h6", context=("a10.h0",), drop=0.2, p=0.001, p_holm=0.002, n=32),
            Minimality(node="a10.h0", drop=0.01, p=0.3, p_holm=0.3, n=100),
        ),
        random_controls=RandomControls(
            size=Control(n=200, n_possible=1000, as_good=0, p=1 / 201), layer=None
        ),
        reference=Reference(source="corrupted", alignment="position", size=12),
    )


def ioi_evaluation() -> Evaluation:
    """Return the evaluation of the IOI example."""
    ablations = EvidenceByAblation(resample=ablation_evidence(0.93), mean=ablation_evidence(0.88))
    return Evaluation(
        discovery=SplitEvaluation(
            n=100,
            metric_clean=3.4,
            metric_corrupted=-3.1,
            accuracy=0.99,
            top1=0.9,
            ablations=ablations,
        ),
        heldout=SplitEvaluation(
            n=100,
            metric_clean=3.5,
            metric_corrupted=-3.2,
            accuracy=0.98,
            top1=0.91,
            ablations=ablations,
            minimality=MinimalityCheck(
                checked=2,
                unchecked=0,
                flips=10_000,
                padding=(
                    PaddingTrial(left_out=("a10.h0",), meets=False, why_not="(a) under mean"),
                ),
            ),
        ),
        curve=(
            CurvePoint(ablation="resample", size=1, nodes=("a9.h6",), faithfulness=0.5),
            CurvePoint(ablation="resample", size=2, nodes=("a9.h6", "a10.h0"), faithfulness=0.93),
        ),
        conditions=Conditions(
            a=OutcomeByAblation(resample="holds", mean="holds"),
            b=OutcomeByAblation(resample="holds", mean="holds"),
            d="fails",
            e=OutcomeByAblation(resample="undecided", mean="fails"),
        ),
        tests={"accuracy": {"lower": 0.94, "bound": 0.5}},
        thresholds={"a_faithfulness": [0.8, 1.2], "b_knockout": 0.2, "min_heldout": 48},
        heldout_looks=1,
    )


def ioi_nodes() -> tuple[CircuitNode, ...]:
    """Return the heads of the IOI example, not in forward order."""
    return (
        CircuitNode(
            **CircuitNode.of(head(10, 0)).model_dump()
            | {"effect": NodeEffect(denoising=Effect(mean=-0.31)), "sign": -1},
        ),
        CircuitNode.of(
            head(9, 6),
            effect=NodeEffect(
                denoising=Effect(mean=0.52, low=0.48, high=0.56),
                noising=Effect(mean=0.6, low=0.5, high=0.7),
            ),
            sign=1,
            positions=("end", -2),
            role="name mover",
            evidence=("head_out-1", "head_out-2"),
        ),
    )


def ioi_edges() -> tuple[CircuitEdge, ...]:
    """Return the edges of the IOI example, not in forward order."""
    return (
        CircuitEdge(source="a10.h0", target="logits"),
        CircuitEdge(
            source="a9.h6",
            target="a10.h0",
            effect=Effect(mean=-0.12, low=-0.2, high=-0.05),
            inputs={"q": Effect(mean=-0.1, low=-0.2, high=0.0), "v": Effect(mean=-0.02)},
            evidence=("paths-1",),
        ),
    )


def ioi_circuit(**changes: Any) -> CircuitGraph:
    """Return a small evaluated circuit like that of IOI; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "run_id": "ioi-bundled-20261120-153012-a1b2",
        "model": ModelFacts(
            name="bundled",
            fingerprint="ab" * 32,
            backend="transformerlens",
            dtype="float32",
            weight_processing="none",
            n_layers=12,
            n_heads=12,
        ),
        "task": TaskFacts(
            name="ioi",
            metric="logit_difference",
            fingerprint="cd" * 32,
            n_discovery=100,
            n_heldout=100,
        ),
        "evaluation": ioi_evaluation(),
        "verdict": "partial",
        "reasons": (
            "(d) minimal fails under resample: a10.h0 drops 0.01 < 0.02.",
            "(f) was not run.",
        ),
        "cost": Cost(forward_equivalents=1234.5, seconds=61.2, peak_memory_bytes=1 << 30),
        "provenance": Provenance(
            seed=0,
            versions={"torch": "2.13.0"},
            device="cpu",
            command="circuit-scout discover",
            created="2026-11-20T15:30:12Z",
        ),
        "nodes": ioi_nodes(),
        "edges": ioi_edges(),
    }
    return CircuitGraph(**fields | changes)


SAE_FACTS = {
    "sae": "saes/eight",
    "fingerprint": "ef" * 32,
    "layer": 10,
    "site": "resid_pre",
    "reads": "resid_pre.10",
    "d_sae": 2000,
}


def with_feature(**changes: Any) -> CircuitGraph:
    """Return the IOI example with one feature between its heads; `changes` replace whole fields."""
    facts = json.loads(ioi_circuit().to_json())
    feature = {
        "fires_on": [" John", " Mary"],
        "promotes": [" <script>"],
        "removal": {"mean": 0.2},
        "link": None,
    }
    node = {
        "id": "f10.1234",
        "effect": {"noising": {"mean": 0.3, "low": 0.2, "high": 0.4}},
        "sign": 1,
        "feature": feature,
    }
    into = {
        "source": "a9.h6",
        "target": "f10.1234",
        "effect": {"mean": 0.2},
        "inputs": {"feature": {"mean": 0.2}},
    }
    out = {
        "source": "f10.1234",
        "target": "a10.h0",
        "effect": {"mean": 0.25},
        "inputs": {"k": {"mean": 0.24}},
    }
    fields = {
        **facts["graph"],
        "dictionaries": [
            {**SAE_FACTS, "candidates": ["f10.1234", "f10.7"], "warnings": ["it is small"]}
        ],
        "nodes": [*facts["nodes"], node],
        "edges": [*facts["edges"], {**into, "activation": {"mean": 0.8}}, out],
    }
    return CircuitGraph.model_validate({**fields, **changes})


finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.none() | finite
# Everything that a tokenizer or a user may write, control characters included; but no surrogates,
# because pydantic's text is Unicode.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
effects = st.fixed_dictionaries({"mean": numbers, "low": numbers, "high": numbers})


def _added_fields(part: type[JsonModel], *reserved: str) -> st.SearchStrategy[dict[str, Any]]:
    """Fields that a later version might add to a part of a record."""
    declared = {info.alias or field for field, info in part.model_fields.items()}
    taken = declared | {"id", "source", "target", "nodes", "edges", *reserved}
    return st.dictionaries(texts.filter(lambda name: name not in taken), json_values, max_size=2)


def _node(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "id": st.just(name),
            "effect": st.none() | st.fixed_dictionaries({"denoising": st.none() | effects}),
        },
        optional={
            "role": st.none() | texts,
            "positions": st.none() | st.lists(st.integers(-3, 9) | texts, max_size=3),
            "evidence": st.lists(texts, max_size=2),
            "sign": st.sampled_from([None, -1, 0, 1]),
        },
    )


def _edge(source: Node, target: Node) -> st.SearchStrategy[dict[str, Any]]:
    inputs = st.dictionaries(st.sampled_from(slots_of(target)), effects, max_size=3)
    return st.fixed_dictionaries(
        {
            "source": st.just(str(source)),
            "target": st.just(str(target)),
            "effect": st.none() | effects,
            "inputs": inputs,
        }
    )


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a `CircuitGraph`.

    They are plain data, because the shape checks use `random`, which hypothesis forbids while it
    draws.
    """
    layers = st.integers(0, 3)
    features = st.builds(feature, layers, st.integers(0, 9), st.sampled_from(get_args(FeatureSite)))
    units = st.builds(head, layers, st.integers(0, 3)) | st.builds(mlp, layers) | features
    inner = draw(st.lists(units, unique=True, max_size=6))
    nodes = [Node("embed"), *inner, Node("logits")]
    pairs = [(a, b) for a in nodes for b in nodes if a.feeds(b)]
    return draw(_added_fields(CircuitGraph, "schema_")) | {
        "run_id": draw(st.none() | texts),
        "reasons": draw(st.lists(texts, max_size=2)),
        "verdict": draw(st.sampled_from([None, "verified", "rejected"])),
        "evaluation": {
            "heldout": draw(
                st.none() | st.fixed_dictionaries({"n": st.integers(0, 300), "accuracy": numbers})
            )
        },
        "dictionaries": [
            {
                "sae": "saes/one",
                "fingerprint": "ef" * 32,
                "layer": layer,
                "site": site,
                "reads": f"{site}.{layer}",
                "d_sae": 10,
            }
            for layer, site in sorted(
                {(node.layer or 0, node.site or "") for node in inner if node.kind == "feature"}
            )
        ],
        "nodes": [
            draw(_added_fields(CircuitNode)) | draw(_node(str(node)))
            for node in draw(st.permutations(inner))
        ],
        "edges": [
            draw(_added_fields(CircuitEdge)) | draw(_edge(source, target))
            for source, target in draw(st.lists(st.sampled_from(pairs), unique=True, max_size=5))
        ],
    }
