"""What decides an SAE's weights: its site, its size and how it is trained.

Every number has a default for the model's width. TopK (Gao et al. 2024, arXiv 2406.04093) keeps the
k largest features of a position and is the default architecture: on the bundled model, after equal
training, 16 features of a TopK SAE explain what 67 features of a standard one (ReLU and L1)
explain. With w numbers at a position and F features, the defaults are

    features        8 w, at most 16,384
    k               the power of two nearest 1.25 √w: 16 for 128, 32 for 768, 64 for 4,096
    L1              1, on activations scaled to a mean norm of √w
    tokens          1,000 for each feature, at least 200,000
    batch           the power of two nearest tokens / 1,000, between 64 and 4,096
    learning rate   2e-4 √(16,384 / F), at most 2e-3 (Gao et al., section 3); it rises over the
                    first twentieth of the steps, and falls to 0 over the last three tenths
"""

from __future__ import annotations

import math
from typing import Literal, TypedDict, get_args

from discovery.backends.base import Backend
from discovery.errors import FeatureError, SiteError, require_choice
from discovery.features.hooks import parse_site, site_width
from discovery.graph import JsonModel
from discovery.sites import Site

Architecture = Literal["topk", "standard"]
MAX_D_SAE = 1 << 20
MAX_DEFAULT_D_SAE = 16_384
DEFAULT_CONTEXT = 256
MAX_BLOCK_BYTES = 1 << 26  # of activations that are shuffled together


class SAERecipe(JsonModel):
    """Everything that decides the weights, except the model and the text.

    Attributes:
        site: the site, as in "resid_pre.2".
        architecture: topk or standard.
        d_in: numbers at a position of the site.
        d_sae: number of features.
        k: how many features are kept at a position; None for a standard SAE.
        l1: coefficient of the L1 penalty; None for a TopK SAE.
        tokens: positions to train on, a multiple of `batch`.
        batch: positions in a batch.
        learning_rate: the highest learning rate.
        context: the most tokens of a row.
        seed: seed of the weights and of the order of the text.
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
        """The site as a value."""
        return parse_site(self.site)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch

    @property
    def warm_up_steps(self) -> int:
        """First steps, in which the learning rate and the L1 penalty rise."""
        return max(1, self.steps // 20)

    @property
    def decay_steps(self) -> int:
        """Last steps, in which the learning rate falls to 0."""
        return 3 * self.steps // 10

    @property
    def dead_after_steps(self) -> int:
        """A feature that fires in none of this many steps is dead."""
        return max(10, min(1000, self.steps // 10))

    @property
    def batches_per_block(self) -> int:
        """Batches whose activations are shuffled together."""
        return max(2, min(64, MAX_BLOCK_BYTES // (4 * self.d_in * self.batch)))


class RecipeOptions(TypedDict, total=False):
    """The numbers of a recipe that a caller may choose; see `SAERecipe`."""

    architecture: str
    d_sae: int | None
    k: int | None
    l1: float | None
    tokens: int | None
    batch: int | None
    learning_rate: float | None
    context: int | None
    seed: int


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
    """Make a recipe for a model; what is not given follows from the site's width.

    Args:
        site: "resid_pre.2", a hook point such as "blocks.2.hook_resid_pre", or a Site. The default
            is the residual stream in the middle of the model.

    Raises:
        FeatureError: if the model lacks the site, or if a number is not allowed.
    """
    resolved = _resolve_site(model, site)
    width = site_width(model, resolved)
    _check_architecture(architecture, k, l1)
    features = _whole_number("d_sae", d_sae, min(8 * width, MAX_DEFAULT_D_SAE), 2, MAX_D_SAE)
    n_tokens = _whole_number("tokens", tokens, max(200_000, 1000 * features), 64, 1 << 40)
    default_batch = min(max(_nearest_power_of_two(n_tokens / 1000), 64), 4096)
    n_batch = _whole_number("batch", batch, default_batch, 1, n_tokens)
    n_kept = None
    if architecture == "topk":
        default_k = min(_nearest_power_of_two(1.25 * math.sqrt(width)), max(1, features // 4))
        n_kept = _whole_number("k", k, default_k, 1, features)
    default_rate = min(2e-4 * math.sqrt(16_384 / features), 2e-3)
    default_context = min(model.n_ctx, DEFAULT_CONTEXT)
    return SAERecipe(
        site=f"{resolved.kind}.{resolved.layer}",
        architecture=architecture,  # type: ignore[arg-type]  # checked above
        d_in=width,
        d_sae=features,
        k=n_kept,
        l1=_positive_number("l1", l1, 1.0) if architecture == "standard" else None,
        tokens=n_tokens // n_batch * n_batch,
        batch=n_batch,
        learning_rate=_positive_number("learning_rate", learning_rate, default_rate),
        context=_whole_number("context", context, default_context, 2, model.n_ctx),
        seed=_whole_number("seed", seed, 0, 0, (1 << 31) - 1),
    )


def _check_architecture(architecture: str, k: int | None, l1: float | None) -> None:
    """Check the architecture, and that no option of the other architecture is given."""
    require_choice("architecture", architecture, get_args(Architecture), FeatureError)
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


def _resolve_site(model: Backend, site: str | Site | None) -> Site:
    if site is None:
        return Site("resid_pre", model.info.n_layers // 2)
    resolved = site if isinstance(site, Site) else parse_site(site)
    if resolved.kind == "pattern":
        raise FeatureError(
            "pattern has no width of its own.",
            "Train on the residual stream, attn_out, mlp_out, z, q, k or v.",
        )
    try:
        model.require_site(resolved)
    except SiteError as fault:
        raise FeatureError(f"{resolved.kind}.{resolved.layer}: {fault.cause}", fault.cure) from None
    return resolved


def _nearest_power_of_two(number: float) -> int:
    """Return the power of two with the nearest logarithm."""
    return int(2 ** round(math.log2(max(number, 1))))


def _whole_number(name: str, value: object, default: int, minimum: int, maximum: int) -> int:
    if value is None:
        return default
    if type(value) is not int or not minimum <= value <= maximum:
        raise FeatureError(
            f"{name} is {value!r}.",
            f"Give a whole number from {minimum:,} to {maximum:,}, or leave it out for "
            f"{default:,}.",
        )
    return value


def _positive_number(name: str, value: object, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise FeatureError(
            f"{name} is {value!r}.", f"Give a number above 0, or leave it out for {default:g}."
        )
    return float(value)
