"""The loaded models, each under a handle that its `load_model` arguments alone decide.

The handle of the bundled model is ``bundled``, of a hub model its name, of a directory its path inside the allowed directory; what was
asked for beyond the defaults follows: ``gpt2@cuda,bfloat16``. So a handle from before a restart still says how to load it again.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from discovery.cli.arguments import DTYPE_NAMES
from discovery.errors import DiscoveryError, ModelError
from discovery.sites import BackendName
from mcp_server.errors import UnknownModelError
from mcp_server.session import lazy_discovery
from mcp_server.session.allowed_paths import AllowedPaths

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.backends.hardware.placement import Placement
    from discovery.backends.loading.outline import Outline
    from discovery.tasks.task import Task

REMOTE_WORD, SPREAD_WORD = "remote", "device_map"
DEFAULT_ARGUMENTS = {
    "backend": "auto",
    "device": "auto",
    "dtype": "float32",
}  # what a handle does not say
RESERVED_BYTES = 512 * 2**20  # bytes that stay free
MAX_CACHED_TASKS = 16


@dataclass(frozen=True)
class ModelRequest:
    """The arguments of load_model.

    Attributes:
        model: as it was asked for, and told again in messages. source: what is opened.
        remote: on NDIF. spread: over this machine's devices, memory and disk.
    """

    model: str
    source: str
    backend: BackendName
    device: str
    dtype: str
    remote: bool = False
    spread: bool = False

    def build_spread(self) -> Placement | None:
        """How the weights are to lie where they are spread.

        Raises:
            ModelError: where the arguments contradict each other, as when it is loaded.
        """
        return lazy_discovery.Placement.from_arguments(
            "auto" if self.spread else None, None, self.device, remote=self.remote
        )

    @property
    def load_arguments(self) -> dict[str, Any]:
        """For `load_model`, and for a run that opens the model again."""
        plain = {
            "backend": self.backend,
            "device": self.device,
            "dtype": self.dtype,
            "remote": self.remote,
        }
        return {**plain, "device_map": "auto" if self.spread else None}


@dataclass
class LoadedModel:
    """A model in memory."""

    model_id: str
    asked: ModelRequest
    backend: Backend
    load_seconds: float
    last_used: float = field(default_factory=time.monotonic)
    tasks: dict[Any, Task] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where it computes: whose queue its jobs wait in."""
        return self.backend.info.remote or self.backend.info.device

    def bytes_on(self, device: str) -> int:
        """Bytes of its weights that lie on a device."""
        own = self.backend.info.device
        return (
            self.backend.resident_weight_bytes
            if own == device or {own, device} == {"cuda", "cuda:0"}
            else 0
        )


