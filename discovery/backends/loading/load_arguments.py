"""How a model was loaded: a value that a run records, so that it can load the same model again.

`LoadArguments` is what the command line, the server and `discover` hand to a run; run.json keeps it
under `configuration.load`. Importing this module loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import (
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from discovery.backends.loading.source import BUNDLED
from discovery.errors import StoreError
from discovery.graph import JsonModel
from discovery.sites import BackendName
from discovery.store import ModelSource, Run

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.backends.info import ModelInfo


class LoadArguments(JsonModel):
    """The arguments of `load_model`, and the task that was asked for with them.

    Further fields are kept as they came. `task` and `pairs` are written only if they were set.

    Attributes:
        model: "bundled", a directory, a GGUF file, or a hub name; the `name` argument of
            `load_model`.
        backend: the engine that was asked for.
        device: the device that was asked for.
        dtype: the dtype that was asked for.
        remote: True if the model computes on NDIF, "local" for nnsight's simulation of NDIF.
        device_map: "auto" if the weights are spread over devices, memory and disk.
        task: the built-in task or the task file that was asked for; None for inline pairs.
        pairs: the number of pairs that was asked for; None for all.
    """

    _written_when_set: ClassVar[frozenset[str]] = frozenset({"task", "pairs"})

    model: str
    backend: BackendName = "auto"
    device: str = "auto"
    dtype: str = "float32"
    remote: bool | Literal["local"] = False
    device_map: Literal["auto"] | None = None
    task: str | None = None
    pairs: int | None = None

    @model_serializer(mode="wrap")
    def _omit_unset_task(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        facts: dict[str, Any] = serialise(self)
        return {
            name: value
            for name, value in facts.items()
            if name in self.model_fields_set or name not in self._written_when_set
        }

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `load_model`: everything but the model's name."""
        return {
            "backend": self.backend,
            "device": self.device,
            "dtype": self.dtype,
            "device_map": self.device_map,
            "remote": self.remote,
        }


def load_arguments(model: Backend) -> LoadArguments:
    """Return the arguments that load a model again.

    A model that is spread over devices is spread again by what is free then. A model that nnsight's
    simulation of NDIF runs is loaded on this machine, without the simulation.
    """
    info = model.info
    path = Path(info.name).expanduser()
    is_path = path.exists() and info.name != BUNDLED
    return LoadArguments(
        model=str(path.resolve()) if is_path else info.name,
        backend=cast(BackendName, info.backend),
        device="auto" if info.device_map else info.device,
        device_map="auto" if info.device_map else None,
        dtype=info.dtype,
        remote=bool(info.remote),
    )


def reload(arguments: LoadArguments) -> Backend:
    """Load the model that these arguments name."""
    from discovery.backends.loading.load import load_model

    return load_model(arguments.model, **arguments.options)


def reload_model(run: Run) -> Backend:
    """Load the model that a run began with.

    Raises:
        StoreError: if run.json does not say how the model was loaded, or if its weights have
            changed since.
    """
    record = run.record
    try:
        arguments = LoadArguments.model_validate(record.configuration.get("load"))
    except ValidationError as fault:
        raise StoreError(
            f"run.json of run {run.id} does not say how its model was loaded.",
            "Restore the file, or start a new run.",
            detail=str(fault),
        ) from fault
    model = reload(arguments)
    if record.model.fingerprint and model.info.fingerprint != record.model.fingerprint:
        raise StoreError(
            f"The model {arguments.model!r} has other weights than run {run.id} began with.",
            "Restore them, or start a new run.",
        )
    return model


def model_source(info: ModelInfo) -> ModelSource:
    """Return what run.json records about where a model's weights came from."""
    return ModelSource(
        name=info.name,
        source=info.source,
        revision=info.revision,
        fingerprint=info.fingerprint,
        quantisation=info.quantisation,
    )
