"""`circuit-scout sae examples`: what it says, what it keeps, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.discovery.cli.conftest import CommandResult
from tests.tiny_saes import directions_module, save, signed_basis


@pytest.fixture
def words(model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model, a dictionary of its stream's own directions, and a text of ids."""
    monkeypatch.setenv("CIRCUIT_SCOUT_CACHE_DIR", str(tmp_path / "cache"))
    width = json.loads((model_directory / "tl_config.json").read_text())["d_model"]
    sae = save(directions_module(signed_basis(width), "blocks.0.hook_resid_pre"), tmp_path / "sae")
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"ids": [0, n % 5 + 1, n % 7 + 1]}) + "\n" for n in range(20)).replace(
            "ids", "tokens"
        )
    )
    return [
        "sae",
        "examples",
        "--model",
        str(model_directory),
        "--device",
        "cpu",
        "--sae",
        str(sae),
        "--text",
        str(text),
    ]


def test_it_shows_contexts_and_finds_them_again(
    scout: Callable[..., CommandResult], words: list[str]
) -> None:
    told = scout(*words, "--features", "3,4", "--top", "2", "--bins", "2", "-q")
    assert told.status == 0, told.err
    assert told.out.startswith("40 positions of 20 documents of text.jsonl\n")
    assert "feature 3: fires at " in told.out
    assert "«" in told.out
    again = json.loads(
        scout(*words, "--features", "3,4", "--top", "2", "--bins", "2", "-q", "--json").out
    )
    assert again["cached"]
    assert [card["feature"] for card in again["features"]] == [3, 4]
    assert not json.loads(
        scout(
            *words, "--features", "3,4", "--top", "2", "--bins", "2", "-q", "--json", "--no-cache"
        ).out
    )["cached"]


def test_the_prompts_of_a_built_in_task_are_a_text(
    scout: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the bundled model, whose dictionary is taken where none is named: feature 60 fires on the last word of an ioi prompt."""
    monkeypatch.setenv("CIRCUIT_SCOUT_CACHE_DIR", str(tmp_path / "cache"))
    told = scout(
        "sae",
        "examples",
        "--text",
        "ioi",
        "--features",
        "60",
        "--top",
        "1",
        "--bins",
        "0",
        "-q",
        "--json",
    )
    assert told.status == 0, told.err
    found = json.loads(told.out)
    assert (found["sae"], found["text"], found["documents"]) == ("bundled", "ioi", 480)
    assert found["features"][0]["top"][0]["texts"][-1].strip() == "to"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--features", "x"], "--features is 'x'"),
        (["--features", "3", "--text", "nothing.txt"], "there is no such file"),
        (["--features", "99999"], "does not exist"),
        (["--features", "3", "--window", "1"], "--window is '1'"),
    ],
)
def test_what_cannot_be_is_refused(
    scout: Callable[..., CommandResult], words: list[str], change: list[str], said: str
) -> None:
    told = scout(*words, *change, "-q")
    assert told.status == 2
    assert said in told.err
