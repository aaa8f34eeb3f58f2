"""Which backend runs a model, why, and whether the weights fit into memory.

All of it is decided from the model's outline, before any weight is read. TransformerLens runs
models of up to a few billion parameters, and holds some weights twice. For larger models, and for
a model that is spread over devices, nnsight traces the module that transformers built. Both give
the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from discovery.backends.hardware.devices import choose_device
from discovery.backends.hardware.memory import read_free_memory
from discovery.backends.hardware.placement import Placement
from discovery.backends.info import bytes_per_number
from discovery.backends.loading.outline import BACKEND_LABELS, BackendKind, Outline
from discovery.errors import ModelError
from discovery.sites import BackendName, DtypeName

REMOTE_REASON = "only nnsight runs a model on a remote server"
SPREAD_REASON = "only nnsight runs a model that is spread over devices"
NATIVE_ARCHITECTURE = "NativeModel"  # of a checkpoint in TransformerLens's own format
MAX_TRANSFORMERLENS_PARAMETERS = 2_000_000_000  # "auto" takes nnsight for larger models
SUGGESTED_DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")  # the more exact one first


@dataclass(frozen=True)
class BackendChoice:
    """The backend that runs a model.

    Attributes:
        backend: the backend.
        reason: why it was chosen, as a clause.
        outline: the model as this backend would hold it.
    """

    backend: BackendKind
    reason: str
    outline: Outline


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What loading a model would do on this machine. All sizes are in bytes.

    Attributes:
        choice: the backend that would run the model.
        device: the device on which it would compute.
        free_bytes: the memory that is free on this device.
        loading_bytes: the most memory in use while the model is loaded.
        resident_bytes: the memory that the loaded model takes.
        misfit: why the weights do not fit, or None if they do. It is None for a remote model and
            for one that is spread over devices, since their weights need not fit here.
    """

    choice: BackendChoice
    device: str
    free_bytes: int
    loading_bytes: int
    resident_bytes: int
    misfit: ModelError | None


def plan_load(
    outline: Outline,
    *,
    backend: BackendName = "auto",
    device: str = "auto",
    placement: Placement | None = None,
    remote: bool = False,
) -> LoadPlan:
    """Plan how a model would be loaded on this machine; nothing is loaded.

    Args:
        outline: the model.
        backend: the backend that the user asked for.
        device: the device that the user asked for.
        placement: how the weights are to be spread over devices, or None for one device.
        remote: whether the model is to run on a server.

    Raises:
        ModelError: as `choose_backend` and `choose_device` raise it.
    """
    device = choose_device(device)
    free = read_free_memory(device)
    choice = choose_backend(outline, backend, free, is_spread=placement is not None, remote=remote)
    loading, resident = estimate_load_memory(choice.outline, placement, remote=remote)
    must_fit = placement is None and not remote
    return LoadPlan(
        choice=choice,
        device=device,
        free_bytes=free,
        loading_bytes=loading,
        resident_bytes=resident,
        misfit=describe_misfit(choice, device, free) if must_fit else None,
    )


def choose_backend(
    outline: Outline,
    backend: BackendName,
    free: int,
    *,
    is_spread: bool = False,
    remote: bool = False,
) -> BackendChoice:
    """Choose the backend that runs a model.

    Args:
        outline: the model.
        backend: the backend that the user asked for.
        free: how many bytes the weights may take.
        is_spread: whether the weights are to be spread over devices.
        remote: whether the model is to run on a server.

    Raises:
        ModelError: if the backend that was asked for does not support the model, or cannot have it
            spread or remote, or if no backend runs its weights here.
    """
    if remote:
        require_remote_backend(backend)
        require_hub_model(outline.name, outline.revision)
        require_tokenizer(outline.name, outline.tokenizer)
        kind = outline.resolve_backend("nnsight")
        return BackendChoice(kind, REMOTE_REASON, outline.as_held_by("nnsight"))
    if outline.quantised is not None:
        raise ModelError(
            f"{outline.name} holds quantised weights ({outline.quantised}), "
            "which no backend supports.",
            "Use the model that it was made from, or one that was saved without quantisation.",
        )
    if is_spread:
        _require_spreadable(outline, backend)
    kind, reason = _select_backend(outline, backend, free, is_spread=is_spread)
    return BackendChoice(kind, reason, outline.as_held_by(kind))


def _require_spreadable(outline: Outline, backend: BackendName) -> None:
    """Check that a model can be spread over devices with a backend.

    Raises:
        ModelError: if it cannot.
    """
    if outline.architecture == NATIVE_ARCHITECTURE:
        raise ModelError(
            f"{outline.name} is in TransformerLens's own format, which cannot be spread.",
            "Leave out device_map: such models are small.",
        )
    if "nnsight" not in outline.backends:
        raise ModelError(
            "Only nnsight runs a model that is spread over devices, and it does not support "
            f"{outline.architecture}. {outline.unknown}",
            "Leave out device_map.",
        )
    if backend == "transformerlens":
        raise ModelError(
            "The transformerlens backend cannot run a model that is spread over devices: "
            "it takes weights apart, and must hold them in memory for that.",
            "Use backend nnsight or auto, or leave out device_map.",
        )


