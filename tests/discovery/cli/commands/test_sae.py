"""`circuit-scout sae`: training through the command line, its messages and its exit statuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_models.tiny_models import save_hugging_face, save_tokenizer
from discovery.store import run_ids
from tests.discovery.cli.stand_ins import CommandResult

WORDS = ("the", "cat", "dog", "sees", "fish", "bones")
SMALL = ("--features", "24", "--tokens", "640", "--batch", "32", "--site", "resid_post.1")


@pytest.fixture(autouse=True)
def _few_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than the training of these small SAEs."""
    from discovery.features.training import loop

    monkeypatch.setattr(loop, "REPORTS_PER_TRAINING", 2)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_tokenizer(save_hugging_face(tmp_path / "gpt2", "gpt2"), WORDS))


@pytest.fixture
def text(tmp_path: Path) -> str:
    rng = random.Random(0)
    path = tmp_path / "animals.txt"
    path.write_text(
        "".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) + "\n" for _ in range(120))
    )
    return str(path)


@pytest.fixture
def train(model: str, text: str) -> list[str]:
    """The command that trains a small SAE."""
    return ["sae", "train", "--model", model, "--text", text, *SMALL]


@pytest.fixture
def trained(
    scout: Callable[..., CommandResult], train: list[str], runs_dir: Path, tmp_path: Path
) -> dict[str, Any]:
    """The JSON of a training whose SAE is also in `tmp_path / "mine"`."""
    result = scout(*train, "--out", str(tmp_path / "mine"), "--json")
    assert result.status == 0, result.err
    facts: dict[str, Any] = json.loads(result.out)
    assert facts["recipe"]["d_sae"] == 24
    assert Path(facts["sae"]) == runs_dir / facts["run_id"] / "sae"
    assert "estimate: 640 tokens in 20 steps" in result.err
    assert "loss recovered" in result.err or "variance explained" in result.err
    return facts


