"""Declarative edits against torch's own hooks, sweeps and ablations, and as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, load_plain_module, random_pairs
from discovery.errors import DiscoveryError, MeasurementError, SiteError
from discovery.methods.ablation import ablate_heads
from discovery.methods.edits import EditSet, cell_edits, edits_json_schema, run_with_edits
from discovery.methods.patching import patch_sweep
from discovery.methods.patching.grid import Cell, top_cells
from discovery.sites import SITE_NAMES, Site
from tests.oracles.models.hooked_module import HookedModule

GEOMETRIES = ("gpt2", "llama", "neox")
LENGTHS = (6, 4, 7)


def difference(logits: torch.Tensor, pair: Any) -> float:
    return float(logits[list(pair.answer)].logsumexp(0) - logits[list(pair.wrong)].logsumexp(0))


def change_at(rows: list[int], head: int | None, new: Any) -> Any:
    """A change of a hooked activation [1 pos …] at some positions, of one head or of all."""

    def change(activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        for at in rows:
            place = (0, at) if head is None else (0, at, head)
            changed[place] = new(activation[place])
        return changed

    return change


@pytest.mark.parametrize("backend", ["transformerlens", "nnsight"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_each_operation_is_a_hook_that_does_it(tiny_models, name, backend):
    """Several edits at once, by number, from the end, by label and everywhere."""
    model = tiny_models.load(name, backend)
    hooked = HookedModule(load_plain_module(tiny_models.path(name)), name)
    task = as_task(random_pairs(LENGTHS, seed=5, labelled=True))
    info = model.info
    own_kv = "kv_head" if info.key_value_groups("v") else "head"
    push = torch.linspace(-1, 1, info.d_model).tolist()
    put = torch.linspace(0, 1, info.d_head).tolist()
    edits = [
        {"operation": "add", "site": "resid_pre", "layer": 1, "positions": [1], "value": push,
         "factor": 0.5},
        {"operation": "replace", "site": "head_out", "layer": 0, "head": 1, "positions": [-1, 0],
         "value": put},
        {"operation": "scale", "site": "v", "layer": 1, own_kv: 0, "factor": -2.0},
        {"operation": "zero", "site": "mlp_out", "layer": 0, "positions": ["first"]},
    ]  # fmt: skip
    result = run_with_edits(model, edits, task)
    assert result.n == len(task)
    for row, pair in enumerate(task.pairs):
        first, last = pair.labels["first"], len(pair.clean) - 1
        changes = {
            Site("resid_pre", 1): change_at([1], None, lambda x: x + 0.5 * torch.tensor(push)),
            Site("z", 0): change_at([0, last], 1, lambda x: torch.tensor(put)),
            Site("v", 1): change_at(list(range(last + 1)), 0, lambda x: -2.0 * x),
            Site("mlp_out", 0): change_at([first], None, torch.zeros_like),
        }
        tokens = torch.tensor([pair.clean])
        logits, _ = hooked.run(tokens, changes)
        plain, _ = hooked.run(tokens)
        edited, before = difference(logits[0, -1], pair), difference(plain[0, -1], pair)
        assert abs(edited - before) > 1e-3
        assert float(result.per_pair[row]) == pytest.approx(edited, abs=2e-4)
        assert float(result.per_pair_before[row]) == pytest.approx(before, abs=2e-4)
    assert result.change.mean == pytest.approx(result.after.mean - result.before.mean, abs=1e-9)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_exported_cell_of_every_sweep_gives_the_number_of_the_sweep(
    tiny_models, name, direction
):
    """Also by label, where some pairs lack the cell. A cell survives being written to a file."""
    model = tiny_models.load(name)
    task = as_task(random_pairs(LENGTHS, seed=2, labelled=True))
    for site in SITE_NAMES:
        if site == "pattern" and not model.abilities.pattern:
            continue
        for by in ("position", "label"):
            sweep = patch_sweep(model, task, site, direction=direction, by=by)
            for cell in top_cells(sweep, 2):
                exported = EditSet.of(json.loads(json.dumps(cell_edits(sweep, cell).to_json())))
                result = run_with_edits(model, exported, task)
                axes = {"layer": cell.layer, "head": cell.head, "kv_head": cell.kv_head}
                if cell.position is not None:
                    axes["position"] = sweep.positions.index(cell.position)
                index = tuple(axes[axis] for axis in sweep.axes)
                torch.testing.assert_close(
                    result.per_pair,
                    sweep.per_pair[(slice(None), *index)].double(),
                    atol=1e-5,
                    rtol=1e-5,
                    equal_nan=True,
                )
                assert result.effect == pytest.approx(cell.value, abs=1e-3)
                missing = int(result.per_pair.isnan().sum())
                assert (missing > 0) == bool(result.warnings)


@pytest.mark.parametrize(("operation", "ablation"), [("zero", "zero"), ("mean", "mean")])
def test_an_operation_on_a_head_and_an_mlp_is_their_ablation(tiny_models, operation, ablation):
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs((6,) * 5, seed=1))
    edits = [
        {"operation": operation, "site": "head_out", "layer": 1, "head": 0},
        {"operation": operation, "site": "mlp_out", "layer": 0},
    ]
    result = run_with_edits(model, edits, task)
    ablated = ablate_heads(model, task, ["a1.h0", "m0"], ablation=ablation)
    assert float(result.after.mean) == pytest.approx(float(ablated.metric_ablated), abs=1e-5)
    torch.testing.assert_close(result.per_pair, ablated.per_pair.double(), atol=1e-5, rtol=1e-5)


def test_edits_that_change_nothing(tiny_models):
    model = tiny_models.load("llama")
    task = as_task(random_pairs(LENGTHS, seed=3))
    zeros = [0.0] * model.info.d_model
    nothing = [
        {"operation": "scale", "site": "resid_pre", "layer": 0, "factor": 1.0},
        {"operation": "add", "site": "attn_out", "layer": 1, "value": zeros},
        {"operation": "resample", "site": "head_out", "layer": 1, "head": 2, "source": "clean"},
    ]
    result = run_with_edits(model, nothing, task)
    assert result.change.mean == pytest.approx(0.0, abs=1e-5)
    assert all(token.before == pytest.approx(token.after, abs=1e-6) for token in result.tokens)


@pytest.mark.parametrize("site", ["resid_pre", "head_out", "k", "pattern"])
def test_a_named_prompt_gives_what_the_corrupted_side_gives(tiny_models, site):
    """The corrupted prompt as a named one, at all positions, from the end, and by label."""
    model = tiny_models.load("gpt2")
    (pair,) = random_pairs((6,), seed=4, labelled=True)
    task = as_task([pair])
    place: dict[str, Any] = {"site": site, "layer": 1}
    if site != "resid_pre":
        place["head"] = 1
    for positions in (None, [-1, -2], ["first"]):
        where = place if positions is None else {**place, "positions": positions}
        named = EditSet.of(
            {
                "prompts": {"other": list(pair.corrupted)},
                "edits": [{"operation": "resample", "source": "other", **where}],
            }
        )
        got = run_with_edits(model, named, task)
        want = run_with_edits(
            model, [{"operation": "resample", "source": "corrupted", **where}], task
        )
        torch.testing.assert_close(got.per_pair, want.per_pair, atol=1e-5, rtol=1e-5)


def test_a_prompt_has_predictions_before_and_after(tiny_models):
    model = tiny_models.load("gpt2")
    edits = [{"operation": "scale", "site": "resid_post", "layer": 1, "factor": -3.0}]
    result = run_with_edits(model, edits, prompt=[3, 1, 4, 1, 5], top=3)
    assert (result.task, result.n, result.effect) == ("prompt", 1, None)
    assert 3 <= len(result.tokens) <= 6
    before = [token.before for token in result.tokens[:3]]
    assert before == sorted(before, reverse=True)
    assert max(token.after for token in result.tokens) > max(before[1:]) - 1
    assert result.tokens[0].before != pytest.approx(result.tokens[0].after, abs=1e-3)


HEAD = {"operation": "zero", "site": "head_out", "layer": 0, "head": 0}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([], "at edits"),
        ([{**HEAD, "operation": "nul"}], "at edits.0"),
        ([{**HEAD, "heads": 3}], r"at edits\.0\.zero\.heads"),
        ([{**HEAD, "operation": "scale"}], r"at edits\.0\.scale\.factor"),
        ([{**HEAD, "operation": "scale", "factor": float("nan")}], r"at edits\.0\.scale\.factor"),
        ([{**HEAD, "layer": 1.5}], r"at edits\.0\.zero\.layer"),
        ([{**HEAD, "operation": "resample", "source": "other"}], "'other', which is not known"),
        ({"edits": [HEAD], "prompts": {"clean": [1]}}, "named 'clean', which is a side"),
        ({"edits": [HEAD], "schema": "circuit-scout/edits/9"}, "at schema"),
        ([{**HEAD, "layer": 7}], "Layer 7 does not exist"),
        ([{**HEAD, "head": 9}], r"edits\.0 names head 9"),
        ([{**HEAD, "head": None}], r"edits\.0 must name a head"),
        ([{**HEAD, "site": "mlp_out"}], "mlp_out has none"),
        ([{**HEAD, "site": "k"}], "must name a kv_head of k, because query heads share it"),
        ([{**HEAD, "operation": "mean", "site": "q"}], "means are taken of outputs only"),
        ([{**HEAD, "operation": "add", "value": [1.0]}], "has a vector of 1 numbers"),
        ([{**HEAD, "positions": ["nowhere"]}], "No pair has the position 'nowhere'"),
    ],
)
def test_what_is_not_allowed_is_refused_with_its_place(tiny_models, edits, message):
    model = tiny_models.load("llama")
    with pytest.raises(DiscoveryError, match=message) as caught:
        run_with_edits(model, edits, as_task(random_pairs(LENGTHS)))
    assert isinstance(caught.value, MeasurementError | SiteError)
    assert caught.value.cure


def test_a_single_prompt_has_no_other_side(tiny_models):
    model = tiny_models.load("gpt2")
    for edits, message in (
        ([{**HEAD, "operation": "mean"}], "takes a mean over a task's"),
        ([{**HEAD, "operation": "resample", "source": "corrupted"}], "has none"),
        ({"edits": [HEAD], "side": "corrupted"}, "has none"),
    ):
        with pytest.raises(MeasurementError, match=message):
            run_with_edits(model, edits, prompt=[1, 2, 3])


def test_named_prompts_of_another_length_serve_positions_by_number_only(tiny_models):
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs((6,), labelled=True))
    edit = {"operation": "resample", "source": "other", "site": "resid_pre", "layer": 1}
    short = {"prompts": {"other": [1, 2]}}
    assert run_with_edits(model, {**short, "edits": [{**edit, "positions": [-1]}]}, task).n == 1
    for positions, message in (
        (None, "has 2 tokens, and pair 1 has 6"),
        (["first"], "has 2 tokens, and pair 1 has 6"),
        ([4], "no position 4"),
    ):
        with pytest.raises(MeasurementError, match=message):
            run_with_edits(model, {**short, "edits": [{**edit, "positions": positions}]}, task)


def test_a_cell_that_was_not_measured_is_no_set_of_edits(tiny_models):
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs((6,) * 3))
    within = torch.zeros(model.info.n_layers, model.info.n_heads, dtype=torch.bool)
    within[0, 1] = True
    sweep = patch_sweep(model, task, "head_out", within=within)
    assert cell_edits(sweep, Cell(layer=0, head=1, position=None, value=0.0)).edits
    for cell, message in (
        (Cell(layer=0, head=0, position=None, value=0.0), "was not measured"),
        (Cell(layer=0, head=None, position=2, value=0.0), "is not a cell of this sweep"),
    ):
        with pytest.raises(MeasurementError, match=message):
            cell_edits(sweep, cell)


def test_a_file_is_read_as_it_was_written_and_has_the_schema(tmp_path: Path):
    edits = EditSet.of(
        {
            "description": "two edits",
            "model": "gpt2",
            "side": "corrupted",
            "prompts": {"other": "a prompt", "ids": [1, 2]},
            "edits": [HEAD, {**HEAD, "operation": "resample", "source": "ids", "positions": [-1]}],
        }
    )
    path = tmp_path / "edits.json"
    edits.save(path)
    assert EditSet.of(path) == edits == EditSet.of(str(path))
    schema = edits_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads(path.read_text())
    jsonschema.validate(content, schema)
    assert content["schema"] == "circuit-scout/edits/1"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "edits": [{**HEAD, "heads": 1}]}, schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("3", "holds 3"),
        ('{"edits": [{"factor": NaN}]}', "NaN is not a number in JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "edits.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MeasurementError, match=message):
        EditSet.of(path)
