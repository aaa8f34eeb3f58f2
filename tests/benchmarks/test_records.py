"""The comparison of captured runs: it finds every changed bit, and ignores times and words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.records import compare, drop_volatile, main

CIRCUIT = {
    "graph": {
        "run_id": "first-run",
        "model": {"name": "first/models/backup", "n_layers": 2},
        "verdict": "verified",
        "reasons": ["a sentence"],
        "task": {"n_discovery": 12, "split": "a sentence"},
        "evaluation": {"reference": {"source": "a sentence", "size": 60}},
        "cost": {"forward_equivalents": 10.5, "seconds": 1.0, "peak_memory_bytes": 7},
        "provenance": {"created": "today"},
    },
    "nodes": [{"id": "a0.h1", "label": "L0H1", "effect": {"noising": {"mean": 0.1}}}],
    "edges": [{"source": "a0.h1", "target": "logits"}],
}
EVENTS = [
    {"stage": "check", "kind": "stage", "measured": {"accuracy": 1.0, "seconds": 3.0}, "why": "so"},
    {"stage": "nodes", "kind": "decision", "measured": None, "why": "so"},
]


def write_run(folder: Path) -> None:
    (folder / "arrays").mkdir(parents=True)
    (folder / "circuit.json").write_text(json.dumps(CIRCUIT))
    (folder / "task.jsonl").write_text(json.dumps({"clean": [1, 2], "answer": 3}) + "\n")
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    save_file({"values": torch.tensor([1.0, float("nan")])}, folder / "arrays" / "grid.safetensors")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two captured folders with the same two runs, under other run ids."""
    first = tmp_path / "first"
    for name in ("ioi", "backup"):
        write_run(first / name / f"{name}-run")
    (first / "models" / "backup").mkdir(parents=True)
    second = tmp_path / "second"
    shutil.copytree(first, second)
    (second / "ioi" / "ioi-run").rename(second / "ioi" / "ioi-another-run")
    return first, second


def change(path: Path, *keys: Any, value: Any) -> None:
    """Set one value in a JSON file."""
    record = json.loads(path.read_text())
    target = record
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path.write_text(json.dumps(record))


def test_equal_runs_are_the_same(folders: tuple[Path, Path], capsys: Any) -> None:
    assert compare(*folders) == {"ioi": [], "backup": []}
    assert main(["compare", *map(str, folders)]) == 0
    assert "0 of 2 runs differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    "keys",
    [
        ("graph", "run_id"),
        ("graph", "reasons"),
        ("graph", "provenance"),
        ("graph", "task", "split"),
        ("graph", "evaluation", "reference", "source"),
        ("graph", "cost", "seconds"),
        ("graph", "cost", "peak_memory_bytes"),
        ("nodes", 0, "label"),
    ],
)
def test_times_ids_and_wording_are_ignored(keys: Any, folders: tuple[Path, Path]) -> None:
    change(folders[1] / "backup" / "backup-run" / "circuit.json", *keys, value="other")
    assert compare(*folders)["backup"] == []


@pytest.mark.parametrize(
    ("keys", "value", "difference"),
    [
        (
            ("nodes", 0, "effect", "noising", "mean"),
            0.1 + 2**-56,
            "circuit.json.nodes[0].effect.noising.mean is 0.1 and 0.10000000000000002",
        ),
        (("graph", "verdict"), "partial", "circuit.json.graph.verdict is 'verified' and 'partial'"),
        (("edges", 0, "source"), "m0", "circuit.json.edges[0].source is 'a0.h1' and 'm0'"),
        (("edges",), [], "circuit.json.edges has 1 and 0 items"),
        (("graph", "cost", "new"), 1, "circuit.json.graph.cost.new is only in the second run"),
        (
            ("graph", "evaluation", "reference", "size"),
            60.0,
            "circuit.json.graph.evaluation.reference.size is 60 and 60.0",
        ),
    ],
)
def test_a_changed_value_of_the_circuit_is_found(
    keys: Any, value: Any, difference: str, folders: tuple[Path, Path], capsys: Any
) -> None:
    change(folders[1] / "backup" / "backup-run" / "circuit.json", *keys, value=value)
    assert compare(*folders) == {"ioi": [], "backup": [difference]}
    assert main(["compare", *map(str, folders)]) == 1
    assert f"backup: differing values: 1\n    {difference}\n" in capsys.readouterr().out


