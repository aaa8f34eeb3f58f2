"""What decides a dictionary's weights: its place and size and how it is trained, with defaults for the model's width.

TopK (Gao et al. 2024, arXiv 2406.04093) keeps the k largest features of a position and is the default: on the bundled model, at equal
training, 16 features of it explain what 67 of a standard one (ReLU and L1) do. With w numbers at a position and F features,

    features        8 w, at most 16,384
    k               the power of two nearest 1.25 √w: 16 of 128, 32 of 768, 64 of 4,096
    L1              1, on activations scaled to a mean norm of √w
    tokens          1,000 for each feature, at least 200,000
    batch           the power of two nearest tokens / 1,000, between 64 and 4,096
    learning rate   2e-4 √(16,384 / F), at most 2e-3 (Gao et al., section 3); warmed up in a twentieth of the steps, down to 0 in the
                    last three tenths
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from discovery.backends.base import Backend
from discovery.errors import FeatureError, SiteError
from discovery.features.hooks import parse_site, site_width
from discovery.graph import JsonModel
from discovery.sites import Site

Architecture = Literal["topk", "standard"]
MAX_D_SAE, MAX_DEFAULT_D_SAE = 1 << 20, 16_384
DEFAULT_CONTEXT = 256
MAX_BLOCK_BYTES = 1 << 26  # of activations that are shuffled together


class SAERecipe(JsonModel):
    """Everything that decides the weights, but for the model and the text.

    Attributes:
        site: as in "resid_pre.2". d_in: its width.
        d_sae: features. k: how many are kept at a position (topk). l1: the penalty's coefficient (standard).
        tokens: positions trained on, a multiple of `batch`. context: the most tokens of a row.
    """

    site: str
    architecture: Architecture
    d_in: int
    d_sae: int
    k: int | None
    l1: float | None
    tokens: int
    batch: int
    learning_rate: float
    context: int
    seed: int

    @property
    def parsed_site(self) -> Site:
        """The site."""
        return parse_site(self.site)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch

    @property
    def warm_up_steps(self) -> int:
        """Steps in which the learning rate (and the L1 penalty) rises."""
        return max(1, self.steps // 20)

    @property
    def decay_steps(self) -> int:
        """Last steps, in which the learning rate falls to 0."""
        return 3 * self.steps // 10

    @property
    def dead_after_steps(self) -> int:
        """A feature that fired in none of so many steps is dead."""
        return max(10, min(1000, self.steps // 10))

    @property
    def batches_per_block(self) -> int:
        """Batches whose activations are shuffled together."""
        return max(2, min(64, MAX_BLOCK_BYTES // (4 * self.d_in * self.batch)))


def make_recipe(
    model: Backend,
    site: str | Site | None = None,
    *,
    architecture: str = "topk",
    d_sae: int | None = None,
    k: int | None = None,
    l1: float | None = None,
    tokens: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    context: int | None = None,
    seed: int = 0,
) -> SAERecipe:
    """A recipe for a model; what is not given follows from the width.

    Args:
        site: "resid_pre.2", a hook point "blocks.2.hook_resid_pre", or a Site; the residual stream in the middle where None.

    Raises:
        FeatureError: a place that the model lacks, or a number that cannot be.
    """
    place = _resolve_site(model, site)
    width = site_width(model, place)
    if architecture not in get_args(Architecture):
        raise FeatureError(
            f"architecture {architecture!r} is not known.",
            f"Allowed: {', '.join(get_args(Architecture))}.",
        )
    if architecture != "topk" and k is not None:
        raise FeatureError(
            f"k is {k}, and the architecture is {architecture}.",
            "k belongs to topk; leave it out, or give l1.",
        )
    if architecture != "standard" and l1 is not None:
        raise FeatureError(
            f"l1 is {l1}, and the architecture is {architecture}.",
            "l1 belongs to standard; leave it out, or give k.",
        )
    features = _whole_number("d_sae", d_sae, min(8 * width, MAX_DEFAULT_D_SAE), 2, MAX_D_SAE)
    wanted = _whole_number("tokens", tokens, max(200_000, 1000 * features), 64, 1 << 40)
    size = _whole_number(
        "batch", batch, min(max(_nearest_power_of_two(wanted / 1000), 64), 4096), 1, wanted
    )
    kept = (
        _whole_number(
            "k",
            k,
            min(_nearest_power_of_two(1.25 * math.sqrt(width)), max(1, features // 4)),
            1,
            features,
        )
        if architecture == "topk"
        else None
    )
    return SAERecipe(
        site=f"{place.kind}.{place.layer}",
        architecture=architecture,  # type: ignore[arg-type]  # checked above
        d_in=width,
        d_sae=features,
        k=kept,
        l1=_positive_number("l1", l1, 1.0) if architecture == "standard" else None,
        tokens=wanted // size * size,
        batch=size,
        learning_rate=_positive_number(
            "learning_rate", learning_rate, min(2e-4 * math.sqrt(16_384 / features), 2e-3)
        ),
        context=_whole_number(
            "context", context, min(model.n_ctx, DEFAULT_CONTEXT), 2, model.n_ctx
        ),
        seed=_whole_number("seed", seed, 0, 0, (1 << 31) - 1),
    )


def _resolve_site(model: Backend, site: str | Site | None) -> Site:
    if site is None:
        return Site("resid_pre", model.info.n_layers // 2)
    place = site if isinstance(site, Site) else parse_site(site)
    if place.kind == "pattern":
        raise FeatureError(
            "pattern has no width of its own.",
            "Train on the residual stream, attn_out, mlp_out, z, q, k or v.",
        )
    try:
        model.require_site(place)
    except SiteError as fault:
        raise FeatureError(f"{place.kind}.{place.layer}: {fault.cause}", fault.cure) from None
    return place


def _nearest_power_of_two(number: float) -> int:
    """The nearest power of two, by ratio."""
    return int(2 ** round(math.log2(max(number, 1))))


def _whole_number(name: str, given: object, default: int, least: int, most: int) -> int:
    if given is None:
        return default
    if type(given) is not int or not least <= given <= most:
        raise FeatureError(
            f"{name} is {given!r}.",
            f"Give a whole number from {least:,} to {most:,}, or leave it out for {default:,}.",
        )
    return given


def _positive_number(name: str, given: object, default: float) -> float:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise FeatureError(
            f"{name} is {given!r}.", f"Give a number above 0, or leave it out for {default:g}."
        )
    return float(given)