def _select_backend(
    outline: Outline, backend: BackendName, free: int, *, is_spread: bool
) -> tuple[BackendKind, str]:
    """Return the backend of a model that is loaded here, and the reason for it."""
    supported = outline.resolve_backend(backend)
    if backend != "auto":
        return supported, "it was asked for"
    if is_spread:
        return "nnsight", SPREAD_REASON
    if outline.backends == (supported,):
        return supported, f"only {BACKEND_LABELS[supported]} supports {outline.architecture}"
    limit = f"{MAX_TRANSFORMERLENS_PARAMETERS / 1e9:.0f} billion parameters"
    if outline.n_params > MAX_TRANSFORMERLENS_PARAMETERS:
        size = f"{outline.n_params / 1e9:.1f} billion parameters"
        return "nnsight", f"the model has {size}, and TransformerLens is used for up to {limit}"
    needed = outline.as_held_by("transformerlens").weights_bytes
    if outline.as_held_by("nnsight").weights_bytes <= free < needed:
        return (
            "nnsight",
            f"TransformerLens would hold {format_bytes(outline.copied_bytes)} of weights twice, "
            f"and only {format_bytes(free)} are free",
        )
    return "transformerlens", f"the default for models of up to {limit}"


def require_remote_backend(backend: str) -> None:
    """Check that a backend can run remote models.

    Raises:
        ModelError: if it is TransformerLens.
    """
    if backend == "transformerlens":
        raise ModelError(
            "TransformerLens runs no remote model: NDIF serves nnsight.",
            "Use backend nnsight, or leave it out.",
        )


def require_hub_model(name: str, revision: str | None) -> None:
    """Check that a model comes from the Hugging Face hub.

    Raises:
        ModelError: if it does not.
    """
    if revision is None:
        raise ModelError(
            f"NDIF runs models of the hub, and {name!r} is not one.",
            "Give owner/name, or load_model(…, remote='local') to simulate the server here.",
        )


def require_tokenizer(name: str, has_tokenizer: bool) -> None:
    """Check that a model has the tokenizer that nnsight's remote models need.

    Raises:
        ModelError: if it has none.
    """
    if not has_tokenizer:
        raise ModelError(
            f"{name} has no tokenizer, and nnsight's remote models need one.",
            "Use a model that has one.",
        )


def estimate_load_memory(
    outline: Outline, placement: Placement | None, *, remote: bool
) -> tuple[int, int]:
    """Return the most bytes in use while a model is loaded, and the bytes it takes afterwards.

    A model that is spread over devices takes no more than its placement allows.
    """
    if remote:
        return 0, 0
    peak = outline.loading_bytes
    if placement is not None:
        peak = min(peak, sum(placement.allowed_bytes.values()))
    return peak, min(outline.weights_bytes, peak)


def require_fit(choice: BackendChoice, device: str, free: int) -> None:
    """Check that the weights fit into the free memory of the device.

    Raises:
        ModelError: if they do not; the message gives the numbers and lists what would fit.
    """
    misfit = describe_misfit(choice, device, free)
    if misfit is not None:
        raise misfit


def describe_misfit(choice: BackendChoice, device: str, free: int) -> ModelError | None:
    """Return the error for weights that do not fit, with the numbers and what would fit.

    The result is None if the weights fit.
    """
    outline = choice.outline
    needed = outline.weights_bytes
    if needed <= free:
        return None
    remedies = _suggest_dtype(outline, free)
    if "nnsight" in outline.backends and outline.architecture != NATIVE_ARCHITECTURE:
        remedies.append(
            "device_map auto (--device-map auto: spread over this machine's devices, memory and "
            "disk; slow)"
        )
    if "nnsight" in outline.backends and outline.revision is not None and outline.tokenizer:
        remedies.append("remote (--remote: run it on NDIF)")
    return ModelError(
        f"{outline.name} does not fit: its {outline.n_params:,} parameters take "
        f"{format_bytes(needed)} in {outline.dtype} with {choice.backend}, "
        f"and {format_bytes(free)} are free on {device}.",
        f"Free memory, or choose {', or '.join(remedies) or 'a smaller model'}.",
    )


def _suggest_dtype(outline: Outline, free: int) -> list[str]:
    """Return the most exact smaller dtype in which the weights fit, with their size, if any."""
    for dtype in SUGGESTED_DTYPES:
        size = outline.weights_bytes * bytes_per_number(dtype) // outline.itemsize
        if bytes_per_number(dtype) < outline.itemsize and size <= free:
            return [f"dtype {dtype} ({format_bytes(size)})"]
    return []


def format_bytes(count: int) -> str:
    """Write a size for people, in GB or MB (powers of ten)."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
