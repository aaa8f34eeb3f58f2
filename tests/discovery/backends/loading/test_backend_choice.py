"""Which engine runs a model, why, and what is said where it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from torch import nn

from discovery.backends.hardware.placement import Spread
from discovery.backends.loading import load
from discovery.backends.loading.backend_choice import ELSEWHERE, LARGE, choose, require_room, taken, unfit
from discovery.backends.loading.load import load_model
from discovery.backends.loading.outline import engines_of, outline
from discovery.backends.nnsight.layout import LAYOUTS
from discovery.errors import ModelError
from tests.tiny_models import ARCHITECTURES, OTHERS, hugging_face

QUICK = ("gemma2", "mixtral", "falcon")
MORE = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
PLENTY = 10**15


def storages(module: nn.Module) -> dict[int, int]:
    """Bytes of every storage that a module holds."""
    held = [tensor for part in module.modules() for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_what_transformerlens_holds_twice_is_known_before(shelf, name, monkeypatch):
    before = {}
    bridged = load._bridged

    def counted(plain, tokenizer):
        before.update(storages(plain.module))
        return bridged(plain, tokenizer)

    monkeypatch.setattr(load, "_bridged", counted)
    model = load_model(shelf.path(name), device="cpu", backend="transformerlens")
    new = sum(size for place, size in storages(model.bridge).items() if place not in before)
    found = outline(shelf.path(name))
    small = 4 * found.n_layers * 3 * found.n_heads * found.d_head + 256  # biases, positions
    assert found.copied_bytes <= new <= found.copied_bytes + small
    assert model.info.copied == found.copied
    assert found.weights_bytes == 4 * (found.n_params + found.copied)
    assert found.on("nnsight").weights_bytes == 4 * found.n_params


def test_both_engines_know_every_architecture_that_nnsight_has_a_layout_of():
    """So whether TransformerLens knows a model is asked only where nnsight does not."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    assert {kind for kind in LAYOUTS if CLASSES[kind] not in SUPPORTED_ARCHITECTURES} == set()


def test_small_models_run_on_transformerlens_and_large_ones_on_nnsight(shelf):
    small = outline(shelf.path("llama"))
    chosen = choose(small, "auto", PLENTY)
    assert (chosen.engine, "up to 2 billion" in chosen.reason) == ("transformerlens", True)
    chosen = choose(replace(small, n_params=LARGE + 1), "auto", PLENTY)
    assert (chosen.engine, "2.0 billion parameters" in chosen.reason) == ("nnsight", True)
    assert choose(replace(small, n_params=LARGE + 1), "transformerlens", PLENTY).engine == "transformerlens"


def test_where_memory_is_short_the_engine_that_holds_nothing_twice(shelf):
    found = outline(shelf.path("neox"))
    assert found.copied
    chosen = choose(found, "auto", found.on("nnsight").weights_bytes)
    assert (chosen.engine, "twice" in chosen.reason) == ("nnsight", True)
    require_room(chosen, "cpu", chosen.found.weights_bytes)
    assert choose(found, "auto", found.weights_bytes).engine == "transformerlens"


def test_what_only_one_knows_runs_on_it_whatever_its_size(folder):
    found = replace(outline(hugging_face(folder, "codegen")), n_params=LARGE + 1)
    chosen = choose(found, "auto", PLENTY)
    assert (chosen.engine, chosen.reason) == ("transformerlens", "only TransformerLens knows CodeGenForCausalLM")
    for backend, spread, word in (("nnsight", False, "'codegen'"), ("auto", True, "CodeGenForCausalLM is not for it")):
        with pytest.raises(ModelError, match=word):
            choose(found, backend, PLENTY, spread=spread)


