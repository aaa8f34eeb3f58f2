"""What the user is asked before a discovery (behaviour, pairs, budget), and when not to ask."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mcp import Client
from mcp.client.session import ClientRequestContext
from mcp.server.mcpserver import Elicit
from mcp.types import ClientCapabilities, ElicitRequestParams, ElicitResult

from discovery.store import open_run
from mcp_server.tools.circuits.elicitation import ask_behaviour
from tests.mcp_server.servers import (
    ERAS,
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
    make_server,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("era", ERAS)
async def test_the_user_is_asked_where_the_client_can(
    era: str, models: Path, runs_dir: Path
) -> None:
    questions: list[str] = []

    async def answer(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        if "Which behaviour" in params.message:
            return ElicitResult(action="accept", content={"task": "induction"})
        return ElicitResult(action="accept", content={"raise_budget": True})

    async with Client(
        make_server(models, runs_dir), mode=era, elicitation_callback=answer
    ) as client:
        await call_tool_ok(client, "load_model", model="induction")
        # The model has no tokenizer. The error shows that the answer, a built-in task, was used.
        assert "no tokenizer" in await call_tool_error(
            client, "discover_circuit", model_id="induction"
        )
        assert "Which behaviour" in questions[-1]
        result = await call_tool_ok(
            client,
            "discover_circuit",
            model_id="induction",
            task=INDUCTION_TASK,
            budget=10,
            wait_seconds=200,
        )
        assert "Raise the budget" in questions[-1]
        assert result["verdict"] == "verified"
        assert "was raised to" in result["notes"][0]
        granted = open_run(runs_dir, result["run_id"]).record.configuration["budget"]
        assert f"Raise the budget to {granted:,.0f}?" in questions[-1]
        assert result["cost"]["forward_equivalents"] <= granted


async def test_pairs_are_settled_before_the_budget_and_nobody_is_asked_about_what_cannot_be(
    models: Path, runs_dir: Path
) -> None:
    questions: list[str] = []

    async def answer(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        return ElicitResult(
            action="accept",
            content={"task": "induction", "use_enough": True, "raise_budget": False},
        )

    async with Client(make_server(models, runs_dir), elicitation_callback=answer) as client:
        assert "No model is loaded" in await call_tool_error(
            client, "discover_circuit", model_id="nope", task="ioi", pairs=20
        )
        assert "needs model_id" in await call_tool_error(
            client, "discover_circuit", wait_seconds=0.2
        )
        assert questions == []
        await call_tool_ok(client, "load_model", model="bundled")
        started = await call_tool_ok(
            client, "discover_circuit", model_id="bundled", pairs=20, budget=500, wait_seconds=0
        )
        await call_tool_ok(client, "cancel_run", run_id=started["run_id"])
        second = await call_tool_ok(
            client,
            "discover_circuit",
            model_id="bundled",
            task="induction",
            budget=500,
            wait_seconds=0,
        )
        await call_tool_ok(client, "cancel_run", run_id=second["run_id"])
    assert [question.split()[0] for question in questions] == ["Which", "20", "This", "This"]
    assert questions[2] == questions[3]  # the estimate is for the 240 pairs that the user agreed to
    assert open_run(runs_dir, started["run_id"]).record.configuration["budget"] == 500


def test_a_client_that_asks_by_url_only_is_not_asked() -> None:
    class Here:
        """A call of a client with these abilities."""

        def __init__(self, **abilities: Any) -> None:
            self.client_capabilities = ClientCapabilities.model_validate({"elicitation": abilities})
            self.request_context = SimpleNamespace(
                lifespan_context=SimpleNamespace(
                    models=SimpleNamespace(is_loaded=lambda name: True)
                )
            )

    for abilities, asks in (
        ({}, True),
        ({"form": {}}, True),
        ({"url": {}}, False),
        ({"form": {}, "url": {}}, True),
    ):
        result = ask_behaviour(Here(**abilities), "induction", None, None)
        assert isinstance(result, Elicit) is asks, abilities


@pytest.mark.parametrize("agrees", [True, False])
async def test_too_few_pairs_for_a_verdict_are_asked_about(
    agrees: bool, models: Path, runs_dir: Path
) -> None:
    questions: list[str] = []

    async def answer(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        return (
            ElicitResult(action="accept", content={"use_enough": True})
            if agrees
            else ElicitResult(action="decline")
        )

    async with Client(make_server(models, runs_dir), elicitation_callback=answer) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        started = await call_tool_ok(
            client,
            "discover_circuit",
            model_id="bundled",
            task="induction",
            pairs=20,
            wait_seconds=0,
        )
        await call_tool_ok(client, "cancel_run", run_id=started["run_id"])
    assert questions == ["20 pairs are too few for a verdict, which needs 96. Take 240?"]
    pairs = open_run(runs_dir, started["run_id"]).load_pairs()
    of_splits = [pair for pair in pairs if pair.get("use") != "reference"]
    assert len(of_splits) == (240 if agrees else 20)
    assert ("as the user agreed" if agrees else "fewer than the 96") in started["notes"][0]


@pytest.mark.slow
async def test_a_refusal_keeps_the_budget(models: Path, runs_dir: Path) -> None:
    async def decline(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="decline")

    for callback in (decline, None):  # a client that cannot ask goes on likewise
        async with Client(make_server(models, runs_dir), elicitation_callback=callback) as client:
            await call_tool_ok(client, "load_model", model="induction")
            result = await call_tool_ok(
                client,
                "discover_circuit",
                model_id="induction",
                task=INDUCTION_TASK,
                budget=10,
                wait_seconds=200,
            )
            assert (result["status"], result["verdict"]) == ("completed", "inconclusive")
