"""Where a sparse autoencoder was trained: TransformerLens's hook points as sites of ours, and whether the model has them.

Transcoders read one activation and write another (the MLP's output from its input), so that a dictionary has two places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from discovery.backends.base import Backend
from discovery.errors import FeatureError, SiteError
from discovery.sites import ActivationKind, Site

HOOK_PATTERN = re.compile(r"blocks\.(\d+)\.(?:attn\.)?hook_(\w+)")
MODULE_PATTERN = re.compile(
    r"(?:\w+\.)*(?:h|layers|blocks)\.(\d+)"
)  # a Hugging Face module, whose output is the residual stream behind it
NORMALISED_HOOK_PATTERN = re.compile(r"blocks\.\d+\.(?:ln\d\.hook_normalized|mlp\.hook_in)")
MLP_INPUT = "mlp_in"  # the residual stream that the MLP's norm reads
HEAD_SITES = ("z", "q", "k", "v")
SUPPORTED_HOOKS = "blocks.N.hook_resid_pre, …resid_mid, …resid_post, …attn_out, …mlp_out, blocks.N.attn.hook_z, …q, …k, …v"
MODEL_ALIASES = {"gpt2-small": "gpt2"}  # TransformerLens's name for it


def parse_hook(hook: str | None) -> Site:
    """The site that a hook point is.

    Raises:
        FeatureError: a hook point that is no activation we can read and replace.
    """
    if hook and (layer := MODULE_PATTERN.fullmatch(hook)):
        return Site("resid_post", int(layer[1]))
    if hook and NORMALISED_HOOK_PATTERN.fullmatch(hook):
        raise FeatureError(
            f"The SAE reads {hook}, the stream behind a norm, whose scale depends on how the weights were folded when it was trained.",
            "Use a dictionary that reads the residual stream itself (hook_mlp_in, hook_resid_mid), attn_out, mlp_out or heads.",
        )
    found = HOOK_PATTERN.fullmatch(hook or "")
    kind = "resid_mid" if found and found[2] == MLP_INPUT else found and found[2]
    if not found or kind not in get_args(ActivationKind) or kind == "pattern":
        given = (
            f"The SAE's hook point {hook!r} cannot be read and replaced here."
            if hook
            else "The SAE's cfg.json names no hook point."
        )
        raise FeatureError(given, f"Use an SAE of {SUPPORTED_HOOKS}.")
    return Site(kind, int(found[1]))  # type: ignore[arg-type]  # checked above


def parse_site(text: str) -> Site:
    """The site that a user names: "resid_post.2", or the hook point "blocks.2.hook_resid_post".

    Raises:
        FeatureError: for anything else.
    """
    kind, _, layer = text.strip().partition(".")
    if kind in get_args(ActivationKind) and re.fullmatch(r"\d{1,6}", layer):
        return Site(kind, int(layer))  # type: ignore[arg-type]  # checked above
    try:
        return parse_hook(text.strip())
    except FeatureError:
        raise FeatureError(
            f"{text!r} is no place to read.",
            f"Write a site and its layer, as in resid_pre.2, or a hook point: {SUPPORTED_HOOKS}.",
        ) from None


def format_hook(site: Site) -> str:
    """The hook point that a site is."""
    return f"blocks.{site.layer}.{'attn.' if site.kind in HEAD_SITES else ''}hook_{site.kind}"


def site_width(model: Backend, site: Site) -> int:
    """How many numbers a site has at one position."""
    info = model.info
    if site.kind not in HEAD_SITES:
        return info.d_model
    return info.d_head * (info.n_heads if site.kind in "qz" else info.n_kv_heads)


def require_sae_site(model: Backend, site: Site, width: int, what: str) -> None:
    """Check that the model has a site of this width.

    Raises:
        FeatureError: says what the SAE wants and what the model has.
    """
    try:
        model.require_site(site)
    except SiteError as fault:
        raise FeatureError(
            f"The SAE {what} {site.kind} of layer {site.layer}, which this model lacks: {fault.cause}",
            fault.cure,
        ) from None
    if (own := site_width(model, site)) != width:
        raise FeatureError(
            f"The SAE {what} {site.kind} with {width} numbers a position, and this model has {own} there.",
            "Load the model that the SAE was trained on.",
        )


def compare_with_model(
    model: Backend, metadata: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """(why the SAE belongs to another model, or None; what cannot be told, or None).

    A fingerprint of the weights settles it; of two hub names, the part behind the owner does; a directory may have any name.
    """
    info = model.info
    if (
        weights := metadata.get("model_fingerprint")
    ) is not None and info.remote is None:  # a server's weights were not seen
        same = weights == info.fingerprint
        return (
            None
            if same
            else f"it was trained on other weights ({str(weights)[:12]}…; this model's are {info.fingerprint[:12]}…)"
        ), None
    trained_on = metadata.get("model_name")
    if not trained_on:
        return None, "the SAE does not say which model it was trained on"
    if _bare(str(trained_on)) == _bare(info.name):
        return None, None
    if info.revision is not None:
        return f"it was trained on {trained_on!r}, and this is {info.name!r}", None
    return (
        None,
        f"the SAE was trained on {trained_on!r}; whether {info.name!r} is that model, its files do not tell",
    )


def _bare(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return MODEL_ALIASES.get(last, last)
