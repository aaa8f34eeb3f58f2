"""NDIF, the field's shared cluster, through nnsight's remote execution; and nnsight's simulation of it in this process.

A request holds the functions of `backends.shipped` as source, jobs that are plain data, and the model's name. The API key goes into its
header and nowhere else: it is neither recorded nor logged. Each status of a job is told to `backends.waiting`, whose listener may end
the waiting (the server goes on with a job that it has begun; nobody collects it).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from json import JSONDecodeError
from typing import Any, Protocol

import torch
from pydantic import ValidationError

from discovery.backends import shipped
from discovery.backends.nnsight import library
from discovery.backends.waiting import tell
from discovery.errors import ModelError, RemoteError

STATUS_SECONDS = 70.0  # NDIF asks its cluster, for at most 60
OUT_OF_MEMORY = ("OutOfMemoryError", "CUDA out of memory", "not enough memory", "can't allocate memory")
_FAULT = re.compile(r"^(?:[\w.]*\.)?(\w+(?:Error|Exception)): ?(.*)", re.MULTILINE)
_KEY = "Get a key at login.ndif.us and set NDIF_API_KEY, or run `nnsight login` once."


class Service(Protocol):
    """What runs jobs on a model.

    Attributes:
        place: where it computes, as it is recorded; None in this process.
        requests: how many were sent.
    """

    @property
    def place(self) -> str | None: ...
    @property
    def requests(self) -> int: ...

    def run(self, net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What each job found."""


