"""A server that answers as NDIF does, for one model: a script, run where this project cannot be imported.

    python ndif_server.py MODEL_DIRECTORY REPO_ID API_KEY

It writes its port to standard output. From the request schema of the installed nnsight and NDIF's own description of its HTTP interface:
`/subscribe` hands out a session id over a websocket and forwards statuses, `/request` takes the envelope and the serialised session,
which is run against the model in this process. Small results come on the websocket, large ones by address. `/told` is what it was sent;
`/next` says how the next request is to end.
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

for name in ("discovery", "mcp_server", "tests"):
    sys.modules[name] = (
        None  # what is sent must run without them: an import raises ModuleNotFoundError
    )

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
    daemon_threads = True

    def __init__(self, directory: str, repo_id: str, key: str) -> None:
        super().__init__(("127.0.0.1", 0), FakeNdifHandler)
        self.model = TransformersModel(
            directory, task="text-generation", dispatch=True, dtype=torch.float32
        )
        self.repo_id, self.key = repo_id, key
        self.sessions: dict[str, queue.Queue] = defaultdict(queue.Queue)
        self.results: dict[str, bytes] = {}
        self.told: list[dict] = []
        self.next: list[str] = []

    def compute(self, payload: bytes, envelope: RequestModel) -> bytes:
        """What the request saved."""
        self.model._remoteable_set_env(envelope.env)
        tracer = RequestModel.deserialize(
            payload, self.model._remoteable_persistent_objects(), envelope.compress
        )
        inc()
        try:
            with torch.no_grad():
                tracer.execute(tracer.info.code)
            kept = {
                name: value
                for name, value in tracer.info.frame.f_locals.items()
                if id(value) in _saves()
            }
        finally:
            dec()
        file = io.BytesIO()
        torch.save(kept, file)
        return (
            zstandard.ZstdCompressor().compress(file.getvalue())
            if envelope.compress
            else file.getvalue()
        )

    def without_activations(self, result: bytes) -> bytes:
        """The same without what was seen."""
        kept = torch.load(
            io.BytesIO(zstandard.ZstdDecompressor().decompress(result)), weights_only=False
        )
        for one in kept["answers"]:
            one.update(seen={})
        file = io.BytesIO()
        torch.save(kept, file)
        return zstandard.ZstdCompressor().compress(file.getvalue())

    def serve_job(self, job: str, payload: bytes, envelope: RequestModel) -> None:
        """Every status of a job, onto its session."""
        tell = self.sessions[envelope.session_id].put
        how = self.next.pop(0) if self.next else ""
        for status, text in QUEUE:
            tell(ResponseModel(id=job, status=status, description=text).model_dump_json())
            if how == "wait" and status is Status.QUEUED:
                return  # and nothing more is heard of it
        try:
            if how == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            if how == "late":
                tell(
                    ResponseModel(
                        id=job,
                        status=Status.ERROR,
                        description="Your job exceeded the execution timeout of 60s.",
                    ).model_dump_json()
                )
                return
            if how == "close":
                tell(None)
                return
            if how == "nothing":
                tell(ResponseModel(id=job, status=Status.COMPLETED).model_dump_json())
                return
            result = self.compute(payload, envelope)
            result = {
                "garbage": b"garbage",
                "half": result[: len(result) // 2],
                "lacking": self.without_activations(result),
            }.get(how, result)
        except Exception:  # noqa: BLE001  # a server tells its client of every one
            tell(
                ResponseModel(
                    id=job, status=Status.ERROR, description=traceback.format_exc()
                ).model_dump_json()
            )
            return
        if len(result) > LARGE:
            self.results[job] = result
            where = f"http://127.0.0.1:{self.server_port}/result/{job}"
            tell(ResponseModel(id=job, status=Status.COMPLETED, data=where).model_dump_json())
        else:
            tell(ResponseModel(id=job, status=Status.COMPLETED, data=result).pickle())


def received(job: str) -> dict:
    return ResponseModel(
        id=job, status=Status.RECEIVED, description="Your job has been received."
    ).model_dump(mode="json")


class FakeNdifHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeNdif

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/subscribe":
            return self.subscribe()
        if self.path == "/status":
            one = {
                "repo_id": self.server.repo_id,
                "application_state": "RUNNING",
                "deployment_level": "HOT",
            }
            return self.answer(
                200,
                {
                    "deployments": {
                        "a": one,
                        "b": {"repo_id": "other/asleep", "application_state": "DEPLOYING"},
                    }
                },
            )
        if self.path == "/told":
            return self.answer(200, self.server.told)
        if self.path.startswith("/result/"):
            return self.answer(200, self.server.results.pop(self.path.rpartition("/")[2]))
        return self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/next":
            self.server.next.append(body.decode())
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
        given = {name.lower(): value for name, value in self.headers.items()}
        blob = parts["blob"]
        plain = zstandard.ZstdDecompressor().decompress(blob) if envelope.compress else blob
        self.server.told.append(
            {
                "key": given.get("ndif-api-key"),
                "nnsight": given.get("nnsight-version"),
                "model_key": envelope.model_key,
                "env": envelope.env,
                "bytes": len(blob),
                "key_inside": str(given.get("ndif-api-key")).encode() in plain,
            }
        )
        if given.get("ndif-api-key") != self.server.key:
            detail = (
                f"Invalid API key format: '{given.get('ndif-api-key')}'."
                if given.get("ndif-api-key")
                else "Missing or invalid API key."
            )
            return self.answer(401, {"detail": detail})
        if self.server.next[:1] == ["busy"]:
            self.server.next.pop(0)
            return self.answer(503, {"detail": "Too many requests are waiting."})
        job = uuid.uuid4().hex
        if json.loads(envelope.model_key.partition(":")[2])["repo_id"] != self.server.repo_id:
            refused = ResponseModel(
                id=job,
                status=Status.ERROR,
                description="Could not deploy this model. CANT_ACCOMMODATE.",
            )
            self.server.sessions[envelope.session_id].put(refused.model_dump_json())
            return self.answer(200, received(job))
        self.answer(200, received(job))
        return self.server.serve_job(job, blob, envelope)

    def answer(self, code: int, content: object) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def subscribe(self) -> None:
        """The server's half of a websocket, which here only ever speaks."""
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
        """All that a client says is that it goes."""
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
