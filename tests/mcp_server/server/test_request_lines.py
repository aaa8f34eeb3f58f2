"""Each line that the SDK would drop in silence is answered, with its id if that can be read."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from mcp.types import INVALID_REQUEST, PARSE_ERROR

from mcp_server.server.request_lines import find_problem, find_request_ids
from tests.mcp_server.servers import HELLO, server_environment


def call_with(value: str, request_id: str = "7") -> str:
    """Return a request line with this text as the value of an argument."""
    return (
        f'{{"jsonrpc": "2.0", "id": {request_id}, "method": "tools/call", "params": '
        f'{{"name": "list_models", "arguments": {{"id": 99, "x": {value}}}}}}}'
    )


SURROGATE = '"\\ud800"'
UNREADABLE = {  # the line, the error code, and the ids of the answers
    "lone surrogate": (call_with(SURROGATE), PARSE_ERROR, [7]),
    "raw NUL": (call_with('"a\0b"'), PARSE_ERROR, [7]),
    "deep nesting": (call_with("[" * 3000 + "]" * 3000), PARSE_ERROR, [7]),
    "long integer": (call_with("9" * 10_000), PARSE_ERROR, [7]),
    "a text id": (call_with('"\\udfff"', '"one \\"two\\""'), PARSE_ERROR, ['one "two"']),
    "id after the fault": ('{"params": {"x": "\0", "id": 1}, "id": 8}', PARSE_ERROR, [8]),
    "cut off": ('{"jsonrpc": "2.0", "id": 9, "method": "to', PARSE_ERROR, [9]),
    "no JSON": ("hello", PARSE_ERROR, [None]),
    "an id in a nested value only": ('{"params": {"id": 5, "x": "\0"}}', PARSE_ERROR, [None]),
    "a long id": (f'{{"jsonrpc": "2.0", "id": {"9" * 5000}, "method": "x"}}', PARSE_ERROR, [None]),
    "batch": (f"[{call_with('1', '3')}, {call_with('2', '4')}]", INVALID_REQUEST, [3, 4]),
    "batch with a surrogate": (f"[{call_with(SURROGATE)}]", PARSE_ERROR, [7]),
    "empty batch": ("[]", INVALID_REQUEST, [None]),
    "a number": ("12", INVALID_REQUEST, [None]),
    "no version": ('{"id": 5, "method": "ping"}', INVALID_REQUEST, [5]),
    "a list of params": (
        '{"jsonrpc": "2.0", "id": 5, "method": "x", "params": [1]}',
        INVALID_REQUEST,
        [5],
    ),
    "null id": ('{"jsonrpc": "2.0", "id": null, "method": "ping"}', INVALID_REQUEST, [None]),
    "a fraction as id": ('{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', INVALID_REQUEST, [1.5]),
    "a damaged response": ('{"jsonrpc": "2.0", "id": 6, "result": "\\ud800"}', PARSE_ERROR, [None]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_line_has_an_answer(name: str) -> None:
    line, code, ids = UNREADABLE[name]
    problem = find_problem(line)
    assert problem is not None
    assert problem.code == code
    assert find_request_ids(line) == ids


@pytest.mark.parametrize(
    "line",
    [
        call_with("1"),
        call_with('"\\ud83d\\ude00"'),  # a surrogate pair is a character
        '{"jsonrpc": "2.0", "method": "notifications/initialized", "params": {"id": 1}}',
        '{"jsonrpc": "2.0", "id": 1, "result": {}}',
        '{"jsonrpc": "2.0", "id": 1, "method": "ping"}\r\n',
    ],
)
def test_a_message_passes(line: str) -> None:
    assert find_problem(line) is None


def test_the_server_answers_every_line_and_goes_on(models: Path, runs_dir: Path) -> None:
    words = [sys.executable, "-m", "mcp_server", "serve", "--models-dir", str(models)]
    process = subprocess.Popen(
        words, env=server_environment(runs_dir), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    watchdog = threading.Timer(120, process.kill)  # a request without an answer ends the test
    watchdog.start()
    try:
        assert process.stdin
        assert process.stdout
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        lines = [json.dumps(hello), *(line for line, _, _ in UNREADABLE.values()), ""]
        ping = '{"jsonrpc": "2.0", "id": "last", "method": "ping"}'
        process.stdin.write("\n".join([*lines, ping, ""]).encode("utf-8"))
        process.stdin.flush()
        answers: list[dict[str, Any]] = []
        while not answers or answers[-1]["id"] != "last":
            answers.append(json.loads(process.stdout.readline()))
        _, log = process.communicate()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait(20)
    errors = [(answer["id"], answer["error"]["code"]) for answer in answers if "error" in answer]
    expected = [(number, code) for _, code, ids in UNREADABLE.values() for number in ids]
    assert sorted(errors, key=str) == sorted(expected, key=str)
    assert answers[-1]["result"] == {}
    assert log.count(b"WARNING") == len(UNREADABLE)
