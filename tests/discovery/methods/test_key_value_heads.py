"""k and v are by key-value head, and are named as such if several query heads share one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.random_models.tiny_models import (
    GROUPED_LLAMAS,
    TinyModels,
    as_task,
    load_plain_module,
    random_pairs,
    save_native,
)
from discovery.engine import Engine
from discovery.errors import SiteError
from discovery.evaluation import evaluate_circuit
from discovery.methods.ablation import ablate_heads
from discovery.methods.controls import compare_with_controls
from discovery.methods.patching import measure_edge_effects, patch_sweep, top_cells
from discovery.methods.prompt_run import run_with_cache
from discovery.sites import (
    ActivationKind,
    BackendName,
    Direction,
    Edge,
    KeyValueHead,
    Node,
    Site,
    head,
)
from tests.oracles.models import grouped_heads

PAIRS = random_pairs((6, 4, 7), seed=3, same_end=False)
BACKENDS: tuple[BackendName, ...] = ("transformerlens", "nnsight")
SHARED = [name for name, (heads, kv_heads) in GROUPED_LLAMAS.items() if kv_heads < heads]


def groups(name: str) -> list[tuple[int, ...]]:
    """The query heads of each key-value head, counted out."""
    heads, kv_heads = GROUPED_LLAMAS[name]
    members: list[list[int]] = [[] for _ in range(kv_heads)]
    for query_head in range(heads):
        members[query_head * kv_heads // heads].append(query_head)
    return [tuple(group) for group in members]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GROUPED_LLAMAS)
@pytest.mark.parametrize("site", ["k", "v"])
def test_a_cell_is_the_key_value_head_that_it_is_named_after(
    tiny_models: TinyModels,
    name: str,
    site: Any,
    backend: BackendName,
) -> None:
    """Value and name, against a forward pass with a hook on the projection, in both directions."""
    model = tiny_models.load(name, backend, dtype="float64")
    module = load_plain_module(tiny_models.path(name), torch.float64)
    directions: tuple[Direction, ...] = ("denoising", "noising")
    for direction in directions:
        sweep = patch_sweep(model, as_task(PAIRS), site, direction=direction)
        assert sweep.values.shape == (2, GROUPED_LLAMAS[name][1])
        cells = top_cells(sweep, 100)
        assert len(cells) == sweep.values.numel()
        for cell in cells:
            index = cell.kv_head if name in SHARED else cell.head
            assert index is not None
            at = (cell.layer, index)
            expected = [grouped_heads.patch(module, pair, site, *at, direction) for pair in PAIRS]
            torch.testing.assert_close(
                sweep.per_pair[:, cell.layer, index].double(),
                torch.tensor(expected).double(),
                atol=1e-5,
                rtol=1e-5,
            )
            assert cell.value == float(sweep.values[cell.layer, index])


@pytest.mark.parametrize("site", ["k", "v"])
@pytest.mark.parametrize("name", SHARED)
def test_shared_cells_are_named_with_their_query_heads(
    tiny_models: TinyModels, name: str, site: Any
) -> None:
    sweep = patch_sweep(tiny_models.load(name), as_task(PAIRS), site)
    assert sweep.axes == ("layer", "kv_head")
    assert sweep.query_heads == tuple(groups(name))
    labels = [f"KV{n} = heads {group[0]}–{group[-1]}" for n, group in enumerate(groups(name))]
    assert sweep.head_labels == labels
    for cell in top_cells(sweep, 100):
        assert cell.head is None
        assert cell.kv_head is not None
        assert str(cell.unit) == f"a{cell.layer}.kv{cell.kv_head}"
        assert isinstance(cell.unit, KeyValueHead)
        assert cell.unit.label == f"L{cell.layer}KV{cell.kv_head}"
        assert cell.unit.group == sweep.head_labels[cell.kv_head]
        assert cell.query_heads == groups(name)[cell.kv_head]
    warnings = [text for text in sweep.warnings if "key-value heads shared by query heads" in text]
    assert len(warnings) == 1
    assert all(label in warnings[0] for label in sweep.head_labels)


@pytest.mark.parametrize(
    ("name", "site"),
    [("llama_4_4", "k"), ("llama_4_4", "v"), ("llama_9_3", "q"), ("llama_9_3", "head_out")],
)
def test_what_belongs_to_one_head_stays_named_after_it(
    tiny_models: TinyModels, name: str, site: Any
) -> None:
    sweep = patch_sweep(tiny_models.load(name), as_task(PAIRS), site)
    assert sweep.axes == ("layer", "head")
    assert sweep.query_heads == sweep.warnings == ()
    assert sweep.head_labels == [str(n) for n in range(GROUPED_LLAMAS[name][0])]
    for cell in top_cells(sweep, 100):
        assert cell.head is not None
        assert (cell.unit, cell.kv_head, cell.query_heads) == (
            head(cell.layer, cell.head),
            None,
            (),
        )


@pytest.mark.parametrize("name", GROUPED_LLAMAS)
def test_a_small_screened_grid_has_a_column_for_each_key_value_head(
    tiny_models: TinyModels,
    name: str,
) -> None:
    """It was laid out by query heads: 8 columns for one key-value head, else an error."""
    model = tiny_models.load(name)
    task = as_task(PAIRS)
    whole, screened = (patch_sweep(model, task, "v", screen=screen) for screen in (False, True))
    assert screened.screen is not None
    assert screened.screen.estimates.shape == whole.values.shape == (2, GROUPED_LLAMAS[name][1])
    torch.testing.assert_close(screened.values, whole.values)
    assert screened.query_heads == whole.query_heads


def takers(model: Any) -> dict[str, Callable[[list[str]], object]]:
    """Everything in Python that takes nodes of a model by name."""
    task = as_task(PAIRS)
    return {
        "ablate_heads": lambda nodes: ablate_heads(model, task, nodes),
        "contrast": lambda nodes: compare_with_controls(model, task, nodes),
        "evaluate_circuit": lambda nodes: evaluate_circuit(model, task, nodes),
    }


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("taker", ["ablate_heads", "contrast", "evaluate_circuit"])
@pytest.mark.parametrize("spelling", ["a1.kv0", "L1KV0"])
def test_nothing_that_takes_a_head_takes_a_key_value_head(
    tiny_models: TinyModels,
    name: str,
    taker: str,
    spelling: str,
) -> None:
    model = tiny_models.load(name)
    group = groups(name)[0]
    with pytest.raises(SiteError) as fault:
        takers(model)[taker](["a0.h0", spelling])
    assert repr(spelling) in fault.value.cause
    assert f"key-value head, shared by query heads {group[0]} to {group[-1]}" in fault.value.cause
    names = [str(head(1, query_head)) for query_head in group]
    assert all(node in fault.value.cure for node in names)
    ablate_heads(model, as_task(PAIRS), names)  # the fix works


@pytest.mark.parametrize(
    ("name", "given", "cause", "cure"),
    [
        ("llama_4_4", "a1.kv2", "each head has keys and values of its own", "a1.h2"),
        ("llama_9_3", "a1.kv3", "no such key-value head", "heads 0 to 8"),
        ("llama_9_3", "a2.kv0", "no such key-value head", "layers are 0 to 1"),
    ],
)
def test_a_key_value_head_that_is_none_is_refused_by_name(
    tiny_models: TinyModels,
    name: str,
    given: str,
    cause: str,
    cure: str,
) -> None:
    with pytest.raises(SiteError) as fault:
        ablate_heads(tiny_models.load(name), as_task(PAIRS), [given])
    assert repr(given) in fault.value.cause
    assert cause in fault.value.cause
    assert cure in fault.value.cure


def test_without_a_model_a_key_value_head_is_no_node() -> None:
    for read in (Node.parse, lambda text: Edge.parse(f"m0->{text}<k>")):
        with pytest.raises(SiteError, match=r"'a23\.kv1' is a key-value head"):
            read("a23.kv1")


def test_many_heads_are_not_all_written_out(tiny_models: TinyModels, tmp_path: Path) -> None:
    from discovery.backends.loading.load import load_model

    kind = {"n_heads": 24, "positional_embedding_type": "rotary"}
    model = load_model(save_native(tmp_path / "narrow", n_key_value_heads=2, **kind).path)
    with pytest.raises(SiteError) as fault:
        ablate_heads(model, as_task(PAIRS), ["a1.kv1"])
    assert "query heads 12 to 23" in fault.value.cause
    assert "a1.h12, a1.h13" in fault.value.cure
    assert fault.value.cure.endswith("… a1.h23.")
    wide = load_model(save_native(tmp_path / "wide", n_key_value_heads=12, **kind).path)
    [warnings] = patch_sweep(wide, as_task(PAIRS), "v").warnings
    assert "KV0 = heads 0–1, KV1 = heads 2–3, …, KV11 = heads 22–23" in warnings


@pytest.mark.parametrize("name", GROUPED_LLAMAS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_kept_of_a_prompt_is_by_key_value_head(
    tiny_models: TinyModels,
    name: str,
    backend: BackendName,
) -> None:
    heads, kv_heads = GROUPED_LLAMAS[name]
    kinds: tuple[ActivationKind, ...] = ("q", "k", "v", "pattern", "resid_pre")
    run = run_with_cache(tiny_models.load(name, backend), PAIRS[0].clean, kinds)
    axis = "kv_head" if kv_heads < heads else "head"
    assert [run.axes[Site(kind, 1)] for kind in kinds] == [
        ("pos", "head", "d_head"),
        ("pos", axis, "d_head"),
        ("pos", axis, "d_head"),
        ("head", "dst", "src"),
        ("pos", "d_model"),
    ]
    sizes = {
        "pos": 6,
        "head": heads,
        "kv_head": kv_heads,
        "d_head": 4,
        "dst": 6,
        "src": 6,
        "d_model": 4 * heads,
    }
    for site, value in run.activations.items():
        assert value.shape == tuple(sizes[axis] for axis in run.axes[site])
    assert len(run.warnings) == (kv_heads < heads)
    for text in run.warnings:
        assert "k and v" in text
        assert f"KV0 = heads 0–{heads // kv_heads - 1}" in text
    by_head = run_with_cache(tiny_models.load(name, backend), PAIRS[0].clean, ["q", "pattern"])
    assert by_head.warnings == ()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GROUPED_LLAMAS)
def test_an_edge_into_k_or_v_changes_the_copy_of_its_own_query_head(
    tiny_models: TinyModels,
    name: str,
    backend: BackendName,
) -> None:
    """Against the same model with a key-value head for each query head: one alone hears it."""
    model = tiny_models.load(name, backend, dtype="float64")
    module = load_plain_module(tiny_models.path(name), torch.float64)
    last = GROUPED_LLAMAS[name][0] - 1
    source = head(0, 1)
    targets = [head(1, 0), head(1, last)]
    edges = measure_edge_effects(Engine(model, as_task(PAIRS)), [source, *targets])
    edge_by_ends = {(edge.source, edge.target): edge for edge in edges}
    slots: Sequence[grouped_heads.Slot] = ("q", "k", "v")
    for target in targets:
        effect = edge_by_ends[source, target]
        measured = {"whole": effect.whole, **effect.inputs}
        for slot, changed in {"whole": tuple(slots), **{slot: (slot,) for slot in slots}}.items():
            at = (1, target.head or 0)
            expected = torch.tensor(
                [grouped_heads.edge(module, pair, (0, 1), at, changed) for pair in PAIRS],
                dtype=torch.float64,
            )
            torch.testing.assert_close(measured[slot].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SHARED)
def test_a_copy_of_one_head_is_not_the_key_value_head_of_all(
    tiny_models: TinyModels, name: str
) -> None:
    """The test above tells them apart: a message to the whole group moves the metric otherwise."""
    module = load_plain_module(tiny_models.path(name), torch.float64)
    [pair, *_] = PAIRS
    delta = grouped_heads.head_output(module, pair.corrupted, 0, 1) - grouped_heads.head_output(
        module, pair.clean, 0, 1
    )
    block = module.model.layers[1]
    projection = block.self_attn.v_proj
    stream = grouped_heads.inputs(module, block.input_layernorm, pair.clean)
    with torch.no_grad():
        read = projection(block.input_layernorm(stream + delta))
    with grouped_heads.replaced(projection, grouped_heads.columns(module, 0), read):
        shared = grouped_heads.difference(module, pair.clean, pair)
    assert abs(shared - grouped_heads.edge(module, pair, (0, 1), (1, 0), ("v",))) > 1e-3
