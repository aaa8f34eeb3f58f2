"""`circuit-scout sae examples`: its output, its cache, and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.discovery.cli.stand_ins import CommandResult
from tests.tiny_saes import directions_module, save, signed_basis


@pytest.fixture
def words(model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command with a model, an SAE of the directions of its stream, and a text of token ids."""
    monkeypatch.setenv("CIRCUIT_SCOUT_CACHE_DIR", str(tmp_path / "cache"))
    width = json.loads((model_directory / "tl_config.json").read_text())["d_model"]
    sae = save(directions_module(signed_basis(width), "blocks.0.hook_resid_pre"), tmp_path / "sae")
    text = tmp_path / "text.jsonl"
    documents = [{"tokens": [0, n % 5 + 1, n % 7 + 1]} for n in range(20)]
    text.write_text("".join(json.dumps(document) + "\n" for document in documents))
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


def test_contexts_are_shown_and_cached(
    scout: Callable[..., CommandResult], words: list[str]
) -> None:
    words = [*words, *"--features 3,4 --top 2 --bins 2 -q".split()]
    result = scout(*words)
    assert result.status == 0, result.err
    assert result.out.startswith("40 positions of 20 documents of text.jsonl\n")
    assert "feature 3: fires at " in result.out
    assert "«" in result.out
    cached = json.loads(scout(*words, "--json").out)
    assert cached["cached"]
    assert [card["feature"] for card in cached["features"]] == [3, 4]
    assert not json.loads(scout(*words, "--json", "--no-cache").out)["cached"]


def test_the_prompts_of_a_built_in_task_are_a_text(
    scout: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled model and its SAE are the default. Feature 60 fires on the end of ioi prompts."""
    monkeypatch.setenv("CIRCUIT_SCOUT_CACHE_DIR", str(tmp_path / "cache"))
    line = "sae examples --text ioi --features 60 --top 1 --bins 0 -q --json"
    result = scout(*line.split())
    assert result.status == 0, result.err
    facts = json.loads(result.out)
    assert (facts["sae"], facts["text"], facts["documents"]) == ("bundled", "ioi", 480)
    assert facts["features"][0]["top"][0]["texts"][-1].strip() == "to"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "x"], "--features is 'x'"),
        (["--features", "3", "--text", "nothing.txt"], "there is no such file"),
        (["--features", "99999"], "does not exist"),
        (["--features", "3", "--window", "1"], "--window is '1'"),
    ],
)
def test_bad_flags_are_refused(
    scout: Callable[..., CommandResult], words: list[str], flags: list[str], message: str
) -> None:
    result = scout(*words, *flags, "-q")
    assert result.status == 2
    assert message in result.err
