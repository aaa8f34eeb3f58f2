"""NDIF, a public cluster that runs large models, through nnsight's remote execution.

A request holds the functions of `remote.server_code` as source, jobs that are plain data, and the
model's name. The API key is put into its header and nowhere else: it is not recorded or logged.

Each status of a job is reported to `remote.status`, whose listener may end the waiting. The server
then finishes a job that it has begun, and nobody collects the result. A job changes nothing on the
server. So once the server has answered one request, later ones that are lost are sent again a few
times.
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
    Job,
    UnreadableAnswerError,
    require_complete_answers,
    wrap_reader,
)
from discovery.backends.remote.service import run_session
from discovery.backends.remote.status import report_status
from discovery.errors import ModelError, RemoteError, first_line

# How long to wait for the list of running models: NDIF asks its cluster for at most 60 seconds.
STATUS_SECONDS = 70.0
# How long to wait for a session; nnsight's client itself sets no limit.
CONNECT_SECONDS = 60.0
RETRY_PAUSES = (2.0, 10.0, 30.0)  # seconds before a request that was lost is sent again
RETRY_STATUSES = (429, 502, 503, 504)  # HTTP statuses of faults that are temporary
OUT_OF_MEMORY_TEXTS = (
    "OutOfMemoryError",
    "CUDA out of memory",
    "not enough memory",
    "can't allocate memory",
)
MAX_MODELS_SHOWN = 12  # in a message
# The line of a traceback that names the exception.
_EXCEPTION_LINE = re.compile(r"^(?:[\w.]*\.)?(\w+(?:Error|Exception)): ?(.*)", re.MULTILINE)
_KEY_CURE = "Get a key at login.ndif.us and set NDIF_API_KEY, or run `nnsight login` once."


@dataclass(kw_only=True)
class NdifService:
    """A server that runs NDIF.

    Attributes:
        address: the server's address.
        model_key: the model's name on the server.
        requests: the number of requests that have been sent.
    """

    address: str
    model_key: str = ""
    requests: int = 0
    _key: str = field(default="", repr=False)
    _has_answered: bool = field(default=False, repr=False)

    @classmethod
    def from_environment(cls) -> NdifService:
        """Return the service that NDIF_HOST and NDIF_API_KEY name, or else nnsight's configuration.

        Raises:
            ModelError: if the address or the key is missing or malformed. Nothing has been sent.
        """
        import_nnsight()
        from nnsight.schema.config import CONFIG

        host = (os.environ.get("NDIF_HOST") or CONFIG.API.HOST).strip().rstrip("/")
        if not _is_address(host):
            raise ModelError(
                f"NDIF_HOST is {host!r}, which is no address.",
                "Give an address with http:// or https://, or unset it.",
            )
        key = (os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY or "").strip()
        if not key:
            raise ModelError("A remote model needs an NDIF API key, and there is none.", _KEY_CURE)
        # A malformed key is refused here, because the HTTP client would repeat it in its error.
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ModelError(
                "The NDIF API key holds characters that no key has, such as a space or a line end.",
                _KEY_CURE,
            )
        return cls(address=host, _key=key)

    def running_models(self) -> list[str] | None:
        """Return the models that run on the server now; None if it does not say so in time.

        Raises:
            ModelError: if the server does not answer.
        """
        import httpx  # nnsight's own client

        try:
            timeout = httpx.Timeout(10.0, read=STATUS_SECONDS)
            answer = httpx.get(f"{self.address}/status", timeout=timeout)
            if answer.status_code == httpx.codes.GATEWAY_TIMEOUT:
                return None
            answer.raise_for_status()
            deployments = answer.json().get("deployments", {}).values()
            running = [item for item in deployments if item.get("application_state") == "RUNNING"]
            return sorted({str(item.get("repo_id")) for item in running})
        except httpx.ReadTimeout:
            return None
        except (httpx.HTTPError, ValueError, AttributeError) as fault:
            raise self._unreachable_error(fault) from fault

    def run(self, model: Any, jobs: list[Job]) -> list[dict[str, Any]]:
        """Send jobs and wait for their answers.

        Raises:
            ModelError: if the server cannot be reached, refuses the request, or sends something
                that is no answer.
            RemoteError: if a job failed there.
            torch.OutOfMemoryError: if the server ran out of memory.
            Interrupted: if the listener of the status raises it.
        """
        for pause in RETRY_PAUSES if self._has_answered else ():
            try:
                return self._send_once(model, jobs)
            except _TransientError as fault:
                self._wait(pause, fault.error)
        try:
            return self._send_once(model, jobs)
        except _TransientError as fault:
            raise fault.error from fault.__cause__

    def _send_once(self, model: Any, jobs: list[Job]) -> list[dict[str, Any]]:
        """Send one request.

        Raises:
            _TransientError: if the same request may succeed in a moment.
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
        client.display = _StatusDisplay()
        client.verbose = False
        client.parse = wrap_reader(client.parse)
        client.finalize = wrap_reader(client.finalize)
        self.requests += 1
        try:
            with _connection_timeout(websocket, CONNECT_SECONDS):
                answers = run_session(model, jobs, client)
            require_complete_answers(jobs, answers)
        except NnsightRemoteError as fault:
            error = self._failure_error(str(fault))
            if _is_transient(fault.__cause__):
                raise _TransientError(error) from fault.__cause__
            raise error from None
        except UnreadableAnswerError as fault:
            raise _TransientError(self._unreadable_error(fault)) from fault
        except (
            httpx.HTTPError,
            websocket.WebSocketException,
            OSError,
            ValidationError,
            JSONDecodeError,
        ) as fault:
            raise _TransientError(self._unreachable_error(fault)) from fault
        self._has_answered = True
        return answers

    def _wait(self, seconds: float, error: Exception) -> None:
        """Wait before the next try. The listener gets the reason, and may end the waiting."""
        cause = str(error).splitlines()[0]
        end = time.monotonic() + seconds
        while (remaining_seconds := end - time.monotonic()) > 0:
            report_status(f"{cause} Sent again in {remaining_seconds:.0f} s")
            time.sleep(min(remaining_seconds, 0.1))

    def _unreadable_error(self, fault: Exception) -> ModelError:
        return ModelError(
            f"NDIF at {self.address} sent something that is no answer.",
            "Try again later; a run can be resumed. If it happens again, tell those who run the "
            "server: its nnsight may have another version.",
            detail=self._redact_key(fault),
        )

    def _unreachable_error(self, fault: Exception) -> ModelError:
        cause = f"NDIF at {self.address} does not answer ({type(fault).__name__})."
        # If the server closes the connection normally, the client reads an empty message.
        if isinstance(fault, ValidationError | JSONDecodeError):
            cause = f"NDIF at {self.address} closed the connection, or sent what is no status."
        cure = "Check the connection and NDIF_HOST, and try again later; a run can be resumed."
        return ModelError(cause, cure, detail=self._redact_key(first_line(fault)))

    def _failure_error(self, message: str) -> Exception:
        """Return the error that a refusal or a failed job means here."""
        message = self._redact_key(message)
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        first = lines[0] if lines else "the server gave no reason"
        if any(text in message for text in OUT_OF_MEMORY_TEXTS):
            return torch.OutOfMemoryError(f"NDIF ran out of memory: {lines[-1][:300]}")
        if message.startswith("Failed to send request"):
            reason = first.partition(":")[2].strip()
            if "API key" in message:
                return ModelError(
                    f"NDIF at {self.address} refuses the API key.", _KEY_CURE, detail=reason
                )
            return ModelError(
                f"NDIF at {self.address} refuses the request.",
                "Look up the message in NDIF's documentation, and try again later; "
                "a run can be resumed.",
                detail=reason,
            )
        exceptions = _EXCEPTION_LINE.findall(message)
        if exceptions:  # raised by the code that was sent
            name, text = exceptions[-1]
            return RemoteError(
                f"A job failed on NDIF ({name}).",
                "Use a local backend if the model fits on your machine.",
                detail=text or name,
            )
        return ModelError(
            f"NDIF did not run {self._model_name()}.", self._suggest_alternatives(), detail=first
        )

    def _suggest_alternatives(self) -> str:
        """Say what to do if a model did not run, by what runs on the server now."""
        running = None
        with contextlib.suppress(ModelError):
            running = self.running_models()
        if running is None:
            offer = "what its status page lists"
        elif self._model_name() in running:
            return (
                "The model runs there now: try again later, or with smaller requests (--memory); "
                "a run can be resumed."
            )
        else:
            shown = running[:MAX_MODELS_SHOWN]
            if len(running) > len(shown):
                shown.append("…")
            offer = ", ".join(shown) or "no model now"
        return f"It runs {offer}. Choose one of them, or try again later; a run can be resumed."

    def _model_name(self) -> str:
        match = re.search(r'"repo_id": "([^"]+)"', self.model_key)
        return match[1] if match else self.model_key

    def _redact_key(self, message: object) -> str:
        """Return a message without the API key, which a server may repeat."""
        return str(message).replace(self._key, "…") if self._key else str(message)


