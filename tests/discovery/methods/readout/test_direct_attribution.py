"""Contributions add up, and equal TransformerLens's and hand-written ones."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import (
    OTHER_ARCHITECTURES,
    as_task,
    load_plain_module,
    random_pairs,
    save_tokenizer,
)
from discovery.errors import MeasurementError
from discovery.methods.readout import direct_logit_attribution
from tests.oracles.readout import attribution

BACKENDS = ("transformerlens", "nnsight")
GEOMETRIES = ("gpt2", "llama", "neox", "gemma2", "attn_only", "rotary")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_sum_is_the_logit_difference(tiny_models, name, backend):
    model = tiny_models.load(name, backend)
    task = as_task(random_pairs([6, 4, 7, 6], seed=3, sets=3))
    found = direct_logit_attribution(model, task)
    assert found.remainder_share < 1e-5
    assert found.total.mean == pytest.approx(found.logit_difference.mean, abs=1e-4)
    assert found.per_pair.shape == (4, len(found.contributions))
    constant = sum(part.value.mean for part in found.contributions[-2:])
    assert found.accumulated[-1].mean + constant == pytest.approx(found.total.mean, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_ARCHITECTURES)
def test_the_sum_on_other_architectures(tiny_models, name):
    task = as_task(random_pairs([6, 4, 7], seed=3, sets=3))
    assert direct_logit_attribution(tiny_models.load(name), task).remainder_share < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_it_is_what_transformer_lens_says(tiny_models, name, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    model = tiny_models.load(name)
    bridge = TransformerBridge.boot_transformers(
        str(tiny_models.path(name)),
        hf_model=load_plain_module(tiny_models.path(name)),
        tokenizer=AutoTokenizer.from_pretrained(save_tokenizer(tmp_path)),
    )
    # The attribution of logit_attrs has no gain, so norms are folded. Nothing else is changed.
    bridge.enable_compatibility_mode(
        center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    task = as_task(random_pairs([6, 6], seed=8))
    found = direct_logit_attribution(model, task)
    by_name = {part.part: column for column, part in enumerate(found.contributions)}
    for row, pair in enumerate(task.pairs):
        _, cache = bridge.run_with_cache(torch.tensor([pair.clean]))
        tokens = {"tokens": pair.answer[0], "incorrect_tokens": pair.wrong[0], "pos_slice": -1}
        streams = cache.accumulated_resid(pos_slice=-1)
        theirs = cache.logit_attrs(streams, **tokens)[:, 0]
        columns = [
            [
                column
                for column, part in enumerate(found.contributions)
                if part.kind == "embed" or (part.layer is not None and part.layer < layer)
            ]
            for layer in range(model.info.n_layers + 1)
        ]
        ours = torch.stack([found.per_pair[row, chosen].sum() for chosen in columns])
        torch.testing.assert_close(ours.float(), theirs, atol=2e-4, rtol=0)
        parts, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
        attributed = cache.logit_attrs(parts, **tokens)[:, 0]
        for label, value in zip(labels, attributed.tolist(), strict=True):
            number, _, kind = label.partition("_")
            if kind == "mlp_out":
                mine = float(found.per_pair[row, by_name[f"m{number}"]])
                assert mine == pytest.approx(value, abs=2e-4), label
        heads = cache.logit_attrs(cache.stack_head_results(pos_slice=-1), **tokens)[:, 0]
        names = [
            f"a{at}.h{n}" for at in range(model.info.n_layers) for n in range(model.info.n_heads)
        ]
        mine = found.per_pair[row, [by_name[each] for each in names]]
        torch.testing.assert_close(mine.float(), heads, atol=2e-4, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_behind_the_attention_are_frozen(tiny_models, backend):
    module = load_plain_module(tiny_models.path("gemma2"))
    task = as_task(random_pairs([6, 5, 6], seed=9))
    found = direct_logit_attribution(tiny_models.load("gemma2", backend), task)
    names = [part.part for part in found.contributions]
    for row, pair in enumerate(task.pairs):
        expected = attribution(module, pair.clean, pair.answer[0], pair.wrong[0])
        assert len(expected) == 1 + 2 * (2 + 1)
        for name, value in expected.items():
            assert float(found.per_pair[row, names.index(name)]) == pytest.approx(value, abs=1e-4)


def test_a_prompt_and_blocks(tiny_models):
    model = tiny_models.load("gpt2")
    found = direct_logit_attribution(model, prompt=(3, 4, 5))
    assert (found.n, found.task) == (1, "prompt")
    assert found.logit_difference.mean > 0
    assert found.heads.shape == (3, 2)
    from discovery.engine.memory import CACHE_PERCENT, pair_bytes

    task = as_task(random_pairs([6] * 7, seed=6))
    memory = 2 * pair_bytes(model.info, 6) * 100 // CACHE_PERCENT + 100
    blocks = direct_logit_attribution(model, task, memory=memory)
    whole = direct_logit_attribution(model, task)
    torch.testing.assert_close(blocks.per_pair, whole.per_pair, atol=1e-5, rtol=0)


def test_a_model_whose_layers_do_not_add_up_is_refused(tiny_models, monkeypatch):
    model = tiny_models.load("gpt2")
    run = model.run

    def spoiled(batch, reads=(), edits=(), **options):
        result = run(batch, reads, edits, **options)
        for site, value in result.activations.items():
            if site.kind == "mlp_out":
                result.activations[site] = 2 * value
        return result

    monkeypatch.setattr(model, "run", spoiled)
    with pytest.raises(MeasurementError, match="does not add its attention's"):
        direct_logit_attribution(model, prompt=(3, 4, 5))
