"""The loaded models, each under a handle that its `load_model` arguments alone decide.

The handle (`model_id`) of the bundled model is ``bundled``. The handle of a hub model is its name,
and the handle of a directory is its path inside the allowed directory. Arguments that are not the
defaults follow: ``gpt2@cuda,bfloat16``. So a handle from before a restart still says how to load
the model again.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from discovery.backends.loading.load_arguments import LoadArguments
from discovery.errors import DiscoveryError, ModelError
from discovery.sites import DTYPE_NAMES, BackendName
from discovery.tasks import find_misfits
from mcp_server.errors import UnknownModelError
from mcp_server.session import lazy_discovery
from mcp_server.session.allowed_paths import AllowedPaths

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.backends.hardware.placement import Placement
    from discovery.backends.loading.outline import Outline
    from discovery.tasks.task import Task

REMOTE_WORD = "remote"  # in a handle: the model runs on NDIF
SPREAD_WORD = "device_map"  # in a handle: the weights are spread over devices, memory and disk
DEFAULT_ARGUMENTS = {"backend": "auto", "device": "auto", "dtype": "float32"}  # not in a handle
RESERVED_BYTES = 512 * 2**20  # that stay free beside the weights
MAX_CACHED_TASKS = 16  # of one model


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """The arguments of load_model, checked.

    Attributes:
        model: the model as the call named it, repeated in messages.
        source: what is opened: `bundled`, an absolute path, or a hub name.
        backend: the engine that runs the model, or "auto".
        device: the device, or "auto".
        dtype: the number format of the weights.
        remote: whether the model runs on NDIF.
        spread: whether its weights are spread over this machine's devices, memory and disk.
    """

    model: str
    source: str
    backend: BackendName
    device: str
    dtype: str
    remote: bool = False
    spread: bool = False

    def build_placement(self) -> Placement | None:
        """Return how the weights are to be spread, or None if they are not.

        Raises:
            ModelError: if the arguments contradict each other; loading the model says the same.
        """
        return lazy_discovery.Placement.from_arguments(
            "auto" if self.spread else None, None, self.device, remote=self.remote
        )

    @property
    def load_arguments(self) -> LoadArguments:
        """The arguments that load the model, now or when a run is resumed."""
        return LoadArguments(
            model=self.source,
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            remote=self.remote,
            device_map="auto" if self.spread else None,
        )


@dataclass(kw_only=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        model_id: its handle.
        request: how it was asked for.
        backend: the model itself.
        load_seconds: how long loading took.
        fitting_tasks: the names of the built-in tasks that suit its tokenizer.
        last_used: the time of the last call that named it, on the monotonic clock.
        tasks: built-in tasks that were drawn for it, by name, number of pairs and seed.
    """

    model_id: str
    request: ModelRequest
    backend: Backend
    load_seconds: float
    fitting_tasks: tuple[str, ...] = ()
    last_used: float = field(default_factory=time.monotonic)
    tasks: dict[Any, Task] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where the model computes: the device whose queue its jobs wait in."""
        return self.backend.info.remote or self.backend.info.device

    def bytes_on(self, device: str) -> int:
        """Return how many bytes of its weights lie on a device."""
        model_device = self.backend.info.device
        is_there = model_device == device or {model_device, device} == {"cuda", "cuda:0"}
        return self.backend.resident_weight_bytes if is_there else 0


HoldDevice = Callable[[str], AbstractContextManager[None]]


def _hold_nothing(device: str) -> AbstractContextManager[None]:
    return nullcontext()


class ModelCache:
    """The models in memory; the least recently used one is dropped first."""

    def __init__(self, allowed_paths: AllowedPaths) -> None:
        self._allowed_paths = allowed_paths
        self._settings = allowed_paths.settings
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
        """Check the arguments of load_model, and fill in this server's defaults.

        Raises:
            PathNotAllowedError: if the model is a directory that may not be read, or no name.
        """
        defaults = self._default_arguments(remote=remote, spread=spread)
        default_backend: Any = defaults["backend"]
        return ModelRequest(
            model=model,
            source=self._allowed_paths.resolve_model(model),
            backend=backend or default_backend,
            device=device or defaults["device"],
            dtype=dtype or defaults["dtype"],
            remote=remote,
            spread=spread,
        )

    def _default_arguments(self, *, remote: bool, spread: bool) -> dict[str, str]:
        """Return what load_model uses if a call leaves an argument out.

        The settings of this server are about models that it loads itself. For a remote model they
        do not count, and for a spread model its device does not count.
        """
        if remote:
            return DEFAULT_ARGUMENTS
        defaults: dict[str, str] = {
            name: getattr(self._settings, name) for name in DEFAULT_ARGUMENTS
        }
        return defaults | {"device": DEFAULT_ARGUMENTS["device"]} if spread else defaults

    def make_model_id(self, request: ModelRequest) -> str:
        """Return the model_id that these arguments give."""
        arguments = {
            "backend": request.backend,
            "device": request.device,
            "dtype": request.dtype,
        }
        words = [word for name, word in arguments.items() if word != DEFAULT_ARGUMENTS[name]]
        if request.remote:
            words.append(REMOTE_WORD)
        if request.spread:
            words.append(SPREAD_WORD)
        suffix = f"@{','.join(words)}" if words else ""
        return self._allowed_paths.format_path(request.source) + suffix

    def read_outline(self, request: ModelRequest) -> Outline:
        """Return what would be loaded, from the model's configuration alone.

        The configuration of a hub model may be downloaded; its weights are not.

        Raises:
            ModelError: if there is no such model, or it cannot be described.
        """
        return lazy_discovery.read_outline(request.source, dtype=request.dtype)

    def load(
        self, request: ModelRequest, hold: HoldDevice = _hold_nothing
    ) -> tuple[LoadedModel, bool]:
        """Load a model, and return it with whether it was loaded already.

        This blocks. Only one model is loaded at a time. It is loaded while its device is held,
        because transformers changes torch's default dtype for the whole process meanwhile: another
        job would compute with it.

        Args:
            request: the model.
            hold: holds a device inside a `with` block.

        Raises:
            ModelError: if the model cannot be loaded, or does not fit.
        """
        model_id = self.make_model_id(request)
        outline = None
        if not self.is_loaded(model_id):
            outline = self._outline_to_fit(request)
            if outline is not None:
                with self._loading:
                    self._unload_until_fits(request, outline)
            # This may download, so it does not hold the lock: other loads need not wait for it.
            lazy_discovery.locate_model(request.source, weights=not request.remote)
        if self.is_loaded(model_id) or request.remote:
            return self._load_if_missing(model_id, request, outline)
        with hold(lazy_discovery.choose_device(request.device)):
            return self._load_if_missing(model_id, request, outline)

    def _load_if_missing(
        self, model_id: str, request: ModelRequest, outline: Outline | None
    ) -> tuple[LoadedModel, bool]:
        with self._loading:
            if model_id in self._loaded:
                return self._touch(self._loaded[model_id]), True
            start = time.monotonic()
            if outline is not None:
                # A second time, because others may have been loaded during the download.
                self._unload_until_fits(request, outline)
            backend = lazy_discovery.load_model(request.source, **request.load_arguments.options)
            self._loaded[model_id] = LoadedModel(
                model_id=model_id,
                request=request,
                backend=backend,
                load_seconds=time.monotonic() - start,
                fitting_tasks=_list_fitting_tasks(backend),
            )
            return self._loaded[model_id], False

    def get(self, model_id: str) -> LoadedModel:
        """Return a loaded model.

        Raises:
            UnknownModelError: if it is not loaded; the message gives the call that loads it.
        """
        if model_id not in self._loaded:
            loaded = sorted(self._loaded)
            raise UnknownModelError(model_id, loaded, self._format_load_call(model_id))
        return self._touch(self._loaded[model_id])

    def is_loaded(self, model_id: str) -> bool:
        """Return whether a model is loaded under this handle."""
        return model_id in self._loaded

    def unload(self, model_id: str) -> None:
        """Drop a model; a measurement that uses it at the moment finishes first.

        Raises:
            UnknownModelError: if it is not loaded.
        """
        self.get(model_id)
        self._loaded.pop(model_id, None)
        lazy_discovery.release_memory()

    def list_loaded(self) -> list[LoadedModel]:
        """Return every loaded model, the last used first."""
        return sorted(self._loaded.values(), key=lambda loaded: -loaded.last_used)

    def _touch(self, loaded: LoadedModel) -> LoadedModel:
        loaded.last_used = time.monotonic()
        return loaded

    def _format_load_call(self, model_id: str) -> str | None:
        """Return the call that gives this handle, whatever this server's defaults are."""
        name, arguments = _split_model_id(model_id)
        try:
            self._allowed_paths.resolve_model(name)
        except DiscoveryError:
            return None
        is_remote = REMOTE_WORD in arguments
        is_spread = SPREAD_WORD in arguments
        defaults = self._default_arguments(remote=is_remote, spread=is_spread)
        parts = [f'model="{name}"']
        for key, plain in DEFAULT_ARGUMENTS.items():
            word = arguments.get(key, plain)
            if key in arguments or word != defaults[key]:
                parts.append(f'{key}="{word}"')
        if is_remote:
            parts.append("remote=true")
        if is_spread:
            parts.append('device_map="auto"')
        return f"load_model({', '.join(parts)})"

    def _outline_to_fit(self, request: ModelRequest) -> Outline | None:
        """Return what has to fit into this machine's memory; None if that cannot be said.

        A remote or spread model needs no place on one device. A model that cannot be described may
        load all the same; otherwise loading it says why not.
        """
        if request.remote or request.spread:
            return None
        try:
            return self.read_outline(request)
        except ModelError:
            return None

    def _unload_until_fits(self, request: ModelRequest, outline: Outline) -> None:
        """Drop the least recently used models until the weights fit where they are to lie.

        Raises:
            ModelError: if they do not fit even then. If that can be known before, no model is
                dropped.
        """
        device = lazy_discovery.choose_device(request.device)
        free = lazy_discovery.read_free_memory(device)
        bytes_in_use = sum(loaded.bytes_on(device) for loaded in self._loaded.values())
        choice = lazy_discovery.choose_backend(outline, request.backend, free + bytes_in_use)
        lazy_discovery.require_fit(choice, device, free + bytes_in_use)
        need = choice.outline.loading_bytes + RESERVED_BYTES
        while lazy_discovery.read_free_memory(device) < need:
            droppable = [loaded for loaded in self._loaded.values() if loaded.bytes_on(device)]
            if not droppable:
                return
            oldest = min(droppable, key=lambda loaded: loaded.last_used)
            del self._loaded[oldest.model_id]
            del droppable, oldest  # else their weights would stay in memory
            lazy_discovery.release_memory()


def _split_model_id(model_id: str) -> tuple[str, dict[str, str]]:
    """Return the name of the model in a handle, and the arguments that the handle gives."""
    name, _, suffix = model_id.rpartition("@")
    arguments = _arguments_of_words(suffix.split(","))
    if not name or arguments is None:  # there is no @, or it belongs to the name of a directory
        return model_id, {}
    return name, arguments


def _arguments_of_words(words: Iterable[str]) -> dict[str, str] | None:
    """Return the load_model arguments that the words of a handle give; None if one is unknown."""
    arguments = {}
    for word in words:
        key = _argument_of_word(word)
        if key is None:
            return None
        arguments[key] = word
    return arguments


def _argument_of_word(word: str) -> str | None:
    """Return which argument of load_model a word of a handle stands for."""
    if word in (REMOTE_WORD, SPREAD_WORD):
        return word
    if word in get_args(BackendName):
        return "backend"
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", word):
        return "device"
    return "dtype" if word in DTYPE_NAMES else None


def _list_fitting_tasks(backend: Backend) -> tuple[str, ...]:
    """Return the names of the built-in tasks that suit a model's tokenizer."""
    misfits = find_misfits(backend.tokenizer)
    return tuple(name for name, misfit in misfits.items() if misfit is None)