class ModelCache:
    """The models in memory, least recently used first to go."""

    def __init__(self, places: AllowedPaths) -> None:
        self.places = places
        self._settings = places.settings
        self._loaded: dict[str, LoadedModel] = {}
        self._loading = threading.Lock()

    def resolve_request(
        self,
        model: str,
        backend: BackendName | None,
        device: str | None,
        dtype: str | None,
        *,
        remote: bool = False,
        spread: bool = False,
    ) -> ModelRequest:
        """Check what load_model was asked for. This server's defaults are about models that it loads itself, on one device."""
        default = (
            DEFAULT_ARGUMENTS
            if remote
            else self._defaults | ({"device": DEFAULT_ARGUMENTS["device"]} if spread else {})
        )
        engine: Any = backend or default["backend"]
        return ModelRequest(
            model,
            self.places.resolve_model(model),
            engine,
            device or default["device"],
            dtype or default["dtype"],
            remote,
            spread,
        )

    @property
    def _defaults(self) -> dict[str, str]:
        return {name: getattr(self._settings, name) for name in DEFAULT_ARGUMENTS}

    def make_model_id(self, asked: ModelRequest) -> str:
        """The model_id that these arguments give."""
        chosen = {"backend": asked.backend, "device": asked.device, "dtype": asked.dtype}
        more = [word for key, word in chosen.items() if word != DEFAULT_ARGUMENTS[key]]
        more += [
            word
            for word, is_so in ((REMOTE_WORD, asked.remote), (SPREAD_WORD, asked.spread))
            if is_so
        ]
        return self.places.format_path(asked.source) + (f"@{','.join(more)}" if more else "")

    def outline(self, asked: ModelRequest) -> Outline:
        """What would be loaded, from its configuration alone. A hub name's may be downloaded, not its weights.

        Raises:
            ModelError: the name is no model, or one that cannot be described.
        """
        return lazy_discovery.read_outline(asked.source, dtype=asked.dtype)

    def load(self, asked: ModelRequest) -> tuple[LoadedModel, bool]:
        """The model, and whether it was there already. Blocks; one model is loaded at a time."""
        model_id = self.make_model_id(asked)
        found = (
            None
            if asked.remote or asked.spread or self.is_loaded(model_id)
            else self._try_outline(asked)
        )
        if not self.is_loaded(model_id):
            if found is not None:
                with self._loading:
                    self._unload_until_fits(asked, found)
            lazy_discovery.locate_model(
                asked.source, weights=not asked.remote
            )  # may download: nobody else waits for that
        with self._loading:
            if model_id in self._loaded:
                return self._touch(self._loaded[model_id]), True
            began = time.monotonic()
            if found is not None:
                self._unload_until_fits(
                    asked, found
                )  # again: others may have been loaded meanwhile
            backend = lazy_discovery.load_model(asked.source, **asked.load_arguments)
            self._loaded[model_id] = LoadedModel(model_id, asked, backend, time.monotonic() - began)
            return self._loaded[model_id], False

    def get(self, model_id: str) -> LoadedModel:
        """A loaded model.

        Raises:
            UnknownModelError: gives the call that loads it.
        """
        if model_id not in self._loaded:
            raise UnknownModelError(
                model_id, sorted(self._loaded), self._format_load_call(model_id)
            )
        return self._touch(self._loaded[model_id])

    def is_loaded(self, model_id: str) -> bool:
        """Whether it is loaded."""
        return model_id in self._loaded

    def unload(self, model_id: str) -> None:
        """Forget a model; what is measured on it now is finished first."""
        self.get(model_id)
        self._loaded.pop(model_id, None)
        lazy_discovery.release_memory()

    def list_loaded(self) -> list[LoadedModel]:
        """Every loaded model, the last used first."""
        return sorted(self._loaded.values(), key=lambda loaded: -loaded.last_used)

    def _touch(self, loaded: LoadedModel) -> LoadedModel:
        loaded.last_used = time.monotonic()
        return loaded

    def _format_load_call(self, model_id: str) -> str | None:
        """The call that gives this handle, whatever this server's defaults are."""
        name, _, more = model_id.rpartition("@")
        given = {_argument_of_word(word): word for word in more.split(",")} if name else {}
        if None in given or not name:  # no @, or one in a directory's name
            name, given = model_id, {}
        try:
            self.places.resolve_model(name)
        except DiscoveryError:
            return None
        default = (
            DEFAULT_ARGUMENTS
            if REMOTE_WORD in given
            else self._defaults
            | ({"device": DEFAULT_ARGUMENTS["device"]} if SPREAD_WORD in given else {})
        )
        wanted = {key: given.get(key, plain) for key, plain in DEFAULT_ARGUMENTS.items()}
        extra = "".join(
            f', {key}="{wanted[key]}"'
            for key in DEFAULT_ARGUMENTS
            if key in given or wanted[key] != default[key]
        )
        extra += ", remote=true" if REMOTE_WORD in given else ""
        extra += ', device_map="auto"' if SPREAD_WORD in given else ""
        return f'load_model(model="{name}"{extra})'

    def _try_outline(self, asked: ModelRequest) -> Outline | None:
        """What would be loaded; None where it cannot be described: it may load all the same, or is refused there."""
        try:
            return self.outline(asked)
        except ModelError:
            return None

    def _unload_until_fits(self, asked: ModelRequest, found: Outline) -> None:
        """Drop the least recently used while the weights would not fit into what is free where they are to lie.

        Raises:
            ModelError: where they do not fit even so; before any is dropped where dropping all would not help, as far as can be known.
        """
        device = lazy_discovery.choose_device(asked.device)
        free, held = (
            lazy_discovery.read_free_memory(device),
            sum(loaded.bytes_on(device) for loaded in self._loaded.values()),
        )
        choice = lazy_discovery.choose_backend(found, asked.backend, free + held)
        lazy_discovery.require_fit(choice, device, free + held)
        need = choice.outline.loading_bytes + RESERVED_BYTES
        while lazy_discovery.read_free_memory(device) < need and (
            there := [name for name, one in self._loaded.items() if one.bytes_on(device)]
        ):
            del self._loaded[min(there, key=lambda name: self._loaded[name].last_used)]
            lazy_discovery.release_memory()


def _argument_of_word(word: str) -> str | None:
    """Which argument of load_model a word of a handle stands for."""
    if word in (REMOTE_WORD, SPREAD_WORD):
        return word
    if word in get_args(BackendName):
        return "backend"
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", word):
        return "device"
    return "dtype" if word in DTYPE_NAMES else None
