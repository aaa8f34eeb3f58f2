"""A server that answers as NDIF does, for one model: a script that cannot import this project.

    python ndif_server.py MODEL_DIRECTORY REPO_ID API_KEY

It writes its port to standard output. It follows the request schema of the installed nnsight, and
NDIF's own description of its HTTP interface:

- `/subscribe` gives a session id over a websocket and forwards statuses.
- `/request` takes the envelope and the serialised session, which is run on the model in this
  process. Small results are sent on the websocket, large ones by address.

Two addresses are for the tests: `/received` returns what the server was sent, and `/next` takes how
the next request shall end.
"""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import hashlib
import io
import json
import queue
import struct
import sys
import threading
import traceback
import uuid
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What is sent must run without this project: importing it raises ModuleNotFoundError.
for name in ("discovery", "mcp_server", "tests"):
    sys.modules[name] = None

import torch  # noqa: E402
import zstandard  # noqa: E402
from nnsight.modeling.transformers import TransformersModel  # noqa: E402
from nnsight.schema.request import RequestModel  # noqa: E402
from nnsight.schema.response import ResponseModel, Status  # noqa: E402
from nnsight.tracing.tracer import _saves, dec, inc  # noqa: E402

LARGE = 100_000  # bytes of a result that goes by address
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
QUEUE = (
    (Status.QUEUED, "Your job is in position 2."),
    (Status.QUEUED, "Your job is in position 1."),
    (Status.DISPATCHED, ""),
    (Status.RUNNING, ""),
)