@dataclass
class Ndif:
    """A server that runs NDIF.

    Attributes:
        place: its address.
        model_key: the model's name there.
    """

    place: str
    model_key: str = ""
    requests: int = 0
    _key: str = field(default="", repr=False)

    @classmethod
    def configured(cls) -> Ndif:
        """The server and the key that NDIF_HOST and NDIF_API_KEY name, or else nnsight's own configuration.

        Raises:
            ModelError: where there is no key; nothing has been sent then.
        """
        library()
        from nnsight.schema.config import CONFIG

        host = (os.environ.get("NDIF_HOST") or CONFIG.API.HOST).rstrip("/")
        if not host.startswith(("http://", "https://")):
            raise ModelError(f"NDIF_HOST is {host!r}, which is no address.", "Write it with http:// or https://, or unset it.")
        key = os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY
        if not key:
            raise ModelError("A remote model needs an NDIF API key, and there is none.", _KEY)
        return cls(host, _key=key)

    def running(self) -> list[str] | None:
        """The models that run there now; None where it did not say so in time.

        Raises:
            ModelError: where it does not answer.
        """
        import httpx  # nnsight's own client

        try:
            answer = httpx.get(f"{self.place}/status", timeout=httpx.Timeout(10.0, read=STATUS_SECONDS))
            if answer.status_code == httpx.codes.GATEWAY_TIMEOUT:
                return None
            answer.raise_for_status()
            found = answer.json().get("deployments", {}).values()
            return sorted({str(one.get("repo_id")) for one in found if one.get("application_state") == "RUNNING"})
        except httpx.ReadTimeout:
            return None
        except (httpx.HTTPError, ValueError, AttributeError) as fault:
            raise self._unreachable(fault) from fault

    def run(self, net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send jobs and wait for what they found.

        Raises:
            ModelError: the server cannot be reached, or refuses the request.
            RemoteError: a job failed there.
            torch.OutOfMemoryError: its memory did not suffice.
            Interrupted: from the listener.
        """
        import httpx
        import websocket
        from nnsight.intervention.backends.remote import RemoteBackend
        from nnsight.intervention.backends.remote import RemoteError as Refused

        client = RemoteBackend(self.model_key, host=self.place, api_key=self._key, env={"attn_implementation": "eager"})
        client.display, client.verbose = _Statuses(), False
        self.requests += 1
        try:
            return send(net, jobs, client)
        except Refused as fault:
            raise self._failed(str(fault)) from None
        except (httpx.HTTPError, websocket.WebSocketException, OSError, ValidationError, JSONDecodeError) as fault:
            # the last two: a connection that is closed in good order gives the client an empty message, which it takes for a status
            raise self._unreachable(fault) from fault

    def _unreachable(self, fault: Exception) -> ModelError:
        cause = f"NDIF at {self.place} does not answer ({type(fault).__name__})."
        return ModelError(cause, "Check the connection and NDIF_HOST, and try again later; a run can be resumed.", detail=self._safe(fault))

    def _failed(self, said: str) -> Exception:
        """What a refusal or a failed job means here."""
        said = self._safe(said)
        first = next((line.strip() for line in said.splitlines() if line.strip()), "nothing was said")
        if any(words in said for words in OUT_OF_MEMORY):
            return torch.OutOfMemoryError(f"NDIF ran out of memory: {_last_line(said)}")
        if said.startswith("Failed to send request"):
            why = first.partition(":")[2].strip()
            if "API key" in said:
                return ModelError(f"NDIF at {self.place} refuses the API key.", _KEY, detail=why)
            cure = "Look up the message in NDIF's documentation, and try again later; a run can be resumed."
            return ModelError(f"NDIF at {self.place} refuses the request.", cure, detail=why)
        faults = _FAULT.findall(said)
        if faults:  # the code that was sent
            name, words = faults[-1]
            return RemoteError(f"A job failed on NDIF ({name}).", "Use a local backend where the model fits.", detail=words or name)
        cure = f"It runs {self._offer()}. Choose one of them, or try again later; a run can be resumed."
        return ModelError(f"NDIF did not run {self._name()}.", cure, detail=first)

    def _offer(self) -> str:
        with contextlib.suppress(ModelError):
            if (found := self.running()) is not None:
                return ", ".join(found[:12]) + (" …" if len(found) > 12 else "") if found else "no model now"
        return "what its status page names"

    def _name(self) -> str:
        found = re.search(r'"repo_id": "([^"]+)"', self.model_key)
        return found[1] if found else self.model_key

    def _safe(self, said: object) -> str:
        """Without the key, which a server may repeat."""
        return str(said).replace(self._key, "…") if self._key else str(said)


@dataclass
class Simulation:
    """Serialised as for a server, deserialised with this project's modules hidden, and run in this process."""

    place: str | None = None
    requests: int = 0

    def run(self, net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from nnsight.intervention.backends.local import LocalSimulationBackend

        self.requests += 1
        with _same_path(), torch.no_grad():
            return send(net, jobs, LocalSimulationBackend(net))


def send(net: Any, jobs: list[dict[str, Any]], backend: Any) -> list[dict[str, Any]]:
    """One session: its body, the functions and the jobs travel."""
    nnsight = library()
    nnsight.register(shipped.__name__)
    save, serve = nnsight.save, shipped.serve
    answers: list[dict[str, Any]] = []
    with net.session(backend=backend):
        answers = save(serve(net, jobs))
    return answers


class _Statuses:
    """In the place of nnsight's status line, which writes to standard output."""

    def __init__(self) -> None:
        self.enabled = True  # so that the waiting looks up ten times a second
        self.shown = "sent"

    def update(self, response: Any) -> None:
        """A status has come."""
        status, text = response.status.value, " ".join(str(response.description).split())
        if status == "LOG":
            return
        if status in ("COMPLETED", "ERROR"):
            self.enabled = False  # nor a bar of its own for the download
            return
        self.shown = f"{status.lower()}: {text[:200]}" if text else status.lower()
        tell(f"NDIF: {self.shown}")

    def refresh(self) -> None:
        """Nothing new; the listener may have had enough."""
        tell(f"NDIF: {self.shown}")


def _last_line(text: str) -> str:
    return [line.strip() for line in text.splitlines() if line.strip()][-1][:300]


@contextlib.contextmanager
def _same_path() -> Iterator[None]:
    """The simulation puts what it hid behind everything else in sys.path."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
