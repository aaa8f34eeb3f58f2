"""Which engine runs a model, why, and whether it fits: decided from its outline, before any weight is read.

TransformerLens serves models up to a few billion parameters and holds some weights twice; beyond that, and for a model that is spread
over devices, nnsight traces the very module that transformers built. The science is the same on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from discovery.backends.hardware.placement import Spread
from discovery.backends.info import Width, width_of
from discovery.backends.loading.outline import ENGINES, Engine, Outline
from discovery.errors import ModelError
from discovery.sites import BackendName

ELSEWHERE = "only it runs a model elsewhere"
NATIVE_MODEL = "NativeModel"  # of a checkpoint in TransformerLens's own format
LARGE = 2_000_000_000  # parameters; where the field's guides put the border


@dataclass(frozen=True)
class Choice:
    """An engine.

    Attributes:
        reason: why it, as a clause.
        found: the model as this engine would hold it.
    """

    engine: Engine
    reason: str
    found: Outline


def choose(found: Outline, backend: BackendName, free: int, *, spread: bool = False, remote: bool = False) -> Choice:
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
        require_remote(backend)
        require_hub(found.name, found.revision)
        require_tokenizer(found.name, found.tokenizer)
        return Choice(found.engine("nnsight"), ELSEWHERE, found.on("nnsight"))
    if found.quantised is not None:
        cause = f"{found.name} holds quantised weights ({found.quantised}), which no backend takes apart."
        raise ModelError(cause, "Use the model that it was made from, or one that was saved without quantisation.")
    if spread and found.architecture == NATIVE_MODEL:
        cause = f"{found.name} is in TransformerLens's own format, which is not spread."
        raise ModelError(cause, "Leave out device_map: such models are small.")
    if spread and "nnsight" not in found.backends:
        cause = f"Only nnsight runs a model that is spread over devices, and {found.architecture} is not for it. {found.unknown}"
        raise ModelError(cause, "Leave out device_map.")
    if spread and backend == "transformerlens":
        cause = "The transformerlens backend does not run a model that is spread over devices: it takes weights apart that it must hold."
        raise ModelError(cause, "Use backend nnsight or auto, or leave out device_map.")
    engine, reason = _chosen(found, found.engine(backend), backend, free, spread)
    return Choice(engine, reason, found.on(engine))


def require_remote(backend: str) -> None:
    """Check that a backend runs models elsewhere.

    Raises:
        ModelError: for TransformerLens.
    """
    if backend == "transformerlens":
        raise ModelError("TransformerLens runs no remote model: NDIF serves nnsight.", "Use backend nnsight, or leave it out.")


def require_hub(name: str, revision: str | None) -> None:
    """Check that a model is one of the hub.

    Raises:
        ModelError: where it is not.
    """
    if revision is None:
        cause = f"NDIF runs models of the hub, and {name!r} is not one."
        raise ModelError(cause, "Give owner/name, or load_model(…, remote='local') to simulate it here.")


def require_tokenizer(name: str, there: bool) -> None:
    """Check that a model has what nnsight's remote models need.

    Raises:
        ModelError: where it has not.
    """
    if not there:
        raise ModelError(f"{name} has no tokenizer, and nnsight's remote models need one.", "Use a model that has one.")


def taken(found: Outline, spread: Spread | None, *, remote: bool) -> tuple[int, int]:
    """Bytes of memory that a model takes at most while it is loaded, and from then on. What is spread takes no more than its room."""
    if remote:
        return 0, 0
    most = found.loading_bytes if spread is None else min(found.loading_bytes, sum(spread.room.values()))
    return most, min(found.weights_bytes, most)


def _chosen(found: Outline, known: Engine, backend: BackendName, free: int, spread: bool) -> tuple[Engine, str]:
    if backend != "auto":
        return known, "it was asked for"
    if spread:
        return "nnsight", "only it runs a model that is spread over devices"
    if found.backends == (known,):
        return known, f"only {ENGINES[known]} knows {found.architecture}"
    if found.n_params > LARGE:
        return "nnsight", f"the model has {found.n_params / 1e9:.1f} billion parameters, and TransformerLens is for up to {LARGE / 1e9:.0f}"
    if found.on("nnsight").weights_bytes <= free < found.on("transformerlens").weights_bytes:
        twice = gigabytes(found.copied_bytes)
        return "nnsight", f"TransformerLens would hold {twice} of weights twice, and only {gigabytes(free)} are free"
    return "transformerlens", f"the default for models of up to {LARGE / 1e9:.0f} billion parameters"


def require_room(choice: Choice, device: str, free: int) -> None:
    """Check that the weights fit where the model is to run.

    Raises:
        ModelError: gives the numbers, and what would fit.
    """
    trouble = unfit(choice, device, free)
    if trouble is not None:
        raise trouble


def unfit(choice: Choice, device: str, free: int) -> ModelError | None:
    """Why a model's weights do not fit into what is free, with the numbers and what would; None where they do."""
    found, needed = choice.found, choice.found.weights_bytes
    if needed <= free:
        return None
    narrower = [width for width in get_args(Width) if width_of(width) < found.width]
    smaller = {width: needed * width_of(width) // found.width for width in narrower}
    fits = [width for width in ("float32", "bfloat16") if width in smaller and smaller[width] <= free]
    ways = [f"dtype {fits[0]} ({gigabytes(smaller[fits[0]])})"] if fits else []
    ways += (
        ["device_map auto (--device-map auto: spread over this machine's devices, memory and disk; slow)"]
        if "nnsight" in found.backends and found.architecture != NATIVE_MODEL
        else []
    )
    elsewhere = found.revision is not None and "nnsight" in found.backends and found.tokenizer
    ways += ["remote (--remote: run it on NDIF)"] if elsewhere else []
    return ModelError(
        f"{found.name} does not fit: its {found.n_params:,} parameters take {gigabytes(needed)} in {found.dtype} with {choice.engine}, "
        f"and {gigabytes(free)} are free on {device}.",
        f"Free memory, or choose {', or '.join(ways) or 'a smaller model'}.",
    )


def gigabytes(count: int) -> str:
    """For people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
