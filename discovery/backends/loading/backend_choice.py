"""Which engine runs a model, why, and whether it fits: decided from its outline, before any weight is read.

TransformerLens serves models up to a few billion parameters and holds some weights twice; beyond that, and for a model that is spread
over devices, nnsight traces the very module that transformers built. The science is the same on both.
"""

from __future__ import annotations

from dataclasses import dataclass

from discovery.backends.hardware.placement import Placement
from discovery.backends.info import bytes_per_number
from discovery.backends.loading.outline import BACKEND_LABELS, Engine, Outline
from discovery.errors import ModelError
from discovery.sites import DTYPE_NAMES, BackendName

REMOTE_REASON = "only it runs a model elsewhere"
NATIVE_ARCHITECTURE = "NativeModel"  # of a checkpoint in TransformerLens's own format
MAX_TRANSFORMERLENS_PARAMETERS = (
    2_000_000_000  # parameters; where the field's guides put the border
)


@dataclass(frozen=True)
class BackendChoice:
    """An engine.

    Attributes:
        reason: why it, as a clause.
        found: the model as this engine would hold it.
    """

    backend: Engine
    reason: str
    outline: Outline


def choose_backend(
    found: Outline, backend: BackendName, free: int, *, spread: bool = False, remote: bool = False
) -> BackendChoice:
    """Choose an engine for a model.

    Args:
        backend: what was asked for.
        free: bytes that the weights may take.
        spread: the weights are to be spread over devices. remote: it is to run elsewhere.

    Raises:
        ModelError: where the backend that is asked for does not know the model, or cannot have it spread or elsewhere, or where no
            backend runs its weights here.
    """
    if remote:
        require_remote_backend(backend)
        require_hub_model(found.name, found.revision)
        require_tokenizer(found.name, found.tokenizer)
        return BackendChoice(
            found.resolve_backend("nnsight"), REMOTE_REASON, found.as_held_by("nnsight")
        )
    if found.quantised is not None:
        cause = f"{found.name} holds quantised weights ({found.quantised}), which no backend takes apart."
        raise ModelError(
            cause,
            "Use the model that it was made from, or one that was saved without quantisation.",
        )
    if spread and found.architecture == NATIVE_ARCHITECTURE:
        cause = f"{found.name} is in TransformerLens's own format, which is not spread."
        raise ModelError(cause, "Leave out device_map: such models are small.")
    if spread and "nnsight" not in found.backends:
        cause = f"Only nnsight runs a model that is spread over devices, and {found.architecture} is not for it. {found.unknown}"
        raise ModelError(cause, "Leave out device_map.")
    if spread and backend == "transformerlens":
        cause = "The transformerlens backend does not run a model that is spread over devices: it takes weights apart that it must hold."
        raise ModelError(cause, "Use backend nnsight or auto, or leave out device_map.")
    engine, reason = _select_backend(found, found.resolve_backend(backend), backend, free, spread)
    return BackendChoice(engine, reason, found.as_held_by(engine))


def require_remote_backend(backend: str) -> None:
    """Check that a backend runs models elsewhere.

    Raises:
        ModelError: for TransformerLens.
    """
    if backend == "transformerlens":
        raise ModelError(
            "TransformerLens runs no remote model: NDIF serves nnsight.",
            "Use backend nnsight, or leave it out.",
        )


def require_hub_model(name: str, revision: str | None) -> None:
    """Check that a model is one of the hub.

    Raises:
        ModelError: where it is not.
    """
    if revision is None:
        cause = f"NDIF runs models of the hub, and {name!r} is not one."
        raise ModelError(
            cause, "Give owner/name, or load_model(…, remote='local') to simulate it here."
        )


def require_tokenizer(name: str, has_tokenizer: bool) -> None:
    """Check that a model has what nnsight's remote models need.

    Raises:
        ModelError: where it has not.
    """
    if not has_tokenizer:
        raise ModelError(
            f"{name} has no tokenizer, and nnsight's remote models need one.",
            "Use a model that has one.",
        )


def estimate_load_memory(
    found: Outline, spread: Placement | None, *, remote: bool
) -> tuple[int, int]:
    """Bytes of memory that a model takes at most while it is loaded, and from then on. What is spread takes no more than its room."""
    if remote:
        return 0, 0
    most = (
        found.loading_bytes
        if spread is None
        else min(found.loading_bytes, sum(spread.allowed_bytes.values()))
    )
    return most, min(found.weights_bytes, most)


def _select_backend(
    found: Outline, first_backend: Engine, backend: BackendName, free: int, spread: bool
) -> tuple[Engine, str]:
    if backend != "auto":
        return first_backend, "it was asked for"
    if spread:
        return "nnsight", "only it runs a model that is spread over devices"
    if found.backends == (first_backend,):
        return first_backend, f"only {BACKEND_LABELS[first_backend]} knows {found.architecture}"
    if found.n_params > MAX_TRANSFORMERLENS_PARAMETERS:
        return (
            "nnsight",
            f"the model has {found.n_params / 1e9:.1f} billion parameters, and TransformerLens is for up to {MAX_TRANSFORMERLENS_PARAMETERS / 1e9:.0f}",
        )
    if (
        found.as_held_by("nnsight").weights_bytes
        <= free
        < found.as_held_by("transformerlens").weights_bytes
    ):
        twice = format_bytes(found.copied_bytes)
        return (
            "nnsight",
            f"TransformerLens would hold {twice} of weights twice, and only {format_bytes(free)} are free",
        )
    return (
        "transformerlens",
        f"the default for models of up to {MAX_TRANSFORMERLENS_PARAMETERS / 1e9:.0f} billion parameters",
    )


def require_fit(choice: BackendChoice, device: str, free: int) -> None:
    """Check that the weights fit where the model is to run.

    Raises:
        ModelError: gives the numbers, and what would fit.
    """
    trouble = describe_misfit(choice, device, free)
    if trouble is not None:
        raise trouble


def describe_misfit(choice: BackendChoice, device: str, free: int) -> ModelError | None:
    """Why a model's weights do not fit into what is free, with the numbers and what would; None where they do."""
    found, needed = choice.outline, choice.outline.weights_bytes
    if needed <= free:
        return None
    narrower = [width for width in DTYPE_NAMES if bytes_per_number(width) < found.itemsize]
    smaller = {width: needed * bytes_per_number(width) // found.itemsize for width in narrower}
    fits = [
        width for width in ("float32", "bfloat16") if width in smaller and smaller[width] <= free
    ]
    ways = [f"dtype {fits[0]} ({format_bytes(smaller[fits[0]])})"] if fits else []
    ways += (
        [
            "device_map auto (--device-map auto: spread over this machine's devices, memory and disk; slow)"
        ]
        if "nnsight" in found.backends and found.architecture != NATIVE_ARCHITECTURE
        else []
    )
    elsewhere = found.revision is not None and "nnsight" in found.backends and found.tokenizer
    ways += ["remote (--remote: run it on NDIF)"] if elsewhere else []
    return ModelError(
        f"{found.name} does not fit: its {found.n_params:,} parameters take {format_bytes(needed)} in {found.dtype} with {choice.backend}, "
        f"and {format_bytes(free)} are free on {device}.",
        f"Free memory, or choose {', or '.join(ways) or 'a smaller model'}.",
    )


def format_bytes(count: int) -> str:
    """For people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
