"""Results survive an interruption, and the tables count what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scale.__main__ import main
from benchmarks.scale.results import RESULTS_FILE, CaseResult, append_line, load_results
from benchmarks.scale.tables import fit_growth, format_recovery

EXACT = CaseResult(
    kind="chain",
    n_nodes=156,
    seed=4,
    seed_set="dev",
    truth=("a0.h1", "a5.h2"),
    found=("a0.h1", "a5.h2"),
    verdict="verified",
    reasons=("a reason",),
    forward_equivalents=1000.0,
    seconds=2.0,
)


def test_exact_means_nothing_missing_and_nothing_extra() -> None:
    assert EXACT.is_exact
    without = replace(EXACT, found=("a0.h1",))
    beyond = replace(EXACT, found=(*EXACT.found, "m3"))
    assert (without.is_exact, without.missing, without.extra) == (False, ["a5.h2"], [])
    assert (beyond.is_exact, beyond.missing, beyond.extra) == (False, [], ["m3"])


def test_a_twin_is_right_if_nothing_is_claimed() -> None:
    twin = replace(EXACT, kind="untrained", truth=(), found=(), verdict="no_behaviour")
    assert twin.is_exact
    assert not replace(twin, verdict="partial").is_exact
    assert not replace(twin, verdict="verified").is_exact


def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / RESULTS_FILE
    append_line(path, EXACT.record())
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    assert load_results(tmp_path) == [EXACT]
    second = replace(EXACT, seed=5)
    append_line(path, second.record())
    assert load_results(tmp_path) == [EXACT, second]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / RESULTS_FILE
    append_line(path, EXACT.record())
    path.write_text("{damaged\n" + path.read_text())
    with pytest.raises(ValueError, match="Expecting property name"):
        load_results(tmp_path)


def test_refused_cases_are_counted_apart() -> None:
    refused = replace(EXACT, seed=6, found=(), verdict="", refused=("joint is 0.2, above 0.1",))
    wrong = replace(EXACT, seed=7, found=("a0.h1",), verdict="partial")
    table = "".join(format_recovery([EXACT, wrong, refused]))
    assert (
        "| chain | 156 | 2 | 1 | 50.0% | 1.3% to 98.7% | 1 verified, 1 partial | 1 | 0 |" in table
    )
    assert "did not pass its check: 1." in table


def test_the_growth_of_an_exact_power_law_is_found() -> None:
    results = [
        replace(
            EXACT,
            n_nodes=n_nodes,
            found=tuple(f"m{index}" for index in range(size)),
            forward_equivalents=7.0 * n_nodes**0.8 * size**1.5,
        )
        for n_nodes in (20, 156, 300, 1056)
        for size in (2, 3, 5)
    ]
    fit = fit_growth(results)
    assert fit is not None
    assert fit.nodes == pytest.approx((0.8, 0.8, 0.8))
    assert fit.size == pytest.approx((1.5, 1.5, 1.5))
    assert fit_growth(results[:3]) is None


def test_the_table_is_printed_and_the_plot_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n_nodes in (156, 300):
        append_line(tmp_path / RESULTS_FILE, replace(EXACT, n_nodes=n_nodes).record())
    main(["table", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| **chain** | all | 2 | 2 | 100.0% |" in printed
    assert "| 300 | 1 | 2 to 2 | 1,000 | 1,000 | 2 | 2 |" in printed
    first = (tmp_path / "cost.svg").read_bytes()
    main(["table", "--out", str(tmp_path)])
    assert (tmp_path / "cost.svg").read_bytes() == first
    with pytest.raises(SystemExit, match="holds no results of report seeds"):
        main(["table", "--out", str(tmp_path), "--seeds", "report"])


@pytest.mark.slow
def test_a_case_is_run_once(tmp_path: Path) -> None:
    words = ["run", "--nodes", "20", "--kinds", "chain", "untrained", "--limit", "1"]
    main([*words, "--out", str(tmp_path)])
    results = load_results(tmp_path)
    assert [result.kind for result in results] == ["chain", "untrained"]
    assert all(result.is_exact for result in results)
    assert results[0].forward_equivalents > 0
    main([*words, "--out", str(tmp_path)])
    assert load_results(tmp_path) == results
