"""NDIF, the field's shared cluster, through nnsight's remote execution.

A request holds the functions of `backends.shipped` as source, jobs that are plain data, and the model's name. The API key goes into its
header and nowhere else: it is neither recorded nor logged. Each status of a job is told to `backends.waiting`, whose listener may end
the waiting (the server goes on with a job that it has begun; nobody collects it). A job changes nothing there, so one that is lost on the
way is sent again, a few times, once the server has answered another.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from json import JSONDecodeError
from typing import Any
from urllib.parse import urlsplit

import torch
from pydantic import ValidationError

from discovery.backends.nnsight.backend import import_nnsight
from discovery.backends.remote.jobs import (
    UnreadableAnswerError,
    require_complete_answers,
    wrap_reader,
)
from discovery.backends.remote.service import run_session
from discovery.backends.remote.status import report_status
from discovery.errors import ModelError, RemoteError, first_line

STATUS_SECONDS = 70.0  # NDIF asks its cluster, for at most 60
CONNECT_SECONDS = 60.0  # until it hands out a session; nnsight's client sets no end to that
RETRY_PAUSES = (2.0, 10.0, 30.0)  # seconds before a job that was lost on the way is sent again
RETRY_STATUSES = (429, 502, 503, 504)  # HTTP statuses that pass
OUT_OF_MEMORY_TEXTS = (
    "OutOfMemoryError",
    "CUDA out of memory",
    "not enough memory",
    "can't allocate memory",
)
_EXCEPTION_LINE = re.compile(r"^(?:[\w.]*\.)?(\w+(?:Error|Exception)): ?(.*)", re.MULTILINE)
_KEY_CURE = "Get a key at login.ndif.us and set NDIF_API_KEY, or run `nnsight login` once."


@dataclass
class NdifService:
    """A server that runs NDIF.

    Attributes:
        address: its address.
        model_key: the model's name there.
    """

    address: str
    model_key: str = ""
    requests: int = 0
    _key: str = field(default="", repr=False)
    _has_answered: bool = field(default=False, repr=False)

    @classmethod
    def from_environment(cls) -> NdifService:
        """The server and the key that NDIF_HOST and NDIF_API_KEY name, or else nnsight's own configuration.

        Raises:
            ModelError: where there is no key; nothing has been sent then.
        """
        import_nnsight()
        from nnsight.schema.config import CONFIG

        host = (os.environ.get("NDIF_HOST") or CONFIG.API.HOST).strip().rstrip("/")
        if not _is_address(host):
            raise ModelError(
                f"NDIF_HOST is {host!r}, which is no address.",
                "Write it with http:// or https://, or unset it.",
            )
        key = (os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY or "").strip()
        if not key:
            raise ModelError("A remote model needs an NDIF API key, and there is none.", _KEY_CURE)
        if not (
            key.isascii() and key.isprintable() and " " not in key
        ):  # whoever sends it would repeat it in an error
            raise ModelError(
                "The NDIF API key holds characters that no key has, as a space or the end of a line.",
                _KEY_CURE,
            )
        return cls(host, _key=key)

    def running_models(self) -> list[str] | None:
        """The models that run there now; None where it did not say so in time.

        Raises:
            ModelError: where it does not answer.
        """
        import httpx  # nnsight's own client

        try:
            answer = httpx.get(
                f"{self.address}/status", timeout=httpx.Timeout(10.0, read=STATUS_SECONDS)
            )
            if answer.status_code == httpx.codes.GATEWAY_TIMEOUT:
                return None
            answer.raise_for_status()
            found = answer.json().get("deployments", {}).values()
            return sorted(
                {
                    str(one.get("repo_id"))
                    for one in found
                    if one.get("application_state") == "RUNNING"
                }
            )
        except httpx.ReadTimeout:
            return None
        except (httpx.HTTPError, ValueError, AttributeError) as fault:
            raise self._unreachable_error(fault) from fault

    def run(self, net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send jobs and wait for what they found.

        Raises:
            ModelError: the server cannot be reached, refuses the request, or sends what is no answer.
            RemoteError: a job failed there.
            torch.OutOfMemoryError: its memory did not suffice.
            Interrupted: from the listener.
        """
        for pause in RETRY_PAUSES if self._has_answered else ():
            try:
                return self._send_once(net, jobs)
            except _TransientError as fault:
                self._wait(pause, fault.error)
        try:
            return self._send_once(net, jobs)
        except _TransientError as fault:
            raise fault.error from fault.__cause__

    def _send_once(self, net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One request.

        Raises:
            _PassingError: the same request may do better in a moment.
        """
        import httpx
        import websocket
        from nnsight.intervention.backends.remote import RemoteBackend
        from nnsight.intervention.backends.remote import RemoteError as NnsightRemoteError

        client = RemoteBackend(
            self.model_key,
            host=self.address,
            api_key=self._key,
            env={"attn_implementation": "eager"},
        )
        client.display, client.verbose = _StatusDisplay(), False
        client.parse, client.finalize = wrap_reader(client.parse), wrap_reader(client.finalize)
        self.requests += 1
        try:
            with _connection_timeout(websocket, CONNECT_SECONDS):
                found = run_session(net, jobs, client)
            require_complete_answers(jobs, found)
        except NnsightRemoteError as fault:
            meant, why = self._failure_error(str(fault)), fault.__cause__
            if isinstance(why, httpx.TransportError) or (
                isinstance(why, httpx.HTTPStatusError)
                and why.response.status_code in RETRY_STATUSES
            ):
                raise _TransientError(meant) from why
            raise meant from None
        except UnreadableAnswerError as fault:
            cure = "Try again later; a run can be resumed. If it stays so, tell those who run it: its nnsight may be of another version."
            raise _TransientError(
                ModelError(
                    f"NDIF at {self.address} sent what is no answer.",
                    cure,
                    detail=self._redact_key(fault),
                )
            ) from fault
        except (
            httpx.HTTPError,
            websocket.WebSocketException,
            OSError,
            ValidationError,
            JSONDecodeError,
        ) as fault:
            raise _TransientError(self._unreachable_error(fault)) from fault
        self._has_answered = True
        return found

    def _wait(self, seconds: float, meant: Exception) -> None:
        """Let some time pass; the listener is told why, and may have had enough."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            report_status(f"{str(meant).partition(chr(10))[0]} Sent again in {left:.0f} s")
            time.sleep(min(left, 0.1))

    def _unreachable_error(self, fault: Exception) -> ModelError:
        cause = f"NDIF at {self.address} does not answer ({type(fault).__name__})."
        if isinstance(
            fault, ValidationError | JSONDecodeError
        ):  # where it closed in good order, the client takes an empty message for one
            cause = f"NDIF at {self.address} closed the connection, or sent what is no status."
        cure = "Check the connection and NDIF_HOST, and try again later; a run can be resumed."
        return ModelError(cause, cure, detail=self._redact_key(first_line(fault)))

    def _failure_error(self, said: str) -> Exception:
        """What a refusal or a failed job means here."""
        said = self._redact_key(said)
        first = next(
            (line.strip() for line in said.splitlines() if line.strip()), "nothing was said"
        )
        if any(words in said for words in OUT_OF_MEMORY_TEXTS):
            return torch.OutOfMemoryError(f"NDIF ran out of memory: {_last_line(said)}")
        if said.startswith("Failed to send request"):
            why = first.partition(":")[2].strip()
            if "API key" in said:
                return ModelError(
                    f"NDIF at {self.address} refuses the API key.", _KEY_CURE, detail=why
                )
            cure = "Look up the message in NDIF's documentation, and try again later; a run can be resumed."
            return ModelError(f"NDIF at {self.address} refuses the request.", cure, detail=why)
        faults = _EXCEPTION_LINE.findall(said)
        if faults:  # the code that was sent
            name, words = faults[-1]
            return RemoteError(
                f"A job failed on NDIF ({name}).",
                "Use a local backend where the model fits.",
                detail=words or name,
            )
        return ModelError(
            f"NDIF did not run {self._model_name()}.", self._suggest_alternatives(), detail=first
        )

    def _suggest_alternatives(self) -> str:
        """What to do where a model did not run, by what runs now."""
        found = None
        with contextlib.suppress(ModelError):
            found = self.running_models()
        if found is not None and self._model_name() in found:
            return "The model runs there now: try again later, or with less in a request (--memory); a run can be resumed."
        offer = "what its status page names"
        if found is not None:
            offer = ", ".join([*found[:12], *["…"][: len(found) > 12]]) or "no model now"
        return f"It runs {offer}. Choose one of them, or try again later; a run can be resumed."

    def _model_name(self) -> str:
        found = re.search(r'"repo_id": "([^"]+)"', self.model_key)
        return found[1] if found else self.model_key

    def _redact_key(self, said: object) -> str:
        """Without the key, which a server may repeat."""
        return str(said).replace(self._key, "…") if self._key else str(said)


class _TransientError(Exception):
    """A request that may do better in a moment.

    Attributes:
        meant: what to raise where it does not.
    """

    def __init__(self, meant: Exception) -> None:
        super().__init__(str(meant))
        self.error = meant


class _StatusDisplay:
    """In the place of nnsight's status line, which writes to standard output."""

    def __init__(self) -> None:
        self.enabled = True  # so that the waiting looks up ten times a second
        self.status = "sent"

    def update(self, response: Any) -> None:
        """A status has come."""
        status, text = response.status.value, " ".join(str(response.description).split())
        if status == "LOG":
            return
        if status in ("COMPLETED", "ERROR"):
            self.enabled = False  # nor a bar of its own for the download
            return
        self.status = f"{status.lower()}: {text[:200]}" if text else status.lower()
        report_status(f"NDIF: {self.status}")

    def refresh(self) -> None:
        """Nothing new; the listener may have had enough."""
        report_status(f"NDIF: {self.status}")


def _is_address(host: str) -> bool:
    try:
        parts = urlsplit(host)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        )  # the port is read, and may be none
    except ValueError:
        return False


@contextlib.contextmanager
def _connection_timeout(websocket: Any, seconds: float) -> Iterator[None]:
    """How long the client's own library waits for a connection and its first message, where nobody says."""
    before = websocket.getdefaulttimeout()
    websocket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        websocket.setdefaulttimeout(before)


def _last_line(text: str) -> str:
    return [line.strip() for line in text.splitlines() if line.strip()][-1][:300]
