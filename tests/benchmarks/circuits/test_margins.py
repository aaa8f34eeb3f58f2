"""The benchmark of margins: both kinds of runs, and what its table counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.circuits import margins
from benchmarks.circuits.margins import (
    NO_MARGIN,
    MarginResult,
    count_passing_sets,
    find_known,
    format_results,
    load_results,
    run_cases,
    use_margin,
)
from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery.agent.search.fit import PLAIN, WITH_MARGIN


def holders_of(bounds: object) -> set[str]:
    return {
        name
        for name, module in list(sys.modules.items())
        if name.startswith("discovery.agent.") and getattr(module, "WITH_MARGIN", None) is bounds
    }


def result(model: str, margin: margins.Margin, verdict: str, n_passing: int | None) -> MarginResult:
    return MarginResult(
        model=model,
        task="ioi",
        n_nodes=10,
        margin=margin,
        verdict=verdict,
        reasons=(),
        size=4,
        forward_equivalents=1.0,
        n_passing=n_passing,
    )


def test_without_a_margin_every_part_of_the_search_has_none() -> None:
    before = holders_of(WITH_MARGIN)
    assert {f"discovery.agent.search.{name}" for name in ("fit", "mend", "shrink")} <= before
    with use_margin("without"):
        assert (holders_of(WITH_MARGIN), holders_of(NO_MARGIN)) == (set(), before)
    with use_margin("with"):
        assert holders_of(WITH_MARGIN) == before
    assert NO_MARGIN.gap_in == pytest.approx(PLAIN.gap_in, abs=1e-5)


def test_a_case_counts_as_known_if_a_run_or_brute_force_shows_a_passing_set() -> None:
    results = [
        result("small-1", "with", "verified", 0),
        result("small-1", "without", "partial", 0),
        result("small-2", "with", "partial", 3),
        result("small-2", "without", "partial", 3),
        result("wide-3", "with", "partial", None),
        result("wide-3", "without", "partial", None),
    ]
    assert find_known(results) == {("small-1", "ioi"), ("small-2", "ioi")}
    rows = list(format_results(results))
    assert any("| with the penalty | 2 | 2 | with | 1 (50%) | 50% |" in row for row in rows)
    assert any("| without it, larger | 1 | 0 | with | 0 (0%) | – |" in row for row in rows)
    assert any("| all | 3 | 2 | without | 0 (0%) | 0% |" in row for row in rows)


@pytest.mark.slow
def test_a_known_circuit_is_run_with_and_without_a_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = build_known_circuit("induction").load(tmp_path / "models" / "small-0", 120)
    assert count_passing_sets(model, task) == 1
    monkeypatch.setattr(margins, "BUNDLED_TASKS", ["induction"])
    monkeypatch.setattr(margins, "load_task", lambda name, model: task)
    run_cases(tmp_path / "models", tmp_path / "out")
    run_cases(tmp_path / "models", tmp_path / "out")
    results = load_results(tmp_path / "out")
    assert [(r.margin, r.verdict, r.n_passing) for r in results] == [
        ("with", "verified", 1),
        ("without", "verified", 1),
    ]
