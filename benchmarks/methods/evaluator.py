"""Measurements of f on all pairs of a task, counted from zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.evaluation import SplitEvaluator
from discovery.tasks.task import EncodedPair, SplitName, Task


def new_evaluator(model: Backend, task: Task, seed: int = 0) -> SplitEvaluator:
    """Return an evaluator over all heads and MLPs that has measured nothing yet.

    It uses the task's metric and all of its pairs, in an order drawn by the seed.
    """
    return SplitEvaluator.of(model, task, "all", seed, metric=None, memory=None, meter=Meter())


def as_one_split(task: Task, pairs: Sequence[EncodedPair]) -> Task:
    """Return a task of these pairs alone, all of them in the discovery split."""
    split: SplitName = "discovery"
    return replace(task, pairs=tuple(pairs), splits=tuple(split for _ in pairs))
