"""A feature's dashboard: its strongest contexts, weaker contexts by quantile, and how often it
fires.

The term is that of Bricken et al. 2023 ("Towards Monosemanticity") and of Neuronpedia.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from discovery.backends.base import Backend
from discovery.features import SAE
from discovery.methods.features.examples.sampling import ContextCollector, PeakContext, Sampling
from discovery.tasks.pairs import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ActivatingExample:
    """A context in which a feature fires.

    Attributes:
        document: number of the document.
        tokens: the token ids around the peak.
        texts: the texts of the tokens; None if the model has no tokenizer.
        activations: the feature's activation at each token.
        peak: which of the tokens is the peak.
        value: the activation at the peak.
    """

    document: int
    tokens: tuple[int, ...]
    texts: tuple[str, ...] | None
    activations: tuple[float, ...]
    peak: int
    value: float

    @property
    def text(self) -> str:
        """The context as it reads, with the peak between « and »."""
        words = list(self.texts or [f" {token}" for token in self.tokens])
        words[self.peak] = f"«{words[self.peak]}»"
        return "".join(words)


@dataclass(frozen=True)
class Bin:
    """Contexts from one quantile range of the peaks.

    Attributes:
        low: the smallest size of a peak in this range.
        high: the largest size of a peak in this range.
        examples: some contexts of the range, the largest first.
    """

    low: float
    high: float
    examples: tuple[ActivatingExample, ...]


@dataclass(frozen=True, kw_only=True)
class FeatureDashboard:
    """Where one feature fires.

    Attributes:
        feature: the feature's number.
        density: share of the positions at which it fires.
        mean: its mean activation where it fires; None if it never fires.
        windows: windows in which it fires, repetitions included.
        top: the strongest contexts.
        bins: contexts in quantile ranges that hold equally many peaks, the strongest first.
        exact: whether the ranges were formed from all distinct contexts. If not, they were formed
            from an even sample.
        link: the feature's page on Neuronpedia.
    """

    feature: int
    density: float
    mean: float | None
    windows: int
    top: tuple[ActivatingExample, ...]
    bins: tuple[Bin, ...]
    exact: bool
    link: str | None


@dataclass(frozen=True)
class FiringTotals:
    """How often one feature fires in the text.

    Attributes:
        fired: positions at which it fires.
        activation_sum: the sum of its activations.
        positions: positions that were read.
    """

    fired: int
    activation_sum: float
    positions: int


def make_dashboard(
    model: Backend,
    sae: SAE,
    feature: int,
    collector: ContextCollector,
    totals: FiringTotals,
    sampling: Sampling,
) -> FeatureDashboard:
    """Make what was collected of a feature readable."""
    return FeatureDashboard(
        feature=feature,
        density=totals.fired / totals.positions,
        mean=totals.activation_sum / totals.fired if totals.fired else None,
        windows=collector.n_offered,
        top=tuple(_example(model, context) for context in collector.strongest()),
        bins=tuple(_bins(model, collector.even_sample(), sampling)),
        exact=not collector.has_overflowed,
        link=sae.link(feature),
    )


def _bins(model: Backend, contexts: Sequence[PeakContext], sampling: Sampling) -> Sequence[Bin]:
    """Divide the contexts into ranges that hold equally many.

    From each range come the examples that are first in the sample, whose order has nothing to do
    with the size of the peaks.
    """
    ranked = sorted(enumerate(contexts), key=lambda numbered: -abs(numbered[1].value))
    count = min(sampling.bins, len(ranked))
    if not count:
        return []
    bounds = [round(n * len(ranked) / count) for n in range(count + 1)]
    bins = []
    for begin, end in pairwise(bounds):
        part = ranked[begin:end]
        first = [context for _, context in sorted(part, key=lambda numbered: numbered[0])]
        shown = sorted(first[: sampling.per_bin], key=lambda context: -abs(context.value))
        bins.append(
            Bin(
                low=abs(part[-1][1].value),
                high=abs(part[0][1].value),
                examples=tuple(_example(model, context) for context in shown),
            )
        )
    return bins


def _example(model: Backend, context: PeakContext) -> ActivatingExample:
    return ActivatingExample(
        document=context.document,
        tokens=context.tokens,
        texts=token_texts(model.tokenizer, context.tokens) if model.tokenizer else None,
        activations=context.activations,
        peak=context.peak,
        value=context.value,
    )


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, ...]:
    """Return what each token adds to the text.

    A token that is decoded alone may lose the space before it, so ever longer beginnings are
    decoded and compared.
    """
    beginnings = [tokenizer.decode(list(tokens[:end])) for end in range(len(tokens) + 1)]
    return tuple(
        after.removeprefix(before) if after.startswith(before) else tokenizer.decode([token])
        for (before, after), token in zip(pairwise(beginnings), tokens, strict=True)
    )
