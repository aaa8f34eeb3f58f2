"""A feature's card: its strongest contexts, contexts of lesser activation by quantile, and how often it fires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from discovery.backends.base import Backend
from discovery.features import SAE
from discovery.methods.features.examples.sampling import ContextCollector, PeakContext, Sampling
from discovery.tasks.pairs import Tokenizer


@dataclass(frozen=True)
class ActivatingExample:
    """A context in which a feature fires.

    Attributes:
        document: its number. texts: of the tokens; None where the model has no tokenizer.
        activations: of each token. peak: which token is the peak. value: the activation there.
    """

    document: int
    tokens: tuple[int, ...]
    texts: tuple[str, ...] | None
    activations: tuple[float, ...]
    peak: int
    value: float

    @property
    def text(self) -> str:
        """The context as it reads, the peak between « and »."""
        words = list(self.texts or [f" {token}" for token in self.tokens])
        words[self.peak] = f"«{words[self.peak]}»"
        return "".join(words)


@dataclass(frozen=True)
class Bin:
    """Contexts of a share of the peaks.

    Attributes:
        low, high: the sizes of activation between which they lie.
    """

    low: float
    high: float
    examples: tuple[ActivatingExample, ...]


@dataclass(frozen=True)
class FeatureDashboard:
    """Where one feature fires.

    Attributes:
        density: share of positions at which it fires. mean: its activation there; None where it never does.
        windows: in which it fires, repetitions included.
        top: the strongest contexts. bins: of equal share of the peaks, the strongest first.
        exact: whether the bins are of every context; else of an even sample.
        link: its page on Neuronpedia.
    """

    feature: int
    density: float
    mean: float | None
    windows: int
    top: tuple[ActivatingExample, ...]
    bins: tuple[Bin, ...]
    exact: bool
    link: str | None


def make_dashboard(
    model: Backend,
    sae: SAE,
    feature: int,
    kept: ContextCollector,
    totals: tuple[int, float, int],
    how: Sampling,
) -> FeatureDashboard:
    """What was kept of a feature, made readable."""
    fired, whole, positions = totals
    return FeatureDashboard(
        feature,
        fired / positions,
        whole / fired if fired else None,
        kept.n_offered,
        tuple(_example(model, context) for context in kept.strongest()),
        tuple(_bins(model, kept.even_sample(), how)),
        not kept.has_overflowed,
        sae.link(feature),
    )


def _bins(model: Backend, contexts: Sequence[PeakContext], how: Sampling) -> Sequence[Bin]:
    """As many contexts in each; of each bin those that come first in the sample, which is no order of size."""
    order = {id(context): n for n, context in enumerate(contexts)}
    ranked = sorted(contexts, key=lambda context: -abs(context.value))
    count = min(how.bins, len(ranked))
    cuts = [round(n * len(ranked) / count) for n in range(count + 1)] if count else [0]
    bins = []
    for begin, end in pairwise(cuts):
        part = ranked[begin:end]
        shown = sorted(
            sorted(part, key=lambda context: order[id(context)])[: how.per_bin],
            key=lambda context: -abs(context.value),
        )
        bins.append(
            Bin(
                abs(part[-1].value),
                abs(part[0].value),
                tuple(_example(model, context) for context in shown),
            )
        )
    return bins


def _example(model: Backend, context: PeakContext) -> ActivatingExample:
    texts = token_texts(model.tokenizer, context.tokens) if model.tokenizer else None
    return ActivatingExample(
        context.document, context.tokens, texts, context.activations, context.peak, context.value
    )


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, ...]:
    """What each token adds to the text; alone it may read otherwise, without the space in front of it."""
    read = [tokenizer.decode(list(tokens[:end])) for end in range(len(tokens) + 1)]
    return tuple(
        after.removeprefix(before) if after.startswith(before) else tokenizer.decode([token])
        for (before, after), token in zip(pairwise(read), tokens, strict=True)
    )