def test_a_training_and_its_files(
    scout: Callable[..., CommandResult],
    trained: dict[str, Any],
    model: str,
    text: str,
    runs_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = json.loads(scout("sae", "info", str(tmp_path / "mine"), "--json").out)
    assert (facts["hook"], facts["features"]) == ("blocks.1.hook_resid_post", 24)
    assert facts["scores"] == trained["scores"]
    assert facts["recipe"] == trained["recipe"]
    for name in (trained["run_id"], trained["path"], trained["sae"]):
        assert json.loads(scout("sae", "info", name, "--json").out)["bytes"] == facts["bytes"]
    examples = ["sae", "examples", "--model", model, "--text", text, "--features", "1"]
    examples += ["--no-cache", "--json", "-q", "--sae"]
    by_id = json.loads(scout(*examples, trained["run_id"]).out)
    by_path = json.loads(scout(*examples, trained["sae"]).out)
    assert (by_id["sae"], by_id["features"]) == (trained["run_id"], by_path["features"])
    monkeypatch.delenv("CIRCUIT_SCOUT_RUNS_DIR")
    assert "is no directory, no run in" in scout(*examples, trained["run_id"]).err
    elsewhere = ("--runs-dir", str(runs_dir))
    assert scout(*examples, trained["run_id"], *elsewhere).status == 0
    assert scout("sae", "info", trained["run_id"]).status == 2
    assert scout("sae", "info", trained["run_id"], *elsewhere).status == 0


def test_the_run_of_a_training(
    scout: Callable[..., CommandResult], trained: dict[str, Any]
) -> None:
    shown = scout("runs", "show", trained["run_id"])
    assert "completed" in shown.out
    assert f"the SAE: {trained['sae']}" in shown.out
    assert json.loads(scout("runs", "--json").out)["runs"][0]["kind"] == "sae"
    for words in (
        ("runs", "export", trained["run_id"]),
        ("runs", "verify", trained["run_id"]),
        ("discover", "--resume", trained["run_id"]),
    ):
        refusal = scout(*words)
        assert (refusal.status, refusal.out) == (2, "")
        assert "SAE" in refusal.err
    again = scout("sae", "train", "--resume", trained["run_id"], "--json")
    assert json.loads(again.out) == trained


def test_an_interrupted_training_is_resumed(
    scout: Callable[..., CommandResult],
    train: list[str],
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from discovery.features.training import loop

    original_step = loop.step
    steps = 0

    def interrupted_step(trainer: Any, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt
        return original_step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", interrupted_step)
        result = scout(*train)
    [run_id] = run_ids(runs_dir)
    assert (result.status, result.out) == (130, "")
    assert result.err.endswith(f"To resume, run:\n  circuit-scout sae train --resume {run_id}\n")
    assert f"circuit-scout sae train --resume {run_id}" in scout("runs", "show", run_id).out
    result = scout("sae", "train", "--resume", run_id)
    assert result.status == 0, result.err
    assert "24 features of resid_post.1 (topk): variance explained" in result.out


def test_only_an_estimate(
    scout: Callable[..., CommandResult], train: list[str], runs_dir: Path
) -> None:
    result = scout(*train, "--dry-run", "--json")
    assert result.status == 0, result.err
    facts = json.loads(result.out)
    assert facts["estimate"]["steps"] == 20
    assert facts["estimate"]["memory_bytes"] > 0
    assert "640 tokens in 20 steps" in scout(*train, "--dry-run").out
    assert run_ids(runs_dir) == []


def test_a_task_of_the_bundled_model(scout: Callable[..., CommandResult]) -> None:
    line = "sae train --task ioi --task agreement --pairs 20 --features 16 --dry-run"
    result = scout(*line.split())
    assert result.status == 0, result.err
    assert "16 features of resid_pre.2 (topk)" in result.out


def test_the_bundled_sae(scout: Callable[..., CommandResult]) -> None:
    result = scout("sae", "info", "bundled")
    assert result.status == 0
    assert "blocks.2.hook_resid_pre" in result.out
    assert result == scout("sae")
    assert json.loads(scout("sae", "info", "bundled", "--json").out)["features"] == 1024


@pytest.mark.parametrize(
    ("words", "cause", "cure"),
    [
        (("train",), "Neither --text nor --task was given.", "--task ioi"),
        (
            ("train", "--text", "x", "--task", "ioi"),
            "Both --text and --task were given.",
            "--text FILE",
        ),
        (
            ("train", "--text", "nowhere.txt"),
            "--text is 'nowhere.txt', and there is no such file.",
            "document a line",
        ),
        (
            ("train", "--text", "x", "--pairs", "3"),
            "--pairs 3 was given with --text.",
            "Leave it out",
        ),
        (
            ("train", "--task", "oii"),
            "'oii' is neither a built-in task nor a file.",
            "Built-in: ioi",
        ),
        (
            ("train", "--task", "ioi", "--site", "resid_pre.7"),
            "resid_pre.7: Layer 7 does not exist.",
            "0 to 3",
        ),
        (
            ("train", "--task", "ioi", "--architecture", "gated"),
            "--architecture is 'gated'; allowed: topk, standard.",
            "--architecture topk",
        ),
        (
            ("train", "--task", "ioi", "--features", "1"),
            "--features is '1', and must be a whole number of at least 2.",
            "--features",
        ),
        (
            ("train", "--task", "ioi", "--out", __file__),
            "test_sae.py is a file.",
            "Name a directory",
        ),
        (
            ("train", "--task", "ioi", "--out", f"{__file__}/x"),
            "test_sae.py is a file.",
            "Name a directory",
        ),
        (
            ("train", "--resume", "x", "--k", "3"),
            "--resume x was given with --k.",
            "Leave them out",
        ),
        (("train", "--resume", "nothing"), "There is no run 'nothing'", "There is none yet"),
        (("info", "nowhere"), "There is no SAE 'nowhere'", "'bundled'"),
        (("info",), "PATH", "sae info --help"),
        (("trian",), "no 'trian'; it has train, info", "Did you mean train?"),
    ],
)
def test_what_is_wrong_names_the_value_and_a_cure(
    words: tuple[str, ...], cause: str, cure: str, scout: Callable[..., CommandResult]
) -> None:
    result = scout("sae", *words)
    assert (result.status, result.out) == (2, "")
    [error, fix] = result.err.partition("error: ")[2].splitlines()[:2]
    assert cause in error
    assert fix.startswith("fix: ")
    assert cure in fix
