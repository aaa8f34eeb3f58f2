"""`circuit-scout look edits`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.discovery.cli.stand_ins import CommandResult

Scout = Callable[..., CommandResult]


@pytest.fixture
def edits(scout: Scout, model_directory: Path) -> Scout:
    """A function that runs the technique on the task of the hand-built induction model."""

    def run(*words: str) -> CommandResult:
        task = str(model_directory / "task.jsonl")
        model = ("--model", str(model_directory), "--device", "cpu", "-q", "--pairs", "12")
        return scout("look", "edits", task, *model, *words)

    return run


def test_a_cell_is_saved_and_run_again(edits: Scout, tmp_path: Path) -> None:
    path, picture = tmp_path / "edits.json", tmp_path / "edits.png"
    first = json.loads(edits("--cell", "head_out:1.1", "--save", str(path), "--json").out)
    assert first["effect"] > 0.1
    assert first["edits"]["edits"][0]["source"] == "corrupted"
    again = json.loads(edits("--edits", str(path), "--json").out)
    assert again["effect"] == pytest.approx(first["effect"])
    text = edits("--edits", str(path), "--figure", str(picture))
    assert (text.status, text.err) == (0, "")
    assert "1 edit on the clean side" in text.out
    assert "share lost" in text.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    restored = edits("--cell", "resid_pre:1:-1", "--direction", "denoising")
    assert "share restored" in restored.out


def test_the_schema_needs_no_model(scout: Scout) -> None:
    schema = json.loads(scout("look", "edits", "--schema").out)
    assert schema["properties"]["edits"]["minItems"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "neither was given"),
        (("--cell", "head_out"), "is not a cell of a sweep"),
        (("--cell", "nowhere:1"), "is not a cell of a sweep"),
        (("--edits", "missing.json"), "cannot be read"),
        (("--edits", "missing.json", "--direction", "noising"), "--direction belongs to --cell"),
    ],
)
def test_bad_input(edits: Scout, words: tuple[str, ...], message: str) -> None:
    result = edits(*words)
    assert (result.status, result.out) == (2, "")
    assert message in result.err
