"""f as the search uses it: exact values where they decide something, few pairs where they do not.

Most nodes of a model are far from every bound, and a few pairs show it. So a difference of f is
measured on SCREEN_PAIRS pairs first, and on all pairs of the search only if its 99% interval is
not clear of the bounds that it is compared with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from scipy.stats import t as student_t
from torch import Tensor

from discovery.evaluation import Faithfulness
from discovery.evaluation.faithfulness import SetFunction
from discovery.evaluation.sequential import SetPair
from discovery.graph import EvidenceAblation
from discovery.methods.ablation import NodeSet

SCREEN_PAIRS = 16
SCREEN_CONFIDENCE = 0.99


class SearchFunction(SetFunction, Protocol):
    """f under one ablation, on the pairs of the search or on a resample of them."""

    def screen(self, sets: Sequence[NodeSet], label: str) -> Float[Tensor, "set"]:
        """Return f of each set, on a few pairs.

        Raises:
            BudgetError: if the budget does not reach that far.
        """
        ...

    def differences(
        self,
        first: Sequence[NodeSet],
        second: Sequence[NodeSet],
        bounds: Sequence[float],
        label: str,
        relative_to: SetPair | None = None,
    ) -> Float[Tensor, "set"]:
        """Return f(first) − f(second) for each pair of sets.

        Args:
            first: the first set of each pair.
            second: the second set of each pair.
            bounds: the bounds with which the absolute differences are compared: values that are
                clear of all of them may be less exact.
            label: names the work for progress and errors.
            relative_to: two sets whose difference is measured on all pairs, and from which the
                differences are taken. If all of them share most of their noise with it, a few pairs
                show what is left.

        Raises:
            BudgetError: if the budget does not reach that far.
        """
        ...


SearchFunctions = Mapping[EvidenceAblation, SearchFunction]


def get_universe(functions: SearchFunctions) -> NodeSet:
    """Return every node that can be ablated."""
    return next(f.everything for f in functions.values())


class UnscreenedFunction(ABC):
    """f of which a value costs no more for being used: everything is asked for at once."""

    @abstractmethod
    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set"]:
        """Return f of each set."""

    def screen(self, sets: Sequence[NodeSet], label: str) -> Float[Tensor, "set"]:
        """Return f of each set; there is nothing to spare."""
        return self(sets, label)

    def differences(
        self,
        first: Sequence[NodeSet],
        second: Sequence[NodeSet],
        bounds: Sequence[float],
        label: str,
        relative_to: SetPair | None = None,
    ) -> Float[Tensor, "set"]:
        """Return f(first) − f(second) for each pair of sets, whatever the bounds are."""
        values = self([*first, *second], label)
        return values[: len(first)] - values[len(first) :]


class MeasuredFunction:
    """f under one ablation, measured on the pairs of the search.

    Attributes:
        faithfulness: f on all these pairs.
        everything: the universe.
    """

    def __init__(self, faithfulness: Faithfulness) -> None:
        self.faithfulness = faithfulness
        self.everything = faithfulness.everything

    @property
    def is_defined(self) -> bool:
        """Whether f means anything under this ablation."""
        return self.faithfulness.is_defined

    @property
    def n_pairs(self) -> int:
        """The number of pairs of the search."""
        return self.faithfulness.n_pairs

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set"]:
        """Return f of each set, over all pairs or the first so many."""
        return self.faithfulness(sets, label, pairs)

    def screen(self, sets: Sequence[NodeSet], label: str) -> Float[Tensor, "set"]:
        """Return f of each set, on the first few pairs."""
        return self.faithfulness(sets, label, pairs=self._n_screened)

    def differences(
        self,
        first: Sequence[NodeSet],
        second: Sequence[NodeSet],
        bounds: Sequence[float],
        label: str,
        relative_to: SetPair | None = None,
    ) -> Float[Tensor, "set"]:
        """Return f(first) − f(second), on twice as many pairs as long as these do not decide."""
        if not first:
            return torch.empty(0, dtype=torch.float64)
        values = torch.zeros(len(first), dtype=torch.float64)
        waiting = list(range(len(first)))
        for n_pairs in self._steps if bounds else [self._n_screened]:
            pairs_of_sets = [(first[n], second[n]) for n in waiting]
            measured, undecided = self._screen_differences(
                pairs_of_sets, bounds, label, n_pairs, relative_to
            )
            values[waiting] = measured
            waiting = [n for n, is_open in zip(waiting, undecided.tolist(), strict=True) if is_open]
            if not waiting:
                break
        return values

    @property
    def _steps(self) -> list[int]:
        """The numbers of pairs on which a difference is measured until it is decided."""
        n_pairs = self.faithfulness.n_pairs
        steps = [self._n_screened]
        while 2 * steps[-1] < n_pairs:
            steps.append(2 * steps[-1])
        return steps if steps[-1] == n_pairs else [*steps, n_pairs]

    @property
    def _n_screened(self) -> int:
        """How many pairs a screening takes: all of them if the rest would hardly be more."""
        n_pairs = self.faithfulness.n_pairs
        return SCREEN_PAIRS if n_pairs >= 2 * SCREEN_PAIRS else n_pairs

    def _screen_differences(
        self,
        pairs_of_sets: Sequence[SetPair],
        bounds: Sequence[float],
        label: str,
        n_pairs: int,
        relative_to: SetPair | None,
    ) -> tuple[Float[Tensor, "set"], Bool[Tensor, "set"]]:
        """Return the differences on the first pairs, and which of them are near a bound."""
        f = self.faithfulness
        sets = [nodes for both in pairs_of_sets for nodes in both]
        metric = f.set_metric(sets, label, n_pairs).double().cpu()
        changes = metric[0::2] - metric[1::2]
        known = 0.0
        if relative_to is not None:
            reference = f.set_metric(list(relative_to), label).double().cpu()
            change = reference[0] - reference[1]
            known = float(change.mean() / (f.full.mean() - f.empty.mean()))
            changes = changes - change[:n_pairs]
        share = changes / (f.full[:n_pairs].mean() - f.empty[:n_pairs].mean())
        values = share.mean(1) + known
        quantile = float(student_t.ppf(0.5 + SCREEN_CONFIDENCE / 2, max(n_pairs - 1, 1)))
        half_width = quantile * share.std(1, unbiased=n_pairs > 1) / n_pairs**0.5
        near = torch.zeros(len(pairs_of_sets), dtype=torch.bool)
        for bound in bounds:
            near |= (values.abs() - bound).abs() <= half_width
        return values, near
