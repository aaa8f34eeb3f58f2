"""`load_sae`: opens a SAELens directory or a hub release as an SAE that fits the model.

from discovery import load_model
from discovery.features import load_sae
bundled = load_model("bundled")
sae = load_sae("saes/layer8", bundled)           # cfg.json and sae_weights.safetensors
sae = load_sae("sae-resid-pre-2-bundled-20261120-153012-a1b2", bundled)   # a training's id
gpt2 = load_model("gpt2")
sae = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre", gpt2)   # release/sae_id
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from discovery.backends.base import Backend
from discovery.backends.loading.source import BUNDLED
from discovery.errors import FeatureError
from discovery.features.directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_directory,
    short_name,
)
from discovery.features.hooks import HEAD_SITES, compare_with_model, parse_hook, require_sae_site
from discovery.features.sae import SAE
from discovery.sites import Site
from discovery.store import default_runs_dir

# SAELens folds the factors of these normalisations into weights, and does not apply them itself.
UNFOLDED_NORMS = ("expected_average_only_in", "covariance_whitening")

# What SAELens, safetensors and the hub raise if they cannot load an SAE.
LOAD_FAULTS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    OSError,
    ImportError,
    SafetensorError,
)


def load_sae(
    source: str | Path, model: Backend, *, runs_dir: Path | str | None = None, force: bool = False
) -> SAE:
    """Open a sparse autoencoder for a model.

    Args:
        source: "bundled" for the bundled model's SAE; a directory that SAELens's save_model or
            `train_sae` wrote; the folder or the id of a training's run; or "release/sae_id" from
            SAELens's list of releases, or "owner/name/folder" of any hub repository.
        runs_dir: where a run's id is looked up; None is the default runs directory.
        force: accept an SAE of another model with the same shape, with a warning instead of an
            error.

    Raises:
        FeatureError: if the SAE cannot be loaded, or if its hook point, width or model does not
        fit.
    """
    directory = find_directory(source, runs_dir)
    if directory is not None:
        module, notes = _load_from_directory(directory, model.info.device)
    elif str(source).startswith((".", "/", "~")) or str(source).count("/") < 1:
        raise FeatureError(
            f"{str(source)!r} is no directory, no run in {runs_dir or default_runs_dir()}, and no "
            "release with an SAE's id.",
            f"Give the directory that holds {CONFIG_FILE} and {WEIGHTS_FILE}, the id of a finished "
            "training (train_sae, circuit-scout sae train), or release/sae_id, as in "
            "gpt2-small-res-jb/blocks.8.hook_resid_pre.",
        )
    else:
        module, notes = _load_from_hub(str(source), model.info.device)
    return _check_and_wrap(module, str(source), model, force, notes)


def open_sae(
    sae: SAE | str | Path | None, model: Backend, runs_dir: Path | str | None = None
) -> SAE:
    """Return a loaded SAE if it fits the model, or load the one that is named.

    Args:
        sae: None is the bundled SAE.

    Raises:
        FeatureError: as in `load_sae`.
    """
    if not isinstance(sae, SAE):
        return load_sae(BUNDLED if sae is None else sae, model, runs_dir=runs_dir)
    require_sae_site(model, sae.reads, sae.d_in, "reads")
    require_sae_site(model, sae.writes, sae.d_out, "writes")
    return sae


@contextlib.contextmanager
def capture_saelens_output() -> Iterator[list[str]]:
    """Keep what SAELens and its imports print off stdout, and collect their warnings.

    The list fills when the context ends. A warning about `model_from_pretrained_kwargs` is left
    out, because `load_sae` looks at these settings itself.
    """
    texts: list[str] = []
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    for warning in caught:
        text = " ".join(str(warning.message).split())
        if issubclass(warning.category, UserWarning) and "model_from_pretrained_kwargs" not in text:
            texts.append(text)


def _check_and_wrap(
    module: Any, name: str, model: Backend, force: bool, load_warnings: tuple[str, ...]
) -> SAE:
    """Check that a SAELens module fits the model, and wrap it."""
    metadata = module.cfg.metadata
    reads = parse_hook(metadata.get("hook_name"))
    writes = parse_hook(metadata.get("hook_name_out")) if hasattr(module.cfg, "d_out") else reads
    if metadata.get("hook_head_index") is not None:
        raise FeatureError(
            f"The SAE reads head {metadata.get('hook_head_index')} alone (hook_head_index).",
            "Use an SAE of all heads of a layer.",
        )
    wrong, unknown = compare_with_model(model, metadata.to_dict())
    if wrong and name == BUNDLED and not force:
        raise FeatureError(
            "The bundled SAE is of the bundled model, and does not belong to "
            f"{model.info.name!r}: {wrong}.",
            "Give an SAE of this model, or train one (train_sae, or circuit-scout sae train).",
        )
    require_sae_site(model, reads, int(module.cfg.d_in), "reads")
    require_sae_site(model, writes, int(getattr(module.cfg, "d_out", module.cfg.d_in)), "writes")
    if wrong and not force:
        raise FeatureError(
            f"The SAE does not belong to this model: {wrong}.",
            "Load the model that it was trained on, or train an SAE for this model (train_sae, or "
            "circuit-scout sae train). In Python, load_sae(..., force=True) loads it nevertheless.",
        )
    doubts = [f"this may be the wrong SAE: {why}" for why in (wrong, unknown) if why]
    centred, norm_warnings = _normalisation(module.cfg, reads, writes)
    module.turn_off_forward_pass_hook_z_reshaping()  # SAE lays heads side by side itself
    module.eval().requires_grad_(False)
    return SAE(
        module,
        name,
        _fingerprint(module),
        reads,
        writes,
        centred=centred,
        warnings=(*load_warnings, *doubts, *norm_warnings),
    )


def _normalisation(cfg: Any, reads: Site, writes: Site) -> tuple[bool, list[str]]:
    """Return whether the SAE reads a centred residual stream, and warnings about its norms."""
    texts = []
    if cfg.normalize_activations in UNFOLDED_NORMS:
        texts.append(
            f"it was trained with {cfg.normalize_activations}, whose factor its files lack: check "
            "its reconstruction"
        )
    settings: Mapping[str, Any] = cfg.metadata.get("model_from_pretrained_kwargs") or {}
    has_centred_weights = bool(settings.get("center_writing_weights"))
    centred = has_centred_weights and reads == writes and reads.kind not in HEAD_SITES
    if has_centred_weights and not centred:
        texts.append(
            "it was trained on a model with centred writing weights, which this one does not have: "
            "check how well it reconstructs"
        )
    return centred, texts


def _load_from_directory(directory: Path, device: str) -> tuple[Any, tuple[str, ...]]:
    """Return the SAELens module, and the warnings that came with it."""
    name = short_name(str(directory))
    with (
        capture_saelens_output() as texts,
        _raise_feature_error(
            f"{name!r} cannot be loaded as an SAE", "Save it again with SAE.save_model."
        ),
    ):
        import sae_lens

        module = sae_lens.SAE.load_from_disk(directory, device=device)
    return module, tuple(texts)


def _load_from_hub(source: str, device: str) -> tuple[Any, tuple[str, ...]]:
    """Return the SAELens module, and the warnings that came with it."""
    with (
        capture_saelens_output() as texts,
        _raise_feature_error(
            f"The SAE {source!r} could not be loaded from the hub",
            "Check the name, the connection and HF_HUB_OFFLINE, or download the SAE and give its "
            "directory.",
        ),
    ):
        import sae_lens

        release, sae_id = _split_release(source)
        module = sae_lens.SAE.from_pretrained(release, sae_id, device=device)
    return module, tuple(texts)


def _split_release(source: str) -> tuple[str, str]:
    """Split a name into release and SAE id.

    The release is the longest one in SAELens's list with which the name begins. If there is none,
    it is a hub repository owner/name.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    parts = source.split("/")
    releases = get_pretrained_saes_directory()
    for count in range(len(parts) - 1, 0, -1):
        if (release := "/".join(parts[:count])) in releases:
            return release, "/".join(parts[count:])
    if len(parts) > 2:
        return "/".join(parts[:2]), "/".join(parts[2:]) or "."
    return parts[0], parts[1]


@contextlib.contextmanager
def _raise_feature_error(problem: str, cure: str) -> Iterator[None]:
    """Turn the many errors of a library that cannot load an SAE into a FeatureError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except LOAD_FAULTS as fault:
        raise FeatureError(
            f"{problem} ({type(fault).__name__}).", cure, detail=_first_lines(fault)
        ) from fault


def _first_lines(fault: Exception) -> str:
    """Return the first line of an error, and the second too if the first ends with a colon."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    lines = lines or [type(fault).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")


def _fingerprint(module: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
