"""`load_sae`: a SAELens directory or a hub release becomes a dictionary that fits the model.

from discovery import load_model
from discovery.features import load_sae
sae = load_sae("saes/layer8", load_model("bundled"))              # cfg.json and sae_weights.safetensors
sae = load_sae("sae-resid-pre-2-bundled-20261120-153012-a1b2", load_model("bundled"))   # of a finished training
sae = load_sae("gpt2-small-res-jb/blocks.8.hook_resid_pre", load_model("gpt2"))   # release/sae_id
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from discovery.backends.base import Backend
from discovery.errors import FeatureError
from discovery.features.directory import (
    BUNDLED,
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_directory,
    short_name,
)
from discovery.features.hooks import HEAD_SITES, compare_with_model, parse_hook, require_sae_site
from discovery.features.sae import SAE
from discovery.store import default_runs_dir

UNFOLDED_NORMS = (
    "expected_average_only_in",
    "covariance_whitening",
)  # norms that SAELens folds into weights, and does not apply


def load_sae(
    source: str | Path, model: Backend, *, runs_dir: Path | str | None = None, force: bool = False
) -> SAE:
    """Open a sparse autoencoder for a model.

    Args:
        source: "bundled" (of the bundled model), a directory that SAELens's save_model or `train_sae` wrote (or the folder, or the id, of
            its run), or "release/sae_id" of SAELens's hub list (or of any hub repository "owner/name/folder").
        runs_dir: in which a run's id is looked up; None is the default.
        force: take one that was trained on another model of the same shape, with a warning in place of the refusal.

    Raises:
        FeatureError: it cannot be loaded, or its hook point, width or model do not fit; says why and what to do.
    """
    directory = find_directory(source, runs_dir)
    if directory is not None:
        module, said = _from_directory(directory, model.info.device)
    elif str(source).startswith((".", "/", "~")) or str(source).count("/") < 1:
        raise FeatureError(
            f"{str(source)!r} is no directory, no run in {runs_dir or default_runs_dir()}, and no release with an SAE's id.",
            f"Give the directory that holds {CONFIG_FILE} and {WEIGHTS_FILE}, the id of a finished training (train_sae, circuit-scout sae train), "
            "or release/sae_id, as in gpt2-small-res-jb/blocks.8.hook_resid_pre.",
        )
    else:
        module, said = _from_hub(str(source), model.info.device)
    return _check_and_wrap(module, str(source), model, force, said)


def open_sae(
    sae: SAE | str | Path | None, model: Backend, runs_dir: Path | str | None = None
) -> SAE:
    """A loaded dictionary if the model has its places; else the one of that name, or the bundled one where None.

    Raises:
        FeatureError: as in `load_sae`.
    """
    if not isinstance(sae, SAE):
        return load_sae(BUNDLED if sae is None else sae, model, runs_dir=runs_dir)
    require_sae_site(model, sae.reads, sae.d_in, "reads")
    require_sae_site(model, sae.writes, sae.d_out, "writes")
    return sae


def _check_and_wrap(
    module: Any, name: str, model: Backend, force: bool, said: tuple[str, ...]
) -> SAE:
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
            f"The bundled SAE is of the bundled model, and does not belong to {model.info.name!r}: {wrong}.",
            "Give an SAE of this model, or train one (train_sae, or circuit-scout sae train).",
        )
    require_sae_site(model, reads, int(module.cfg.d_in), "reads")
    require_sae_site(model, writes, int(getattr(module.cfg, "d_out", module.cfg.d_in)), "writes")
    if wrong and not force:
        raise FeatureError(
            f"The SAE does not belong to this model: {wrong}.",
            "Load the model it was trained on, or train one for this model (train_sae, or circuit-scout sae train); in Python, "
            "load_sae(..., force=True) takes it all the same.",
        )
    notes = [*said, *(f"this may be the wrong SAE: {why}" for why in (wrong, unknown) if why)]
    if module.cfg.normalize_activations in UNFOLDED_NORMS:
        notes.append(
            f"it was trained with {module.cfg.normalize_activations}, whose factor its files lack: check its reconstruction"
        )
    settings = metadata.get("model_from_pretrained_kwargs") or {}
    asked = bool(settings.get("center_writing_weights"))
    centred = asked and reads == writes and reads.kind not in HEAD_SITES
    if asked and not centred:
        notes.append(
            "it was trained on a model with centred writing weights, which this one does not have: check how well it reconstructs"
        )
    module.turn_off_forward_pass_hook_z_reshaping()  # heads are laid side by side here
    module.eval().requires_grad_(False)
    return SAE(
        module, name, _fingerprint(module), reads, writes, centred=centred, warnings=tuple(notes)
    )


def _from_directory(directory: Path, device: str) -> tuple[Any, tuple[str, ...]]:
    with (
        _capture_warnings() as said,
        _as_feature_error(
            f"{short_name(str(directory))!r} cannot be loaded as an SAE",
            "Save it again with SAE.save_model.",
        ),
    ):
        import sae_lens

        module = sae_lens.SAE.load_from_disk(directory, device=device)
    return module, tuple(said)


def _from_hub(source: str, device: str) -> tuple[Any, tuple[str, ...]]:
    cure = "Check the name, the connection and HF_HUB_OFFLINE, or download the SAE and give its directory."
    with (
        _capture_warnings() as said,
        _as_feature_error(f"The SAE {source!r} could not be had from the hub", cure),
    ):
        import sae_lens

        release, sae_id = _split(source)
        module = sae_lens.SAE.from_pretrained(release, sae_id, device=device)
    return module, tuple(said)


def _split(source: str) -> tuple[str, str]:
    """(release, SAE id): the longest release in SAELens's list that begins the name, else a hub repository owner/name."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    parts = source.split("/")
    known = get_pretrained_saes_directory()
    for count in range(len(parts) - 1, 0, -1):
        if (release := "/".join(parts[:count])) in known:
            return release, "/".join(parts[count:])
    return (
        ("/".join(parts[:2]), "/".join(parts[2:]) or ".")
        if len(parts) > 2
        else (parts[0], parts[1])
    )


@contextlib.contextmanager
def _capture_warnings() -> Iterator[list[str]]:
    """SAELens and what it imports print and warn: stdout is not theirs, and warnings about the SAE are kept."""
    said: list[str] = []
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    for warning in caught:
        text = " ".join(str(warning.message).split())
        if (
            issubclass(warning.category, UserWarning) and "model_from_pretrained_kwargs" not in text
        ):  # those are looked at in `_check_and_wrap`
            said.append(text)


@contextlib.contextmanager
def _as_feature_error(what: str, cure: str) -> Iterator[None]:
    """SAELens, safetensors and the hub say in many ways that they cannot give an SAE."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        OSError,
        ImportError,
        SafetensorError,
    ) as fault:
        raise FeatureError(
            f"{what} ({type(fault).__name__}).", cure, detail=_first_lines(fault)
        ) from fault


def _first_lines(fault: Exception) -> str:
    """The first, and where that only announces what is wrong, the second too."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()] or [
        type(fault).__name__
    ]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")


def _fingerprint(module: Any) -> str:
    whole = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        whole.update(name.encode())
        whole.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return whole.hexdigest()
