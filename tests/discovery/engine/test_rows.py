"""Cutting rows into batches: each row once, with every position that can change.

No batch is larger than allowed, and the total cost is the smallest.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.random_models.tiny_models import random_pairs
from discovery.engine import Prompts, Rows
from discovery.engine.rows import PASS_OVERHEAD, JoinedRows, Window, cut_windows, group_spans

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def prompts_of(lengths: list[int]) -> Prompts:
    return Prompts.of(random_pairs(lengths), torch.device("cpu"))


def rows_of(prompts: Prompts, seed: int, count: int, **options: object) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    pair = torch.randint(len(prompts), (count,), generator=rng)
    first = (torch.rand(count, generator=rng) * prompts.length[pair]).long()
    return Rows("clean", pair, first, **options)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(1, 30), st.integers(1, 7), st.booleans(), st.integers(0, 10**6))
def test_every_row_is_in_one_window_that_holds_what_can_change(
    lengths, count, max_rows, reuse, seed
):
    prompts = prompts_of(lengths)
    rows = rows_of(prompts, seed, count)
    windows = list(
        cut_windows(rows, prompts, 3, reuse_prefix=reuse, max_rows=lambda first, end: max_rows)
    )
    assert sorted(torch.cat([window.index for window in windows]).tolist()) == list(range(count))
    for window in windows:
        assert torch.equal(window.pair, rows.pair[window.index])
        assert 1 <= len(window.index) <= max_rows
        length = prompts.length[window.pair]
        assert window.end == int(length.max())
        assert window.first < int(length.min())  # the answer position of every row is inside
        if reuse:
            assert window.first == int(rows.first[window.index].min())
        else:
            assert window.first == 0
        assert window.width == window.end - window.first


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    LENGTHS,
    st.integers(1, 30),
    st.integers(1, 7),
    st.sampled_from([(3, False), (2, True)]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_after_the_last_attention_only_the_answer_is_computed(
    lengths, count, max_rows, start, reuse, seed
):
    prompts = prompts_of(lengths)
    rows = rows_of(prompts, seed, count, start=start[0], after_attention=start[1])
    assert rows.is_pointwise(3)
    windows = list(
        cut_windows(rows, prompts, 3, reuse_prefix=reuse, max_rows=lambda first, end: max_rows)
    )
    assert sum(len(window.index) for window in windows) == count
    for window in windows:
        assert window.width == 1
        assert torch.equal(prompts.length[window.pair], torch.full((len(window.pair),), window.end))


def test_what_is_pointwise():
    prompts = prompts_of([4])
    assert not rows_of(prompts, 0, 1, start=2).is_pointwise(3)
    assert rows_of(prompts, 0, 1, start=3).is_pointwise(3)
    assert not rows_of(prompts, 0, 1, start=1, after_attention=True).is_pointwise(3)
    assert rows_of(prompts, 0, 1, start=2, after_attention=True).is_pointwise(3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 30)),
        min_size=1,
        max_size=7,
    )
)
def test_the_groups_are_the_cheapest(triples):
    """Compared with every way to group a short list."""
    spans = sorted((first, first + width) for first, width, _ in triples)
    sizes = [size for _, _, size in triples]

    def cost(groups: list[list[int]]) -> float:
        return sum(
            PASS_OVERHEAD
            + sum(sizes[n] for n in group) * (max(spans[n][1] for n in group) - spans[group[0]][0])
            for group in groups
        )

    def all_groupings(begin: int) -> list[list[list[int]]]:
        if begin == len(spans):
            return [[]]
        return [
            [list(range(begin, stop)), *rest]
            for stop in range(begin + 1, len(spans) + 1)
            for rest in all_groupings(stop)
        ]

    groups = group_spans(spans, sizes)
    assert [n for group in groups for n in group] == list(range(len(spans)))
    assert cost(groups) == min(map(cost, all_groupings(0)))


def test_spans_share_a_pass_only_if_few_positions_are_wasted():
    assert group_spans([(0, 8), (2, 8)], [1, 1]) == [[0, 1]]
    assert group_spans([(0, 8), (2, 8)], [1000, 1000]) == [[0], [1]]


def joined_of(prompts: Prompts, counts: list[int]) -> JoinedRows:
    return JoinedRows(
        tuple(
            rows_of(prompts, layer, count, start=layer, residual=lambda window: window)
            for layer, count in enumerate(counts)
        )
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(LENGTHS, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7))
def test_a_window_of_joined_rows_is_split_by_job_in_the_order_of_their_start(
    lengths, counts, max_rows
):
    prompts = prompts_of(lengths)
    joined = joined_of(prompts, counts)
    seen: list[tuple[int, int]] = []
    for window in cut_windows(
        joined, prompts, len(counts) + 1, reuse_prefix=True, max_rows=lambda first, end: max_rows
    ):
        parts = joined.split(window)
        assert [job.start for job, _ in parts] == sorted(job.start for job, _ in parts)
        assert torch.equal(torch.cat([part.pair for _, part in parts]), window.pair)
        for job, part in parts:
            assert torch.equal(job.pair[part.index], part.pair)
            seen += [(job.start, n) for n in part.index.tolist()]
    assert sorted(seen) == [(start, n) for start, count in enumerate(counts) for n in range(count)]


def test_jobs_that_cannot_be_joined_are_refused():
    prompts = prompts_of([4])
    job = rows_of(prompts, 0, 1, residual=lambda window: window)
    for change in ({"residual": None}, {"edits": lambda window: []}, {"after_attention": True}):
        with pytest.raises(ValueError, match="at a layer's input"):
            JoinedRows((replace(job, **change),))
    with pytest.raises(ValueError, match="an order by start"):
        JoinedRows((replace(job, start=2), job))
    with pytest.raises(ValueError, match="one base"):
        JoinedRows((job, replace(job, base="corrupted")))


def test_the_limit_may_depend_on_the_window():
    prompts = prompts_of([8] * 4)
    rows = Rows("clean", torch.tensor([0, 1, 2, 3] * 4), torch.tensor([0] * 8 + [7] * 8))
    sizes = [
        len(window.index)
        for window in cut_windows(
            rows, prompts, 3, reuse_prefix=True, max_rows=lambda first, end: 16 // (end - first)
        )
    ]
    assert sizes == [2, 2, 2, 2, 8]


def test_no_rows_no_windows():
    empty = torch.zeros(0, dtype=torch.long)
    assert (
        list(
            cut_windows(
                Rows("clean", empty, empty),
                prompts_of([3]),
                2,
                reuse_prefix=True,
                max_rows=lambda first, end: 4,
            )
        )
        == []
    )


def test_a_window_knows_its_width():
    assert Window(torch.tensor([0]), torch.tensor([0]), 2, 5).width == 3
