"""A task may be given by its name, and what a notebook shows of a value is one short line."""

from __future__ import annotations

import torch

from discovery import ablate_heads, check_task, load_model, load_task, patch_sweep


def test_a_name_stands_for_the_task_that_it_loads() -> None:
    model = load_model("bundled", device="cpu")
    task = load_task("agreement", model)
    assert check_task(model, "agreement").accuracy == check_task(model, task).accuracy
    by_name = ablate_heads(model, "agreement", ["a2.h0"])
    torch.testing.assert_close(by_name.per_pair, ablate_heads(model, task, ["a2.h0"]).per_pair)
    pairs = [
        {"clean": list(pair.clean), "corrupted": list(pair.corrupted)}
        | {"answer": list(pair.answer), "wrong": list(pair.wrong)}
        for pair in task.pairs[:3]
    ]
    sweep = patch_sweep(model, pairs, "attn_out")
    assert len(sweep.per_pair) == 3
    for value, words in (
        (task, ("agreement", "240 pairs", "12 templates", task.fingerprint[:12])),
        (sweep, ("attn_out", "denoising", "3 pairs", "largest")),
        (model, ("bundled", "4 layers", "cpu")),
    ):
        text = repr(value)
        assert len(text) < 300
        assert "\n" not in text
        assert all(word in text for word in words), text


def test_tasks_of_other_pairs_have_another_repr() -> None:
    """The server names its pictures by it."""
    model = load_model("bundled", device="cpu")
    first, second = (load_task("ioi", model, pairs=8, seed=seed) for seed in (0, 1))
    assert repr(first).replace("seed 0", "") != repr(second).replace("seed 1", "")
