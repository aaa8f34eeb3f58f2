"""Which backend runs a model, why, and what an error says if it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from torch import nn

from benchmarks.random_models.tiny_models import (
    ARCHITECTURES,
    OTHER_ARCHITECTURES,
    save_hugging_face,
)
from discovery.backends.hardware.placement import Placement
from discovery.backends.loading import load
from discovery.backends.loading.backend_choice import (
    MAX_TRANSFORMERLENS_PARAMETERS,
    REMOTE_REASON,
    choose_backend,
    describe_misfit,
    estimate_load_memory,
    require_fit,
)
from discovery.backends.loading.load import load_model
from discovery.backends.loading.outline import find_supporting_backends, read_outline
from discovery.backends.nnsight.layout import LAYOUTS
from discovery.errors import ModelError

QUICK = ("gemma2", "mixtral", "falcon")
MORE = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in OTHER_ARCHITECTURES
]
PLENTY = 10**15


def storages(module: nn.Module) -> dict[int, int]:
    """Bytes of every storage that a module holds."""
    tensors = [
        tensor
        for part in module.modules()
        for tensor in (*part._parameters.values(), *part._buffers.values())
        if tensor is not None
    ]
    return {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
    }


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_what_transformerlens_holds_twice_is_known_before(tiny_models, name, monkeypatch):
    before = {}
    wrap = load._wrap_in_transformerlens

    def wrap_and_count(plain, tokenizer):
        before.update(storages(plain.module))
        return wrap(plain, tokenizer)

    monkeypatch.setattr(load, "_wrap_in_transformerlens", wrap_and_count)
    model = load_model(tiny_models.path(name), device="cpu", backend="transformerlens")
    new = sum(size for place, size in storages(model.bridge).items() if place not in before)
    outline = read_outline(tiny_models.path(name))
    small = 4 * outline.n_layers * 3 * outline.n_heads * outline.d_head + 256  # biases, positions
    assert outline.copied_bytes <= new <= outline.copied_bytes + small
    assert model.info.copied == outline.copied
    assert outline.weights_bytes == 4 * (outline.n_params + outline.copied)
    assert outline.as_held_by("nnsight").weights_bytes == 4 * outline.n_params


def test_both_backends_support_every_architecture_that_nnsight_has_a_layout_of():
    """So if nnsight supports a model, TransformerLens does too."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] for kind in LAYOUTS}
    assert classes <= set(SUPPORTED_ARCHITECTURES)


def test_small_models_run_on_transformerlens_and_large_ones_on_nnsight(tiny_models):
    small = read_outline(tiny_models.path("llama"))
    choice = choose_backend(small, "auto", PLENTY)
    assert (choice.backend, "up to 2 billion" in choice.reason) == ("transformerlens", True)
    choice = choose_backend(
        replace(small, n_params=MAX_TRANSFORMERLENS_PARAMETERS + 1), "auto", PLENTY
    )
    assert (choice.backend, "2.0 billion parameters" in choice.reason) == ("nnsight", True)
    assert (
        choose_backend(
            replace(small, n_params=MAX_TRANSFORMERLENS_PARAMETERS + 1), "transformerlens", PLENTY
        ).backend
        == "transformerlens"
    )


def test_if_memory_is_short_the_backend_that_holds_nothing_twice_is_chosen(tiny_models):
    outline = read_outline(tiny_models.path("neox"))
    assert outline.copied
    choice = choose_backend(outline, "auto", outline.as_held_by("nnsight").weights_bytes)
    assert (choice.backend, "twice" in choice.reason) == ("nnsight", True)
    require_fit(choice, "cpu", choice.outline.weights_bytes)
    assert choose_backend(outline, "auto", outline.weights_bytes).backend == "transformerlens"


def test_what_only_one_backend_supports_runs_on_it_whatever_its_size(folder):
    outline = replace(
        read_outline(save_hugging_face(folder, "codegen")),
        n_params=MAX_TRANSFORMERLENS_PARAMETERS + 1,
    )
    choice = choose_backend(outline, "auto", PLENTY)
    assert (choice.backend, choice.reason) == (
        "transformerlens",
        "only TransformerLens supports CodeGenForCausalLM",
    )
    for backend, is_spread, word in (
        ("nnsight", False, "'codegen'"),
        ("auto", True, "does not support CodeGenForCausalLM"),
    ):
        with pytest.raises(ModelError, match=word):
            choose_backend(outline, backend, PLENTY, is_spread=is_spread)


