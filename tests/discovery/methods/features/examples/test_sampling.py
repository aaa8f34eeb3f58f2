"""What is kept of a stream of contexts, and which settings are refused."""

from __future__ import annotations

import random

import pytest

from discovery.errors import MeasurementError
from discovery.methods.features import Sampling
from discovery.methods.features.examples.sampling import ContextCollector, PeakContext, context_key


def test_what_is_kept_does_not_grow_with_the_text_nor_hang_on_its_order():
    contexts = [
        PeakContext(n, (n % 400, 1), (float((n * 7919) % 400), 0.0), 0) for n in range(1500)
    ]
    expected = sorted({context.value for context in contexts}, reverse=True)[:5]
    samples = []
    for seed in (1, 2):
        collector = ContextCollector(n_strongest=5, sample_size=50)
        for context in random.Random(seed).sample(contexts, len(contexts)):
            collector.offer(
                context_key(context.tokens, 0, 0), context.value, lambda context=context: context
            )
            assert len(collector.strongest()) <= 5
            assert len(collector.even_sample()) <= 50
        assert [context.value for context in collector.strongest()] == expected
        assert (collector.n_offered, collector.has_overflowed) == (1500, True)
        samples.append([context.tokens for context in collector.even_sample()])
    assert samples[0] == samples[1]
    values = [context[0] for context in samples[0]]
    assert 120 < sum(values) / len(values) < 280  # of 0 to 399, evenly


def test_bad_settings():
    for settings, message in (
        ({"k": 0}, "k is 0"),
        ({"window": 4, "skip": 4}, "skip is 4"),
        ({"most": 1.5}, "most is 1.5"),
        ({"seed": "a"}, "seed is 'a'"),
    ):
        with pytest.raises(MeasurementError, match=message):
            Sampling(**settings)
