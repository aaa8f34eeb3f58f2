"""Costs: multiply-adds are counted in real runs, and a meter refuses what exceeds its budget."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from benchmarks.random_models.tiny_models import load_plain_module
from discovery.backends.base import Batch
from discovery.engine import Meter, prompt_macs, row_macs
from discovery.errors import BudgetError, Interrupted


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "opt", "gemma"])
@pytest.mark.parametrize("length", [1, 5])
def test_a_forward_pass_equivalent_is_what_a_pass_multiplies(tiny_models, name, length):
    """Every Linear is hooked.

    To that come 2 · heads · d_head · pos² for the attention scores of each layer and their use, and
    unembedding at one position.
    """
    info = tiny_models.load(name).info
    module = load_plain_module(tiny_models.path(name))
    macs = []

    def count(part: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        macs.append(inputs[0].shape[-1] * output.shape[-1] * length)

    blocks = max((part for part in module.modules() if isinstance(part, nn.ModuleList)), key=len)
    for part in blocks.modules():
        if getattr(part, "weight", None) is not None and part.weight.ndim == 2:
            part.register_forward_hook(count)
    module(input_ids=torch.ones(1, length, dtype=torch.long))
    scores = 2 * info.n_heads * info.d_head * length * length * info.n_layers
    assert prompt_macs(info, length) == sum(macs) + scores + info.d_model * info.d_vocab


def test_parts_of_a_pass_add_up(tiny_models):
    info = tiny_models.load("gpt2").info
    whole = row_macs(info, 6, columns=0)
    for layer in range(info.n_layers + 1):
        assert (
            row_macs(info, 6, stop=layer, columns=0) + row_macs(info, 6, start=layer, columns=0)
            == whole
        )
    assert row_macs(info, 6, start=info.n_layers, columns=7) == 7 * info.d_model
    attention = 6 * info.macs_attention + 2 * info.n_heads * info.d_head * 36
    for layer in range(info.n_layers):
        without = row_macs(info, 6, start=layer, after_attention=True, columns=0)
        assert row_macs(info, 6, start=layer, columns=0) - without == attention


def test_a_restricted_last_layer_saves_its_output_projection_and_mlp(tiny_models):
    info = tiny_models.load("gpt2").info
    spared = 5 * (info.n_heads * info.d_head * info.d_model + info.macs_mlp)
    for start in range(info.n_layers):
        assert (
            row_macs(info, 6, start=start, columns=0)
            - row_macs(info, 6, start=start, last_position_only=True, columns=0)
            == spared
        )
    assert row_macs(info, 6, start=info.n_layers, last_position_only=True, columns=0) == 0
    assert row_macs(info, 1, last_position_only=True, columns=0) == row_macs(info, 1, columns=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "gemma"])
def test_a_restricted_last_layer_costs_what_is_counted(tiny_models, name):
    """The difference to a plain run is counted by the real inputs of every matrix."""
    model = tiny_models.load(name)
    info = model.info
    tokens = torch.ones(3, 6, dtype=torch.long)
    macs = []

    def count(part: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        macs.append(inputs[0].numel() * output.shape[-1])

    inner = [
        part
        for block in model.bridge.blocks
        for part in block.modules()
        if not list(part.children())
    ]
    handles = [
        part.register_forward_hook(count)
        for part in inner
        if getattr(part, "weight", None) is not None and part.weight.ndim == 2
    ]
    counts = []
    for is_restricted in (False, True):
        macs.clear()
        model.run(Batch(tokens, torch.tensor([5, 1, 3]), last_position_only=is_restricted))
        counts.append(sum(macs))
    for handle in handles:
        handle.remove()
    whole = row_macs(info, 6, columns=0)
    restricted = row_macs(info, 6, last_position_only=True, columns=0)
    assert counts[0] - counts[1] == 3 * (whole - restricted) > 0


def test_positions_after_a_prefix_attend_to_it(tiny_models):
    info = tiny_models.load("gpt2").info
    one = row_macs(info, 1, 5, columns=0)
    assert one == info.n_layers * (
        info.macs_attention + info.macs_mlp + 2 * info.n_heads * info.d_head * 6
    )
    assert row_macs(info, 1, 5, columns=0) < row_macs(info, 6, columns=0) / 4


def test_the_meter_adds_up():
    meter = Meter()
    meter.begin("one", 5.0)
    meter.add(2.0)
    meter.add(0.5)
    assert (meter.spent, meter.passes, meter.label) == (2.5, 2, "one")


def test_a_budget_is_held_before_the_work():
    meter = Meter(limit=10.0, spent=4.0)
    meter.begin("fits", 6.0)
    with pytest.raises(BudgetError) as caught:
        meter.begin("sweep", 6.5)
    assert caught.value.cause == "sweep needs 6 forward-pass equivalents, and 6 of 10 are left."
    assert "budget" in caught.value.cure
    assert meter.label == "fits"
    meter.add(20.0)
    meter.begin("nothing", 0.0)  # what costs nothing needs no budget
    with pytest.raises(BudgetError, match="and 0 of 10 are left"):
        meter.begin("more", 1.0)


def test_progress_is_reported_for_each_batch_and_never_exceeds_its_total():
    told: list[tuple[float, float, str]] = []
    meter = Meter(progress=lambda *news: told.append(news))
    meter.begin("work", 3.0)
    meter.add(1.0)
    meter.add(2.5)
    meter.begin("next", 1.0)
    assert told == [(0.0, 3.0, "work"), (1.0, 3.0, "work"), (3.5, 3.5, "work"), (0.0, 1.0, "next")]


def test_progress_may_interrupt():
    def stop(done: float, total: float, label: str) -> None:
        if done:
            raise Interrupted

    meter = Meter(progress=stop)
    meter.begin("work", 3.0)
    with pytest.raises(Interrupted):
        meter.add(1.0)
    assert meter.spent == 1.0  # what was done is counted


def test_threads_may_share_a_meter():
    meter = Meter()

    def work() -> None:
        for _ in range(500):
            meter.add(1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (meter.spent, meter.passes) == (2000.0, 2000)
