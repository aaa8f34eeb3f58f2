"""A local Messages API that plays a script of tool calls.

It stands in for a model, and keeps what the client sends: what a model would be shown.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = tuple[str, Callable[[list[dict[str, Any]]], dict[str, Any]]]
"""The name of a tool, and its arguments as a function of the results so far."""


class Script:
    """The tool calls to play, and the results that came back.

    Attributes:
        steps: the tool calls.
        results: the tool_result blocks that the client sent, in order.
        tools: the names of the tools that the client offered.
        system: the system prompts and first messages that the client sent.
        failure: why the script could not continue; empty if nothing failed.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)
        self.results: list[dict[str, Any]] = []
        self.tools: set[str] = set()
        self.system = ""
        self.failure = ""
        self._lock = threading.Lock()

    def reply(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the content of the next message."""
        with self._lock:
            self.tools |= {tool["name"] for tool in request.get("tools", []) if "name" in tool}
            self.system += json.dumps(request.get("system", "")) + json.dumps(
                request["messages"][:2]
            )
            blocks = [
                block
                for message in request["messages"]
                for block in message["content"]
                if isinstance(block, dict)
            ]
            results = [block for block in blocks if block.get("type") == "tool_result"]
            if not request.get("tools"):  # a side question, for example for a title
                return [{"type": "text", "text": "ok"}]
            self.results = results
            done = len(results)
            if done >= len(self.steps):
                return [{"type": "text", "text": "done"}]
            name, arguments = self.steps[done]
            try:
                call_arguments = arguments(results)
            except (ValueError, LookupError, StopIteration):
                self.failure = f"{name} cannot be called after {results[-1]}"
                return [{"type": "text", "text": self.failure}]
            return [
                {
                    "type": "tool_use",
                    "id": f"toolu_{done:04d}",
                    "name": f"mcp__circuit-scout__{name}",
                    "input": call_arguments,
                }
            ]


def events(content: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return a message as the stream of events that the client reads."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    usage = {"input_tokens": 1, "output_tokens": 1}
    yield "message_start", {"type": "message_start", "message": {**message, "usage": usage}}
    for index, block in enumerate(content):
        start = {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}
        delta = (
            {"type": "text_delta", "text": block["text"]}
            if block["type"] == "text"
            else {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        )
        yield (
            "content_block_start",
            {"type": "content_block_start", "index": index, "content_block": start},
        )
        yield "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": index}
    reason = "tool_use" if content[-1]["type"] == "tool_use" else "end_turn"
    yield (
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": 1},
        },
    )
    yield "message_stop", {"type": "message_stop"}


@contextmanager
def serve_script(script: Script) -> Iterator[str]:
    """Serve the script on this machine, and yield its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            if "count_tokens" in self.path:
                return self.answer("application/json", b'{"input_tokens": 1}')
            if "/v1/messages" not in self.path:
                return self.answer("application/json", b"{}")
            stream = "".join(
                f"event: {name}\ndata: {json.dumps(data)}\n\n"
                for name, data in events(script.reply(body))
            )
            return self.answer("text/event-stream", stream.encode())

        def do_GET(self) -> None:
            self.answer("application/json", b"{}")

        def answer(self, kind: str, content: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
