"""The logit lens equals the module's own end, called by hand on its hidden states."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, load_plain_module, random_pairs
from discovery.errors import MeasurementError
from discovery.methods.readout import logit_lens
from tests.oracles.readout import lens_logits, streams

BACKENDS = ("transformerlens", "nnsight")
GEOMETRIES = ("gpt2", "llama", "neox", "gemma2")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_each_layer_is_read_as_the_module_reads_its_last(tiny_models, name, backend):
    model = tiny_models.load(name, backend)
    module = load_plain_module(tiny_models.path(name))
    task = as_task(random_pairs([6, 4, 7, 6], seed=3, sets=2))
    lens = logit_lens(model, task, top=3)
    assert lens.positions == (-1,)
    for row, pair in enumerate(task.pairs):
        for layer, stream in enumerate(streams(module, pair.clean)):
            logits = lens_logits(module, stream[-1])
            expected = logits[list(pair.answer)].logsumexp(0) - logits[list(pair.wrong)].logsumexp(
                0
            )
            assert float(lens.per_pair[row, layer, 0]) == pytest.approx(float(expected), abs=2e-4)
    for layer, reading in enumerate(lens.at(-1)):
        logits = torch.stack(
            [lens_logits(module, streams(module, pair.clean)[layer][-1]) for pair in task.pairs]
        )
        probabilities = logits.softmax(1)
        answers = [
            float(row[list(pair.answer)].sum())
            for row, pair in zip(probabilities, task.pairs, strict=True)
        ]
        ranks = [
            float(1 + (row > row[list(pair.answer)].max()).sum())
            for row, pair in zip(logits, task.pairs, strict=True)
        ]
        assert reading.layer == layer
        assert reading.probability.mean == pytest.approx(sum(answers) / 4, abs=1e-5)
        assert reading.rank == float(torch.tensor(ranks).quantile(0.5))
        likely = probabilities.argmax(1)
        assert {token.token for token in reading.top} & set(likely.tolist())


def test_the_last_reading_is_the_models_own_output(tiny_models):
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([6, 6, 6, 6], seed=4))
    last = logit_lens(model, task).at(-1)[-1]
    assert last.layer == model.info.n_layers
    assert last.agreement == 1.0


def test_positions_by_label_and_from_the_end(tiny_models):
    model = tiny_models.load("gpt2")
    module = load_plain_module(tiny_models.path("gpt2"))
    task = as_task(random_pairs([6, 5, 7], seed=5, labelled=True))
    lens = logit_lens(model, task, positions=["middle", -2])
    have = [pair for pair in task.pairs if "middle" in pair.labels]
    assert 0 < len(have) < len(task)
    assert {reading.n for reading in lens.at("middle")} == {len(have)}
    pair = have[0]
    stream = streams(module, pair.clean)[1][pair.labels["middle"]]
    logits = lens_logits(module, stream)
    row = task.pairs.index(pair)
    expected = logits[pair.answer[0]] - logits[pair.wrong[0]]
    assert float(lens.per_pair[row, 1, 0]) == pytest.approx(float(expected), abs=1e-4)
    assert bool(lens.per_pair[:, :, 1].isfinite().all())


def test_pairs_in_blocks_give_the_same_numbers(tiny_models):
    model = tiny_models.load("llama")
    task = as_task(random_pairs([6] * 9, seed=6))
    whole = logit_lens(model, task)
    from discovery.engine.memory import CACHE_PERCENT, pair_bytes

    memory = 2 * pair_bytes(model.info, 6) * 100 // CACHE_PERCENT + 100
    torch.testing.assert_close(
        logit_lens(model, task, memory=memory).per_pair, whole.per_pair, atol=1e-5, rtol=0
    )


def test_a_prompt_and_its_named_answer(tiny_models):
    model = tiny_models.load("gpt2")
    lens = logit_lens(model, prompt=(3, 4, 5), answer=7, wrong=9)
    assert (lens.task, lens.n, lens.answer, lens.wrong) == ("prompt", 1, "7", "9")
    assert all(reading.metric.low == reading.metric.high for reading in lens.readings)
    own = logit_lens(model, prompt=(3, 4, 5))
    assert own.at(-1)[-1].rank == 1.0
    assert own.answer_layer is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither was given"),
        ({"prompt": (1, 2), "task": ()}, "both was given"),
        ({"prompt": (1, 2), "answer": 99}, "does not exist"),
        ({"prompt": (1, 2), "answer": "x"}, "given as token ids"),
        ({"prompt": (1, 2), "answer": 3, "wrong": 3}, "the same token"),
        ({"prompt": (1, 2), "positions": [5]}, "position"),
        ({"prompt": (1, 2), "top": 0}, "top is 0"),
    ],
)
def test_bad_input(tiny_models, arguments, message):
    with pytest.raises(MeasurementError, match=message):
        logit_lens(tiny_models.load("gpt2"), **arguments)
