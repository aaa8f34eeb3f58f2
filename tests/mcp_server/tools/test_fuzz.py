"""Hostile calls: nothing crashes, hangs or leaks, and the server still answers.

Hypothesis draws arguments from each tool's own schema and then spoils some: wrong types, huge
numbers, NaN, strange text, paths that lead out of the allowed directories, handles that were never
given, and arguments that do not exist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
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

import mcp_server
from mcp_server.session import ServerSettings
from mcp_server.tools.registry import build_tools
from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_ok,
    make_server,
    write_huge_model,
)

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
MODELS = ("induction", "huge")
LEAKS = (
    "Traceback",
    "site-packages",
    sys.prefix,
    str(Path(mcp_server.__file__).parents[1]),
    "root:x:0",
    'File "',
    "Internal error",
    str(Path.home()) + "/",
)
TOOLS = [tool for tool in build_tools(ServerSettings()) if tool.name != "unload_model"]

Ask = Callable[[str, dict[str, Any]], tuple[bool, str]]


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Draw values that the schema of a property roughly allows."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([values_of(part) for part in schema["anyOf"]])
    minimum = schema.get("minimum", -5)
    maximum = max(minimum, min(schema.get("maximum", 40), 40))
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "integer": st.integers(minimum, maximum),
        "number": st.floats(0, 2),
        "boolean": st.booleans(),
        "string": st.text(max_size=20),
        "array": st.lists(st.sampled_from(["a0.h2", "a1.h1", "q", "resid_pre", 1, -1]), max_size=4),
    }
    return kinds.get(str(schema.get("type")), st.none())


def arguments_of(tool: Tool) -> st.SearchStrategy[dict[str, Any]]:
    """Draw arguments of which most are right and some are hostile."""
    fields = tool.parameters["properties"]
    allowed = {
        name: st.just(SAFE[name]) if name in SAFE else values_of(schema)
        for name, schema in fields.items()
    }
    if "model" in fields:
        allowed["model"] = st.sampled_from(MODELS)
    spoilt = st.dictionaries(
        st.sampled_from([*fields, "haed", "", "__class__", "self", "context", "behaviour_answer"]),
        HOSTILE,
        max_size=2,
    )
    base = st.fixed_dictionaries(
        {name: allowed[name] for name in fields if name in SAFE},
        optional={name: allowed[name] for name in fields if name not in SAFE},
    )
    return st.builds(lambda arguments, hostile: {**arguments, **hostile}, base, spoilt)


CALLS = st.sampled_from(TOOLS).flatmap(
    lambda tool: st.tuples(st.just(tool.name), arguments_of(tool))
)


@pytest.fixture
def linked(models: Path, tmp_path: Path) -> Path:
    """A models directory behind a symbolic link, with a model that is too large to fit."""
    target = tmp_path / "models-of-the-fuzz-test"
    target.mkdir()
    shutil.copytree(models / "induction", target / "induction")
    write_huge_model(target / "huge")
    link = tmp_path / "linked-models"
    link.symlink_to(target, target_is_directory=True)
    return link


@pytest.fixture
def ask(linked: Path, runs_dir: Path) -> Iterator[Ask]:
    """Call a tool of one server; the answer is whether it is an error, and all of its text."""
    server = make_server(linked, runs_dir, images="omit", is_local=False)

    async def call(client: Client, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        with anyio.fail_after(100):
            result = await client.call_tool(name, arguments)
        text = "\n".join(block.text for block in result.content if block.type == "text")
        assert len(text) <= 45_000
        facts = json.dumps(result.structured_content, allow_nan=False, ensure_ascii=False)
        return bool(result.is_error), f"{text}\n{facts}"

    with start_blocking_portal("asyncio") as portal:
        with portal.wrap_async_context_manager(Client(server)) as client:

            def call_and_wait(name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
                return portal.call(call, client, name, arguments)

            is_error, _ = call_and_wait("load_model", {"model": "induction"})
            assert not is_error
            yield call_and_wait
            is_error, text = call_and_wait(
                "check_task", {"model_id": "induction", "task": INDUCTION_TASK}
            )
            assert not is_error, text  # the server still answers
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
    def call_spoilt(drawn: tuple[str, dict[str, Any]]) -> None:
        name, arguments = drawn
        arguments = make_cheap(name, arguments)
        _, text = ask(name, arguments)
        assert not [leak for leak in leaks if leak in text], (name, text[:1000])
        assert find_existing_paths(text, str(arguments)) == [], (name, text[:1000])

    call_spoilt()


def find_existing_paths(text: str, given: str) -> list[str]:
    """Return the paths of this machine in a text, except for those that the call itself gave."""
    paths = re.findall(r"/[\w.@-]+(?:/[\w.@-]+)+", text)
    return [path for path in paths if Path(path).exists() and path not in given]


def make_cheap(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Keep a call from the hub, and from work that takes minutes."""
    model = arguments.get("model")
    sae = arguments.get("sae")
    if name == "load_model" and model not in MODELS:
        is_path = isinstance(model, str) and "/" in model and model.count("/") != 1
        return {**arguments, "model": model if is_path else "induction"}
    if name == "sae_top_features" and isinstance(sae, str) and sae.count("/") == 1:
        return {**arguments, "sae": "../x"}
    if name == "train_sae":
        return {**arguments, "wait_seconds": 0, "dry_run": True}
    if name == "discover_circuit":
        budget = arguments.get("budget", -1) if "run_id" in arguments else -1
        return {**arguments, "wait_seconds": 0, "budget": budget}
    return arguments


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
    with pytest.raises(MCPError) as error:
        await client.read_resource(uri)
    assert not any(leak in str(error.value) for leak in LEAKS)


@pytest.mark.anyio
async def test_a_successful_result_shows_no_path(linked: Path, runs_dir: Path) -> None:
    server = make_server(linked, runs_dir, is_local=False)
    async with Client(server) as client:
        result = await call_tool_ok(client, "load_model", model="huge", load=False)
    assert "does not fit" in result["warnings"][0]
    assert "huge" in result["warnings"][0]
    assert find_existing_paths(json.dumps(result), "") == []


@pytest.mark.anyio
async def test_a_name_that_is_not_utf8_can_be_sent(linked: Path, runs_dir: Path) -> None:
    """JSON carries no lone surrogate, as which Python reads such a byte."""
    shutil.copytree(linked / "induction", linked / os.fsdecode(b"caf\xe9"))
    async with Client(make_server(linked, runs_dir)) as client:
        result = await call_tool_ok(client, "list_models")
    assert "caf?" in json.dumps(result)