def test_a_changed_measurement_of_an_event_is_found(folders: tuple[Path, Path]) -> None:
    events = folders[1] / "ioi" / "ioi-another-run" / "events.jsonl"
    text = events.read_text()
    events.write_text(text.replace('"why": "so"', '"why": "for another reason"'))
    assert compare(*folders)["ioi"] == []
    events.write_text(text.replace('"seconds": 3.0', '"seconds": 4.0'))
    assert compare(*folders)["ioi"] == []
    events.write_text(text.replace('"accuracy": 1.0', '"accuracy": 0.5'))
    expected = ["events.jsonl[0].measured.accuracy is 1.0 and 0.5"]
    assert compare(*folders)["ioi"] == expected
    events.write_text(text.splitlines()[0] + "\n")
    assert compare(*folders)["ioi"] == ["events.jsonl has 2 and 1 items"]


def test_a_changed_pair_is_found(folders: tuple[Path, Path]) -> None:
    pairs = folders[1] / "ioi" / "ioi-another-run" / "task.jsonl"
    pairs.write_text(pairs.read_text().replace("3", "4"))
    assert compare(*folders)["ioi"] == ["task.jsonl[0].answer is 3 and 4"]


def test_a_changed_bit_of_an_array_is_found(folders: tuple[Path, Path]) -> None:
    arrays = folders[1] / "backup" / "backup-run" / "arrays"
    nan = float("nan")
    for values in (
        {"values": torch.tensor([torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)), nan])},
        {"values": torch.tensor([1.0, nan], dtype=torch.float64)},
        {"values": torch.tensor([[1.0, nan]])},
        {"others": torch.tensor([1.0, nan]), "values": torch.tensor([1.0, nan])},
    ):
        save_file(values, arrays / "grid.safetensors")
        key = "others" if "others" in values else "values"
        assert compare(*folders)["backup"] == [f"arrays/grid.safetensors: {key} differs"]
    (arrays / "grid.safetensors").rename(arrays / "new.safetensors")
    assert compare(*folders)["backup"] == [
        "arrays/grid.safetensors is only in the first run",
        "arrays/new.safetensors is only in the second run",
    ]


def test_a_missing_run_is_a_difference(folders: tuple[Path, Path]) -> None:
    first, second = folders
    shutil.rmtree(second / "ioi")
    assert compare(first, second)["ioi"] == [f"the run is missing in {second}"]
    assert main(["compare", str(first), str(second)]) == 1


def test_what_cannot_be_compared_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = folders
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        compare(first, tmp_path / "nowhere")
    write_run(second / "ioi" / "a-second-run")
    with pytest.raises(ValueError, match="holds 2 run folders"):
        compare(first, second)
    with pytest.raises(SystemExit) as exit_:
        main(["compare", str(first), str(second)])
    assert exit_.value.code == 2
    with pytest.raises(SystemExit):
        main(["capture", str(first)])


def test_the_folder_of_a_model_is_ignored_and_its_name_is_not(
    folders: tuple[Path, Path],
) -> None:
    circuit = folders[1] / "backup" / "backup-run" / "circuit.json"
    change(circuit, "graph", "model", "name", value="second/models/backup")
    assert compare(*folders)["backup"] == []
    change(circuit, "graph", "model", "name", value="second/models/induction")
    assert compare(*folders)["backup"] == [
        "circuit.json.graph.model.name is 'backup' and 'induction'"
    ]


def test_an_edge_keeps_its_source() -> None:
    edge = {"source": "a0.h1", "target": "m0"}
    assert drop_volatile({"edges": [edge], "reference": {"source": "words", "size": 3}}) == {
        "edges": [edge],
        "reference": {"size": 3},
    }
