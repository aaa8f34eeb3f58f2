"""Results that are cut: as many rows as fit, the most important first, and a hint for the rest."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from mcp import Client
from pydantic import BaseModel

from mcp_server.tools.result import (
    DETAILED_LIMIT,
    Listing,
    Result,
    fit_to_limit,
    round_number,
    round_numbers,
)
from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_ok,
)

pytestmark = pytest.mark.anyio


class ManyRows(Listing):
    shortened_fields: ClassVar[tuple[str, ...]] = ("names", "rows")
    narrowing_hint: ClassVar[str] = "Ask for fewer."
    rows: list[str]
    names: tuple[str, ...] = ()


def test_as_many_rows_as_fit_are_kept() -> None:
    rows = [f"{n:04}{'é' * 10}" for n in range(1000)]
    facts = fit_to_limit(ManyRows(rows=rows, total=1000), 10_000)
    assert (facts["truncated"], facts["narrow"]) == (True, "Ask for fewer.")
    n_rows = len(facts["rows"])
    assert facts["rows"] == rows[:n_rows]
    assert len(json.dumps(facts)) <= 10_000 < len(json.dumps(facts | {"rows": rows[: n_rows + 1]}))
    whole = fit_to_limit(ManyRows(rows=rows[:n_rows], total=n_rows), 10_000)
    assert (whole["truncated"], whole["narrow"], len(whole["rows"])) == (False, None, n_rows)


def test_a_result_is_cut_to_fit() -> None:
    class Many(Listing):
        shortened_fields: ClassVar[tuple[str, ...]] = ("rows",)
        rows: list[str]

    facts = fit_to_limit(Many(rows=["x" * 90] * 1000, total=1000), 10_000)
    assert facts["truncated"]
    assert 50 <= len(facts["rows"]) <= 110
    assert isinstance(ManyRows(rows=[], total=0), BaseModel)


def test_a_list_loses_its_last_ten_rows_only_after_the_others() -> None:
    facts = fit_to_limit(ManyRows(rows=["x" * 90] * 50, names=("y" * 40,) * 2000, total=50), 10_000)
    assert len(facts["names"]) >= 10
    assert len(facts["rows"]) == 50
    facts = fit_to_limit(
        ManyRows(rows=["x" * 90] * 500, names=("y" * 40,) * 2000, total=50), 10_000
    )
    assert len(facts["names"]) == 10
    assert len(facts["rows"]) > 90


def test_the_newest_are_kept_of_what_ends_with_them() -> None:
    class Events(ManyRows):
        keeps_newest: ClassVar[bool] = True

    assert (
        fit_to_limit(Events(rows=[str(n) for n in range(5000)], total=5000), 10_000)["rows"][-1]
        == "4999"
    )


@pytest.mark.parametrize("text", ["x" * 300_000, "\0" * 100_000])
def test_nothing_exceeds_the_last_bound(text: str) -> None:
    class Told(Result):
        said: str
        inner: dict[str, Any]

    facts = fit_to_limit(Told(said=text, inner={"a": [[text] * 50] * 50, "b": 1}), 10_000)
    assert len(json.dumps(facts)) <= DETAILED_LIMIT
    assert facts["said"].startswith(text[:39])
    assert facts["inner"]["b"] == 1
    listed = fit_to_limit(ManyRows(rows=[], narrow=None, total=1, names=(text,)), 10_000)
    assert listed["truncated"]
    assert listed["narrow"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check_task", {}),
        ("patch_sweep", {"site": "head_out_by_position"}),
        ("ablate_heads", {"nodes": ["a0.h2", "a1.h1"], "per_node": True}),
        ("evaluate_circuit", {"nodes": ["a0.h2", "a1.h1"]}),
    ],
)
async def test_results_are_short(client: Client, name: str, arguments: dict[str, Any]) -> None:
    result = await call_tool_ok(
        client, name, model_id="induction", task=INDUCTION_TASK, **arguments
    )
    assert len(json.dumps(result)) <= 10_000


async def test_the_longest_results_are_bounded(client: Client) -> None:
    for name, arguments in (
        (
            "patch_sweep",
            {
                "task": INDUCTION_TASK,
                "site": "head_out_by_position",
                "top": 500,
                "detail": "detailed",
            },
        ),
        (
            "evaluate_circuit",
            {"task": INDUCTION_TASK, "nodes": ["a0.h2", "a1.h1"], "detail": "detailed"},
        ),
        (
            "run_with_cache",
            {
                "prompt": [0, 1, 2, 3],
                "sites": ["resid_pre", "head_out", "q", "k", "v"],
                "top": 100,
                "detail": "detailed",
            },
        ),
    ):
        assert (
            len(json.dumps(await call_tool_ok(client, name, model_id="induction", **arguments)))
            <= 40_000
        )


def test_numbers_for_reading() -> None:
    assert round_number(0.123456789) == 0.12346
    assert round_number(float("nan")) is None
    assert round_numbers({"a": [1.0, float("inf")], "b": True}) == {"a": [1.0, None], "b": True}