def test_what_does_not_fit_is_refused_with_numbers_and_choices(tiny_models):
    outline = replace(
        read_outline(tiny_models.path("llama")),
        n_params=70 * 10**9,
        revision="0123",
        tokenizer=True,
    )
    misfit = describe_misfit(choose_backend(outline, "auto", 200 * 10**9), "cpu", 200 * 10**9)
    assert misfit is not None
    for said in (
        "280.0 GB in float32 with nnsight",
        "200.0 GB are free on cpu",
        "bfloat16 (140.0 GB)",
        "device_map auto",
        "--remote",
    ):
        assert said in str(misfit)
    misfit = describe_misfit(
        choose_backend(replace(outline, revision=None), "auto", 10**9), "cpu", 10**9
    )
    assert misfit is not None
    assert "bfloat16" not in str(misfit)
    assert "remote" not in str(misfit)
    assert describe_misfit(choose_backend(outline, "auto", 280 * 10**9), "cpu", 280 * 10**9) is None
    wide = describe_misfit(
        choose_backend(replace(outline, dtype="float64"), "auto", 300 * 10**9), "cpu", 300 * 10**9
    )
    assert "dtype float32 (280.0 GB)" in str(wide)  # the widest that fits


def test_what_runs_elsewhere_runs_on_nnsight(tiny_models):
    outline = replace(read_outline(tiny_models.path("llama")), revision="0123", tokenizer=True)
    assert (
        choose_backend(outline, "auto", 0, remote=True).backend,
        choose_backend(outline, "auto", 0, remote=True).reason,
    ) == ("nnsight", REMOTE_REASON)
    with pytest.raises(ModelError, match="NDIF serves nnsight"):
        choose_backend(outline, "transformerlens", 0, remote=True)
    with pytest.raises(ModelError, match="models of the hub"):
        choose_backend(replace(outline, revision=None), "auto", 0, remote=True)
    with pytest.raises(ModelError, match="has no tokenizer"):
        choose_backend(replace(outline, tokenizer=False), "auto", 0, remote=True)


def test_what_cannot_run_elsewhere_is_not_sent_there(tiny_models, folder):
    there = {"revision": "0123", "tokenizer": True}
    for outline, offered in (
        (replace(read_outline(tiny_models.path("llama")), **there), True),
        (replace(read_outline(tiny_models.path("llama")), revision="0123"), False),
        (replace(read_outline(save_hugging_face(folder, "codegen")), **there), False),
    ):
        misfit = describe_misfit(choose_backend(outline, "auto", 0), "cpu", 0)
        assert ("--remote" in str(misfit)) == offered


def test_quantised_weights_are_refused_but_elsewhere(folder, monkeypatch):
    path = save_hugging_face(folder, "llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    monkeypatch.setattr(load, "build_module", lambda *_: pytest.fail("it was opened"))
    for how in ({"device": "cpu"}, {"device_map": "auto"}):
        with pytest.raises(ModelError, match=r"quantised weights \(gptq\)"):
            load_model(path, **how)
    assert (
        choose_backend(
            replace(read_outline(path), revision="0123", tokenizer=True), "auto", 0, remote=True
        ).backend
        == "nnsight"
    )


def test_a_package_that_a_model_needs_is_named(tiny_models, monkeypatch):
    import transformers

    def lack(*_, **__):
        raise ImportError("Using this needs the package `nowhere`")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lack)
    with pytest.raises(ModelError, match="a package that is not installed") as caught:
        load_model(tiny_models.path("gpt2"), device="cpu")
    assert "nowhere" in caught.value.detail


def test_what_a_model_takes_of_the_memory_where_it_lies(tiny_models):
    outline = read_outline(tiny_models.path("llama"), dtype="float64")
    assert estimate_load_memory(outline, None, remote=False) == (
        outline.loading_bytes,
        outline.weights_bytes,
    )
    assert estimate_load_memory(outline, None, remote=True) == (0, 0)
    assert estimate_load_memory(outline, Placement("auto", {"cpu": 1000}), remote=False) == (
        1000,
        1000,
    )
    assert estimate_load_memory(outline, Placement("auto", {"cpu": PLENTY}), remote=False) == (
        outline.loading_bytes,
        outline.weights_bytes,
    )


def test_it_is_refused_before_any_weight_is_read(folder, monkeypatch):
    """A Llama of 405 billion parameters, without a single weight file."""
    sizes = {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    }
    kind = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**kind, **sizes, "num_key_value_heads": 8}))
    monkeypatch.setattr(load, "build_module", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(
        ModelError, match=r"1,62\d\.\d GB in float32 with nnsight, and .* are free on cpu"
    ):
        load_model(folder, device="cpu")


def test_a_loaded_model_says_why_it_runs_where_it_does(tiny_models):
    assert (
        "up to 2 billion" in load_model(tiny_models.path("gpt2"), device="cpu").info.backend_reason
    )
    assert (
        load_model(tiny_models.path("gpt2"), device="cpu", backend="nnsight").info.backend_reason
        == "it was asked for"
    )
    assert find_supporting_backends(type("Config", (), {"model_type": "codegen"}))[0] == (
        "transformerlens",
    )