class _TransientError(Exception):
    """A request failed that may succeed in a moment.

    Attributes:
        error: the error to raise if it does not.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _is_transient(cause: BaseException | None) -> bool:
    """Return whether a request that failed for this reason may succeed in a moment."""
    import httpx

    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code in RETRY_STATUSES
    return isinstance(cause, httpx.TransportError)


class _StatusDisplay:
    """Replaces nnsight's status line, which writes to standard output."""

    def __init__(self) -> None:
        # While it is enabled, nnsight's client calls `refresh` ten times a second as it waits.
        self.enabled = True
        self.status = "sent"

    def update(self, response: Any) -> None:
        """Report a status that has come."""
        status = response.status.value
        text = " ".join(str(response.description).split())
        if status == "LOG":
            return
        if status in ("COMPLETED", "ERROR"):
            self.enabled = False  # so that the client shows no bar for the download
            return
        self.status = f"{status.lower()}: {text[:200]}" if text else status.lower()
        report_status(f"NDIF: {self.status}")

    def refresh(self) -> None:
        """Report the same status again, so that the listener can end the waiting."""
        report_status(f"NDIF: {self.status}")


def _is_address(host: str) -> bool:
    try:
        parts = urlsplit(host)
        port = parts.port  # reading it raises ValueError if it is malformed
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


@contextlib.contextmanager
def _connection_timeout(websocket: Any, seconds: float) -> Iterator[None]:
    """Limit how long the client's websocket library waits for a connection and a first message."""
    before = websocket.getdefaulttimeout()
    websocket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        websocket.setdefaulttimeout(before)
