"""Hugging Face directories: missing, misshapen and damaged files are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_models.tiny_models import save_tokenizer
from discovery.backends.loading.load import load_model
from discovery.sites import BackendName
from tests.discovery.backends.loading.refusals import change_json, refuse


@pytest.mark.parametrize("fields", [{"n_head": 3}, {"n_layer": "two"}, {"n_embd": -4}])
def test_a_configuration_that_makes_no_model(gpt2, fields):
    change_json(gpt2 / "config.json", **fields)
    fault = refuse(gpt2)
    assert "does not take its config.json" in fault.cause
    assert fault.detail
    assert fault.detail not in str(
        fault
    )  # another library's words are for the owner of the machine


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"nonsense"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
    ],
)
def test_damaged_weights(gpt2, spoil):
    spoil(gpt2 / "model.safetensors")
    fault = refuse(gpt2)
    assert "weights" in fault.cause
    assert "again" in fault.cure


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_layer_that_the_configuration_leaves_out(gpt2):
    """It would run, as another model, under the fingerprint of the whole one."""
    change_json(gpt2 / "config.json", n_layer=2)
    fault = refuse(gpt2)
    assert "weights of layers that config.json leaves out, first transformer.h.2" in fault.cause


def test_weights_that_the_model_does_not_use_are_let_pass(gpt2):
    rewrite(gpt2, lambda state: state.update({"vision_tower.weight": torch.zeros(2)}))
    assert load_model(gpt2, device="cpu").info.n_layers == 3


def test_a_weight_of_another_shape_is_named(gpt2):
    change_json(gpt2 / "config.json", n_embd=8)
    assert "weights have other shapes than config.json says, first" in refuse(gpt2).cause


def test_weights_that_are_not_numbers(gpt2):
    def edit(state: dict[str, torch.Tensor]) -> None:
        state[next(name for name in state if name.endswith("h.1.mlp.c_fc.weight"))][0, 0] = float(
            "nan"
        )

    rewrite(gpt2, edit)
    assert "own logits are not finite" in refuse(gpt2).cause


def test_a_missing_weight(gpt2):
    def edit(state: dict[str, torch.Tensor]) -> None:
        del state[next(name for name in state if name.endswith("h.1.mlp.c_fc.weight"))]

    rewrite(gpt2, edit)
    fault = refuse(gpt2)
    assert "lacks 1 weights" in fault.cause
    assert "h.1.mlp.c_fc.weight" in fault.cause


def test_a_misshapen_weight(gpt2):
    def edit(state: dict[str, torch.Tensor]) -> None:
        name = next(name for name in state if name.endswith("h.1.mlp.c_fc.weight"))
        state[name] = state[name][:-1].contiguous()

    rewrite(gpt2, edit)
    fault = refuse(gpt2)
    assert "h.1.mlp.c_fc.weight" in fault.cause or "size" in fault.cause or "shape" in fault.cause


def test_a_tokenizer_that_cannot_be_read(gpt2):
    (gpt2 / "tokenizer.json").write_text("{")
    fault = refuse(gpt2)
    assert "tokenizer cannot be read" in fault.cause
    assert "token ids" in fault.cure
    save_tokenizer(gpt2)
    assert load_model(gpt2, device="cpu").tokenizer is not None


def test_the_steps_of_gelu_are_one_kernel(tiny_models: Any, backend: BackendName) -> None:
    """gelu_new, the default of GPT-2's configuration."""
    model = tiny_models.load("gpt2", backend)
    kinds = {
        type(part).__name__
        for part in (model.module if backend == "nnsight" else model.bridge).modules()
    }
    assert "GELU" in kinds
    assert "NewGELUActivation" not in kinds