class FakeNdif(ThreadingHTTPServer):
    """The server, its sessions, and what it has received."""

    daemon_threads = True

    def __init__(self, directory: str, repo_id: str, key: str) -> None:
        super().__init__(("127.0.0.1", 0), FakeNdifHandler)
        self.model = TransformersModel(
            directory, task="text-generation", dispatch=True, dtype=torch.float32
        )
        self.repo_id = repo_id
        self.key = key
        self.sessions: dict[str, queue.Queue] = defaultdict(queue.Queue)
        self.results: dict[str, bytes] = {}
        self.received: list[dict] = []
        self.next_ends: list[str] = []

    def compute(self, payload: bytes, envelope: RequestModel) -> bytes:
        """Run a request, and return what it saved."""
        self.model._remoteable_set_env(envelope.env)
        tracer = RequestModel.deserialize(
            payload, self.model._remoteable_persistent_objects(), envelope.compress
        )
        inc()
        try:
            with torch.no_grad():
                tracer.execute(tracer.info.code)
            saved = {
                name: value
                for name, value in tracer.info.frame.f_locals.items()
                if id(value) in _saves()
            }
        finally:
            dec()
        file = io.BytesIO()
        torch.save(saved, file)
        if envelope.compress:
            return zstandard.ZstdCompressor().compress(file.getvalue())
        return file.getvalue()

    def without_activations(self, result: bytes) -> bytes:
        """Remove the activations from a result."""
        content = zstandard.ZstdDecompressor().decompress(result)
        saved = torch.load(io.BytesIO(content), weights_only=False)
        for answer in saved["answers"]:
            answer.update(seen={})
        file = io.BytesIO()
        torch.save(saved, file)
        return zstandard.ZstdCompressor().compress(file.getvalue())

    def serve_job(self, job: str, payload: bytes, envelope: RequestModel) -> None:
        """Run a job, and put each of its statuses into its session."""
        send = self.sessions[envelope.session_id].put
        end = self.next_ends.pop(0) if self.next_ends else ""
        for status, text in QUEUE:
            send(ResponseModel(id=job, status=status, description=text).model_dump_json())
            if end == "wait" and status is Status.QUEUED:
                return  # and nothing more comes
        try:
            if end == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            if end == "late":
                send(
                    ResponseModel(
                        id=job,
                        status=Status.ERROR,
                        description="Your job exceeded the execution timeout of 60s.",
                    ).model_dump_json()
                )
                return
            if end == "close":
                send(None)
                return
            if end == "nothing":
                send(ResponseModel(id=job, status=Status.COMPLETED).model_dump_json())
                return
            result = self.compute(payload, envelope)
            result = {
                "garbage": b"garbage",
                "half": result[: len(result) // 2],
                "lacking": self.without_activations(result),
            }.get(end, result)
        except Exception:  # noqa: BLE001  # a server reports every exception to its client
            send(
                ResponseModel(
                    id=job, status=Status.ERROR, description=traceback.format_exc()
                ).model_dump_json()
            )
            return
        if len(result) > LARGE:
            self.results[job] = result
            address = f"http://127.0.0.1:{self.server_port}/result/{job}"
            send(ResponseModel(id=job, status=Status.COMPLETED, data=address).model_dump_json())
        else:
            send(ResponseModel(id=job, status=Status.COMPLETED, data=result).pickle())


def describe_received(job: str) -> dict:
    return ResponseModel(
        id=job, status=Status.RECEIVED, description="Your job has been received."
    ).model_dump(mode="json")


class FakeNdifHandler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: FakeNdif

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/subscribe":
            return self.subscribe()
        if self.path == "/status":
            running = {
                "repo_id": self.server.repo_id,
                "application_state": "RUNNING",
                "deployment_level": "HOT",
            }
            return self.answer(
                200,
                {
                    "deployments": {
                        "a": running,
                        "b": {"repo_id": "other/asleep", "application_state": "DEPLOYING"},
                    }
                },
            )
        if self.path == "/received":
            return self.answer(200, self.server.received)
        if self.path.startswith("/result/"):
            return self.answer(200, self.server.results.pop(self.path.rpartition("/")[2]))
        return self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/next":
            self.server.next_ends.append(body.decode())
            return self.answer(200, {})
        message = email.message_from_bytes(
            b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body,
            policy=email.policy.HTTP,
        )
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in message.iter_parts()
        }
        envelope = RequestModel.model_validate_json(parts["data"])
        headers = {name.lower(): value for name, value in self.headers.items()}
        blob = parts["blob"]
        plain = zstandard.ZstdDecompressor().decompress(blob) if envelope.compress else blob
        self.server.received.append(
            {
                "key": headers.get("ndif-api-key"),
                "nnsight": headers.get("nnsight-version"),
                "model_key": envelope.model_key,
                "env": envelope.env,
                "bytes": len(blob),
                "key_inside": str(headers.get("ndif-api-key")).encode() in plain,
            }
        )
        if headers.get("ndif-api-key") != self.server.key:
            detail = (
                f"Invalid API key format: '{headers.get('ndif-api-key')}'."
                if headers.get("ndif-api-key")
                else "Missing or invalid API key."
            )
            return self.answer(401, {"detail": detail})
        if self.server.next_ends[:1] == ["busy"]:
            self.server.next_ends.pop(0)
            return self.answer(503, {"detail": "Too many requests are waiting."})
        job = uuid.uuid4().hex
        if json.loads(envelope.model_key.partition(":")[2])["repo_id"] != self.server.repo_id:
            refused = ResponseModel(
                id=job,
                status=Status.ERROR,
                description="Could not deploy this model. CANT_ACCOMMODATE.",
            )
            self.server.sessions[envelope.session_id].put(refused.model_dump_json())
            return self.answer(200, describe_received(job))
        self.answer(200, describe_received(job))
        return self.server.serve_job(job, blob, envelope)

    def answer(self, code: int, content: object) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def subscribe(self) -> None:
        """The server's side of a websocket, on which it only sends."""
        accept = base64.b64encode(
            hashlib.sha1((self.headers["Sec-WebSocket-Key"] + GUID).encode()).digest()
        )
        self.send_response(101)
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept.decode()),
        ):
            self.send_header(name, value)
        self.end_headers()
        session = uuid.uuid4().hex
        self.frame(json.dumps({"session_id": session}))
        self.close_connection = True
        threading.Thread(target=self.hang_up, args=(session,), daemon=True).start()
        while (message := self.server.sessions[session].get()) is not None:
            try:
                self.frame(message)
            except OSError:
                return  # the client has gone
        with contextlib.suppress(OSError):
            self.wfile.write(b"\x88\x00")

    def hang_up(self, session: str) -> None:
        """End a session when the client closes the connection."""
        with contextlib.suppress(OSError, ValueError):
            self.rfile.read(1)
        self.server.sessions[session].put(None)

    def frame(self, message: str | bytes) -> None:
        data = message.encode() if isinstance(message, str) else message
        size = bytes([len(data)]) if len(data) < 126 else struct.pack(">BQ", 127, len(data))
        self.wfile.write((b"\x81" if isinstance(message, str) else b"\x82") + size + data)
        self.wfile.flush()


if __name__ == "__main__":
    server = FakeNdif(*sys.argv[1:])
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
