"""`circuit-scout look`, and its first technique."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.discovery.cli.stand_ins import CommandResult

Scout = Callable[..., CommandResult]


@pytest.fixture
def look(scout: Scout, model_directory: Path) -> Scout:
    """A function that runs one technique on the hand-built induction model."""

    def run(technique: str, *words: str) -> CommandResult:
        return scout(
            "look", technique, *words, "--model", str(model_directory), "--device", "cpu", "-q"
        )

    return run


def test_the_command_without_a_technique_lists_them(scout: Scout) -> None:
    result = scout("look")
    assert result.status == 0
    assert "lens" in result.out


def test_a_table_and_a_picture(look: Scout, model_directory: Path, tmp_path: Path) -> None:
    picture = tmp_path / "lens.png"
    task = str(model_directory / "task.jsonl")
    result = look("lens", task, "--pairs", "12", "--figure", str(picture))
    assert (result.status, result.err) == (0, "")
    rows = [line.split()[0] for line in result.out.splitlines() if line.startswith("  ")]
    assert rows == ["layer", "0", "1", "2"]
    assert "the answer's median rank is 1" in result.out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_prompt_as_json(look: Scout) -> None:
    result = look("lens", "--tokens", "0,5,6,7,5", "--positions", "1,-1", "--json")
    facts = json.loads(result.out)
    assert (facts["task"], facts["n"], facts["positions"]) == ("prompt", 1, [1, -1])
    assert len(facts["readings"]) == 2 * 3
    assert facts["answer_layer"] is not None
    assert facts["readings"][-1]["top"][0]["probability"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ioi", "--tokens", "1,2"), "TASK and --tokens were given"),
        (("--answer", "x"), "--answer belongs to a prompt"),
        (("--tokens", "1,2", "--figure", "a.jpg"), "must end in .png"),
        (("--tokens", "1,x"), "--tokens is 'x'"),
    ],
)
def test_bad_input(look: Scout, words: tuple[str, ...], message: str) -> None:
    result = look("lens", *words)
    assert (result.status, result.out) == (2, "")
    assert message in result.err


def test_the_attribution(look: Scout, model_directory: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bars.png"
    pairs = [str(model_directory / "task.jsonl"), "--pairs", "12"]
    result = look("attribution", *pairs, "--top", "3", "--figure", str(picture))
    assert (result.status, result.err) == (0, "")
    assert "a1.h1" in result.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(look("attribution", *pairs, "--json").out)
    largest = max(facts["contributions"], key=lambda part: part["value"]["mean"])
    assert largest["part"] == "a1.h1"
    assert abs(facts["remainder_share"]) < 1e-5


def test_where_a_head_looks(look: Scout, tmp_path: Path) -> None:
    picture = tmp_path / "pattern.png"
    words = ["--tokens", "0,5,6,7,5", "--nodes", "a1.h1", "--figure", str(picture)]
    result = look("attention", *words)
    assert (result.status, result.err) == (0, "")
    assert "a1.h1" in result.out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_kinds_of_heads(look: Scout, tmp_path: Path) -> None:
    picture = tmp_path / "kinds.png"
    result = look("heads", "--sequences", "8", "--controls", "3", "--figure", str(picture))
    assert (result.status, result.err) == (0, "")
    _, _, induction = result.out.partition("induction (named from")
    assert induction.splitlines()[1].split()[0] == "a1.h1"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_weights_of_a_head(look: Scout, tmp_path: Path) -> None:
    picture = tmp_path / "weights.png"
    result = look("weights", "a1.h1", "--top", "3", "--figure", str(picture))
    assert (result.status, result.err.count("rotary")) == (0, 0)
    assert "same token 0.96" in result.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(look("weights", "a1.h1", "--tokens", "20", "--json").out)
    assert facts["n_tokens"] == 20
    assert (facts["reads_from"][0]["writer"], facts["reads_from"][0]["kind"]) == ("a0.h2", "k")
    refused = look("weights", "a1.h1", "--tokens", "20", "--words", "a,b")
    assert refused.status == 2
    assert "--tokens and --words were given" in refused.err


def test_what_a_head_does(look: Scout, model_directory: Path, tmp_path: Path) -> None:
    picture = tmp_path / "head.png"
    task = [str(model_directory / "task.jsonl"), "--pairs", "12"]
    words = ["--node", "a1.h1", "--controls", "3", "--figure", str(picture)]
    result = look("interpret", *task, *words)
    assert (result.status, result.err) == (0, "")
    known, _, not_known = result.out.partition("Not known:")
    assert "kind: Of the kind induction" in known
    assert "needed: Lost with its mean output" in known
    assert "Tokens look away from themselves" in not_known
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_probe(look: Scout, model_directory: Path, tmp_path: Path) -> None:
    picture = tmp_path / "probe.png"
    task = str(model_directory / "task.jsonl")
    words = ["--label", "before:A1,C2", "--positions", "A1", "--pairs", "60"]
    result = look("probe", task, *words, "--figure", str(picture))
    assert (result.status, result.err) == (0, "")
    assert "20 random directions of equal " in result.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    examples = tmp_path / "examples.jsonl"
    lines = [{"prompt": [0, 5 + n % 9, 6], "label": "odd" if n % 2 else "even"} for n in range(40)]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = json.loads(look("probe", "--examples", str(examples), "--json").out)
    assert facts["classes"] == {"even": 20, "odd": 20}
    assert facts["removal"] is None
    refused = look("probe", task, "--examples", str(examples))
    assert refused.status == 2
    assert "--examples was given with a task or --label" in refused.err