def test_what_does_not_fit_is_refused_with_numbers_and_choices(shelf):
    found = replace(outline(shelf.path("llama")), n_params=70 * 10**9, revision="0123", tokenizer=True)
    trouble = unfit(choose(found, "auto", 200 * 10**9), "cpu", 200 * 10**9)
    assert trouble is not None
    for said in ("280.0 GB in float32 with nnsight", "200.0 GB are free on cpu", "bfloat16 (140.0 GB)", "device_map auto", "--remote"):
        assert said in str(trouble)
    trouble = unfit(choose(replace(found, revision=None), "auto", 10**9), "cpu", 10**9)
    assert trouble is not None
    assert "bfloat16" not in str(trouble)
    assert "remote" not in str(trouble)
    assert unfit(choose(found, "auto", 280 * 10**9), "cpu", 280 * 10**9) is None
    wide = unfit(choose(replace(found, dtype="float64"), "auto", 300 * 10**9), "cpu", 300 * 10**9)
    assert "dtype float32 (280.0 GB)" in str(wide)  # the widest that fits


def test_what_runs_elsewhere_runs_on_nnsight(shelf):
    found = replace(outline(shelf.path("llama")), revision="0123", tokenizer=True)
    assert (choose(found, "auto", 0, remote=True).engine, choose(found, "auto", 0, remote=True).reason) == ("nnsight", ELSEWHERE)
    with pytest.raises(ModelError, match="NDIF serves nnsight"):
        choose(found, "transformerlens", 0, remote=True)
    with pytest.raises(ModelError, match="models of the hub"):
        choose(replace(found, revision=None), "auto", 0, remote=True)
    with pytest.raises(ModelError, match="has no tokenizer"):
        choose(replace(found, tokenizer=False), "auto", 0, remote=True)


def test_what_cannot_run_elsewhere_is_not_sent_there(shelf, folder):
    there = {"revision": "0123", "tokenizer": True}
    for found, offered in (
        (replace(outline(shelf.path("llama")), **there), True),
        (replace(outline(shelf.path("llama")), revision="0123"), False),
        (replace(outline(hugging_face(folder, "codegen")), **there), False),
    ):
        trouble = unfit(choose(found, "auto", 0), "cpu", 0)
        assert ("--remote" in str(trouble)) == offered


def test_quantised_weights_are_refused_but_elsewhere(folder, monkeypatch):
    path = hugging_face(folder, "llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    monkeypatch.setattr(load, "build_module", lambda *_: pytest.fail("it was opened"))
    for how in ({"device": "cpu"}, {"device_map": "auto"}):
        with pytest.raises(ModelError, match=r"quantised weights \(gptq\)"):
            load_model(path, **how)
    assert choose(replace(outline(path), revision="0123", tokenizer=True), "auto", 0, remote=True).engine == "nnsight"


def test_a_package_that_a_model_needs_is_named(shelf, monkeypatch):
    import transformers

    def lack(*_, **__):
        raise ImportError("Using this needs the package `nowhere`")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lack)
    with pytest.raises(ModelError, match="a package that is not here") as caught:
        load_model(shelf.path("gpt2"), device="cpu")
    assert "nowhere" in caught.value.detail


def test_what_a_model_takes_of_the_memory_where_it_lies(shelf):
    found = outline(shelf.path("llama"), dtype="float64")
    assert taken(found, None, remote=False) == (found.loading_bytes, found.weights_bytes)
    assert taken(found, None, remote=True) == (0, 0)
    assert taken(found, Spread("auto", {"cpu": 1000}), remote=False) == (1000, 1000)
    assert taken(found, Spread("auto", {"cpu": PLENTY}), remote=False) == (found.loading_bytes, found.weights_bytes)


def test_it_is_refused_before_any_weight_is_read(folder, monkeypatch):
    """A Llama of 405 billion parameters, without a single weight file."""
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "max_position_embeddings": 131072}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**kind, **sizes, "num_key_value_heads": 8}))
    monkeypatch.setattr(load, "build_module", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match=r"1,62\d\.\d GB in float32 with nnsight, and .* are free on cpu"):
        load_model(folder, device="cpu")


def test_a_loaded_model_says_why_it_runs_where_it_does(shelf):
    assert "up to 2 billion" in load_model(shelf.path("gpt2"), device="cpu").info.chosen
    assert load_model(shelf.path("gpt2"), device="cpu", backend="nnsight").info.chosen == "it was asked for"
    assert engines_of(type("Config", (), {"model_type": "codegen"}))[0] == ("transformerlens",)
