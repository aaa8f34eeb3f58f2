"""Calls that no schema foresaw: nothing crashes, hangs or leaks, and the server still answers.

Hypothesis draws arguments from each tool's own schema and spoils them: wrong types, huge numbers, NaN, strange text, paths that lead out,
handles that nobody gave, arguments that do not exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import Client
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError

from mcp_server.session import ServerSettings
from mcp_server.tools.registry import build_tools
from tests.mcp_server.servers import INDUCTION_TASK, make_server

PATHS = [
    "../../../etc/passwd",
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "file:///etc/passwd",
    "%2e%2e%2f",
    "scout://runs/../x",
    "\0",
    ".",
    "induction/../..",
]
WORDS = [
    "a9.h6",
    "L0H0",
    "m0",
    "${HOME}",
    "$(id)",
    "'; DROP TABLE runs; --",
    "<script>",
    "nan",
    "null",
    "[]",
    "{}",
    '[{"clean": "a"}]',
    "x" * 50_000,
]
NUMBERS = [0, -1, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), -float("inf")]
PAIR = {"clean": [0, 1], "corrupted": [0, 2], "answer": 1, "wrong": 2}
HOSTILE = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            *PATHS,
            *WORDS,
            *NUMBERS,
            [],
            {},
            [[]],
            [None],
            ["a0.h0"] * 3000,
            [PAIR],
            [{**PAIR, "labels": {"k": 10**9}}],
        ]
    ),
    st.text(max_size=50),
    st.integers(),
    st.floats(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.fixed_dictionaries(
        {},
        optional={
            name: st.integers() | st.text(max_size=9) | st.lists(st.integers()) for name in PAIR
        },
    ).map(lambda pair: [pair]),
)
SAFE = {
    "model_id": "induction",
    "task": INDUCTION_TASK,
    "nodes": ["a0.h2"],
    "prompt": [0, 1, 2],
    "model": "induction",
    "run_id": "nobody",
    "pairs": 2,
}
LEAKS = (
    "Traceback",
    "site-packages",
    "root:x:0",
    'File "',
    "Internal error",
    str(Path.home()) + "/",
)
TOOLS = [tool for tool in build_tools(ServerSettings()) if tool.name != "unload_model"]

Ask = Callable[[str, dict[str, Any]], tuple[bool, str]]


def drawn_from(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a property's schema allows, roughly."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([drawn_from(part) for part in schema["anyOf"]])
    least = schema.get("minimum", -5)
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "integer": st.integers(least, max(least, min(schema.get("maximum", 40), 40))),
        "number": st.floats(0, 2),
        "boolean": st.booleans(),
        "string": st.text(max_size=20),
        "array": st.lists(st.sampled_from(["a0.h2", "a1.h1", "q", "resid_pre", 1, -1]), max_size=4),
    }
    return kinds.get(str(schema.get("type")), st.none())


def arguments_of(tool: Tool) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of which most are right and some are anything but."""
    fields = tool.parameters["properties"]
    right = {
        name: st.just(SAFE[name]) if name in SAFE else drawn_from(schema)
        for name, schema in fields.items()
    }
    spoilt = st.dictionaries(
        st.sampled_from([*fields, "haed", "", "__class__", "self", "call", "asked"]),
        HOSTILE,
        max_size=2,
    )
    base = st.fixed_dictionaries(
        {name: right[name] for name in fields if name in SAFE},
        optional={n: right[n] for n in fields if n not in SAFE},
    )
    return st.builds(lambda one, other: {**one, **other}, base, spoilt)


CALLS = st.sampled_from(TOOLS).flatmap(
    lambda tool: st.tuples(st.just(tool.name), arguments_of(tool))
)


@pytest.fixture
def linked(models: Path, tmp_path: Path) -> Path:
    """The models directory behind a symbolic link."""
    link = tmp_path / "linked-models"
    link.symlink_to(models, target_is_directory=True)
    return link


@pytest.fixture
def ask(linked: Path, runs_dir: Path) -> Iterator[Ask]:
    """Call a tool of one long-lived server; gives whether it is an error, and all that was said."""
    server = make_server(linked, runs_dir, images="omit", local=False)

    async def call(client: Client, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        with anyio.fail_after(100):
            result = await client.call_tool(name, arguments)
        text = "\n".join(block.text for block in result.content if block.type == "text")
        assert len(text) <= 45_000
        facts = json.dumps(result.structured_content, allow_nan=False, ensure_ascii=False)
        return bool(result.is_error), f"{text}\n{facts}"

    with start_blocking_portal("asyncio") as portal:
        with portal.wrap_async_context_manager(Client(server)) as client:

            def asked(name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
                return portal.call(call, client, name, arguments)

            assert not asked("load_model", {"model": "induction"})[0]
            yield asked
            assert not asked("check_task", {"model_id": "induction", "task": INDUCTION_TASK})[
                0
            ]  # it still answers
        server.session.close(20)


def fuzz(ask: Ask, places: tuple[Path, ...], count: int) -> None:
    leaks = (*LEAKS, *{str(form) for place in places for form in (place, place.resolve())})

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(CALLS)
    def one(drawn: tuple[str, dict[str, Any]]) -> None:
        name, arguments = drawn
        if name == "load_model" and arguments.get("model") != "induction":
            model = arguments.get("model")
            arguments = {
                **arguments,
                "model": model
                if isinstance(model, str) and "/" in model and model.count("/") != 1
                else "induction",
            }
        if (
            name == "sae_top_features"
            and isinstance(arguments.get("sae"), str)
            and arguments["sae"].count("/") == 1
        ):
            arguments = {**arguments, "sae": "../x"}  # no name is looked up at the hub
        if name == "train_sae":
            arguments = {**arguments, "wait_seconds": 0, "dry_run": True}
        if name == "discover_circuit":
            arguments = {
                **arguments,
                "wait_seconds": 0,
                "budget": arguments.get("budget", -1) if "run_id" in arguments else -1,
            }
        _, told = ask(name, arguments)
        assert not [leak for leak in leaks if leak in told], (name, told[:1000])

    one()


def test_spoilt_calls(ask: Ask, linked: Path, runs_dir: Path) -> None:
    fuzz(ask, (linked, runs_dir), 300)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ten_thousand_spoilt_calls(ask: Ask, linked: Path, runs_dir: Path) -> None:
    fuzz(ask, (linked, runs_dir), int(os.environ.get("FUZZ_CALLS", "10000")))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "uri",
    [
        "scout://runs/../../etc/passwd",
        "scout://runs/x/figures/..%2f..%2frun.json",
        "scout://results/%00/grid.json",
        "scout://skills/..%2f..%2fpyproject",
        "scout://tasks/" + "x" * 5000,
        "file:///etc/passwd",
    ],
)
async def test_no_resource_leads_out(client: Client, uri: str) -> None:
    with pytest.raises(MCPError) as fault:
        await client.read_resource(uri)
    assert not any(leak in str(fault.value) for leak in LEAKS)
