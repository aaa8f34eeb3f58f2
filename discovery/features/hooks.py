"""Where an SAE was trained: TransformerLens's hook points as sites, and whether a model has them.

An SAE reads and writes the same site. A transcoder reads one activation and writes another, such as
the MLP's output from its input, so it has two sites.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from discovery.backends.base import Backend
from discovery.errors import FeatureError, SiteError
from discovery.sites import ActivationKind, Site

HOOK_PATTERN = re.compile(r"blocks\.(\d+)\.(?:attn\.)?hook_(\w+)")

# A block of a Hugging Face model. Its output is the residual stream after the layer.
MODULE_PATTERN = re.compile(r"(?:\w+\.)*(?:h|layers|blocks)\.(\d+)")

NORMALISED_HOOK_PATTERN = re.compile(r"blocks\.\d+\.(?:ln\d\.hook_normalized|mlp\.hook_in)")
MLP_INPUT = "mlp_in"  # the residual stream that the MLP's norm reads
HEAD_SITES = ("z", "q", "k", "v")
SUPPORTED_HOOKS = (
    "blocks.N.hook_resid_pre, …resid_mid, …resid_post, …attn_out, …mlp_out, "
    "blocks.N.attn.hook_z, …q, …k, …v"
)
MODEL_ALIASES = {"gpt2-small": "gpt2"}  # TransformerLens's names of models


def parse_hook(hook: str | None) -> Site:
    """Return the site of a hook point.

    Raises:
        FeatureError: if no backend can read and replace the activation at this hook point.
    """
    if hook and (layer := MODULE_PATTERN.fullmatch(hook)):
        return Site("resid_post", int(layer[1]))
    if hook and NORMALISED_HOOK_PATTERN.fullmatch(hook):
        raise FeatureError(
            f"The SAE reads {hook}, the residual stream after a norm. Its scale depends on how the "
            "weights were folded when the SAE was trained.",
            "Use an SAE that reads the residual stream itself (hook_mlp_in, hook_resid_mid), "
            "attn_out, mlp_out or heads.",
        )
    match = HOOK_PATTERN.fullmatch(hook or "")
    kind = match[2] if match else None
    if kind == MLP_INPUT:
        kind = "resid_mid"
    if match is None or kind not in get_args(ActivationKind) or kind == "pattern":
        problem = (
            f"The SAE's hook point {hook!r} cannot be read and replaced here."
            if hook
            else "The SAE's cfg.json names no hook point."
        )
        raise FeatureError(problem, f"Use an SAE of {SUPPORTED_HOOKS}.")
    return Site(kind, int(match[1]))  # type: ignore[arg-type]  # checked above


def parse_site(text: str) -> Site:
    """Return the site that a user names, by its name or by its hook point.

    "resid_post.2" and "blocks.2.hook_resid_post" name the same site.

    Raises:
        FeatureError: if the text names no site.
    """
    kind, _, layer = text.strip().partition(".")
    if kind in get_args(ActivationKind) and re.fullmatch(r"\d{1,6}", layer):
        return Site(kind, int(layer))  # type: ignore[arg-type]  # checked above
    try:
        return parse_hook(text.strip())
    except FeatureError:
        raise FeatureError(
            f"{text!r} is not a site.",
            f"Write a site and its layer, as in resid_pre.2, or a hook point: {SUPPORTED_HOOKS}.",
        ) from None


def format_hook(site: Site) -> str:
    """Return the hook point of a site."""
    return f"blocks.{site.layer}.{'attn.' if site.kind in HEAD_SITES else ''}hook_{site.kind}"


def site_width(model: Backend, site: Site) -> int:
    """Return how many numbers a site has at one position."""
    info = model.info
    if site.kind not in HEAD_SITES:
        return info.d_model
    return info.d_head * (info.n_heads if site.kind in "qz" else info.n_kv_heads)


def require_sae_site(model: Backend, site: Site, width: int, verb: str) -> None:
    """Check that the model has a site of this width.

    Args:
        verb: what the SAE does with the site, "reads" or "writes".

    Raises:
        FeatureError: if the model lacks the site, or has another width there.
    """
    try:
        model.require_site(site)
    except SiteError as fault:
        raise FeatureError(
            f"The SAE {verb} {site.kind} of layer {site.layer}, which this model lacks: "
            f"{fault.cause}",
            fault.cure,
        ) from None
    if (own_width := site_width(model, site)) != width:
        raise FeatureError(
            f"The SAE {verb} {site.kind} with {width} numbers a position, and this model has "
            f"{own_width} there.",
            "Load the model that the SAE was trained on.",
        )


def compare_with_model(
    model: Backend, metadata: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """Compare the model that an SAE was trained on with the model at hand.

    A fingerprint of the weights decides. Without one, two names from the hub are compared by the
    part after the owner. A model from a directory may have any name.

    Returns:
        Why the SAE belongs to another model, and what cannot be known; each None if there is
        nothing to say.
    """
    info = model.info
    weights = metadata.get("model_fingerprint")
    if weights is not None and info.remote is None:  # nobody saw the weights on a server
        if weights == info.fingerprint:
            return None, None
        return (
            f"it was trained on other weights ({str(weights)[:12]}…; this model's are "
            f"{info.fingerprint[:12]}…)"
        ), None
    trained_on = metadata.get("model_name")
    if not trained_on:
        return None, "the SAE does not say which model it was trained on"
    if _bare_name(str(trained_on)) == _bare_name(info.name):
        return None, None
    if info.revision is not None:
        return f"it was trained on {trained_on!r}, and this is {info.name!r}", None
    return None, (
        f"the SAE was trained on {trained_on!r}, and its files do not tell whether {info.name!r} "
        "is that model"
    )


def _bare_name(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return MODEL_ALIASES.get(last, last)
