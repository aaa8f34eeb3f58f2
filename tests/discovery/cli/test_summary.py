from __future__ import annotations

from pathlib import Path

import pytest

from discovery.cli.summary import describe_circuit
from discovery.graph import VERDICTS, CircuitEdge, CircuitGraph, Effect, Evaluation
from tests.discovery.graph.example import ioi_circuit


def test_the_summary_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "ioi-bundled-1"
    folder.mkdir()
    (folder / "report.html").touch()
    text = describe_circuit(ioi_circuit(), folder)
    for part in (
        "ioi in bundled: partial",
        "- (d) minimal fails under resample: a10.h0 drops 0.01 < 0.02.",
        "The circuit has 2 nodes",
        "L9H6   +0.52 [0.48, 0.56]  +0.60 [0.50, 0.70]  name mover  end, -2",
        "L9H6 → L10H0  -0.12 [-0.20, -0.05]  q v",
        "On 100 held-out pairs: accuracy 98.0%",
        "resample  0.93 [0.88, 0.98]",
        "mean      0.88 [0.83, 0.93]",
        "(d) minimal                   fails (both)",
        "(e) better than alternatives  undecided       fails",
        "Cost: 1,234 forward-pass equivalents, 1 min 1 s, peak memory 1.0 GiB",
        str(folder),
        str(folder / "report.html"),
        "circuit-scout runs show ioi-bundled-1",
    ):
        assert part in text, part


def test_before_held_out_pairs_are_used_it_shows_the_discovery_pairs() -> None:
    evaluation = ioi_circuit().evaluation
    early = Evaluation(discovery=evaluation.discovery)
    text = describe_circuit(ioi_circuit(evaluation=early, verdict="inconclusive"))
    assert "On 100 discovery pairs" in text
    assert "(a) sufficient" not in text


def test_slight_edges_are_only_counted() -> None:
    edges = [
        CircuitEdge(source="a9.h6", target="a10.h0", effect=Effect(mean=0.5)),
        CircuitEdge(source="a9.h6", target="logits", effect=Effect(mean=0.001)),
    ]
    assert "L9H6 → L10H0  +0.50\n  and 1 that are weaker" in describe_circuit(
        ioi_circuit(edges=edges)
    )
    assert "Edges, the strongest first:\n  and 1 below 0.01" in describe_circuit(
        ioi_circuit(edges=edges[1:])
    )


@pytest.mark.parametrize("verdict", [*VERDICTS, None])
def test_the_summary_of_an_empty_record(verdict: str | None) -> None:
    text = describe_circuit(CircuitGraph.model_validate({"verdict": verdict}))
    assert text.startswith(f"A task in a model: {verdict or 'not evaluated'}\n")
    assert "None" not in text


def test_shared_keys_and_values_are_explained_below_the_edges() -> None:
    model = ioi_circuit().model
    shared = describe_circuit(ioi_circuit(model=model.model_copy(update={"n_kv_heads": 3})))
    assert "changes the copy that this head reads" in shared
    assert "changes the copy that this head reads" not in describe_circuit(ioi_circuit(model=model))
