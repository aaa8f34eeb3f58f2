"""The built-in tasks on the bundled model, and on untrained twins of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from discovery import discover, load_model, load_task
from discovery.agent import verify_run
from discovery.backends.loading.source import bundled_directory
from discovery.tasks import BUNDLED_TASKS

TWINS = range(10)
PAIRS = 120


def untrained(folder: Path, seed: int) -> Path:
    """The bundled model's shape and tokenizer with untrained weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    bundled = bundled_directory()
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bundled)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(BUNDLED_TASKS))
def test_a_task_gives_a_record_that_holds(name: str, tmp_path: Path) -> None:
    model = load_model("bundled")
    run = discover(model, load_task(name, model), runs_dir=tmp_path)
    assert run.circuit.verdict in ("verified", "partial")
    assert 2 <= run.circuit.size < len(model.info.nodes())
    assert sum(node.kind == "attention_head" for node in run.circuit.members) >= 1
    conditions = run.circuit.evaluation.conditions
    assert {conditions.a.resample, conditions.a.mean, conditions.b.resample, conditions.b.mean} == {
        "holds"
    }
    assert verify_run(run.run_id, runs_dir=tmp_path).holds


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(BUNDLED_TASKS))
def test_untrained_twins_have_no_behaviour(name: str, tmp_path: Path) -> None:
    verdicts = []
    for seed in TWINS:
        model = load_model(untrained(tmp_path / f"twin{seed}", seed))
        run = discover(
            model,
            load_task(name, model, pairs=PAIRS, seed=seed),
            seed=seed,
            runs_dir=tmp_path / "runs",
        )
        verdicts.append(run.circuit.verdict)
        assert run.circuit.size == 0 or run.circuit.verdict not in ("verified", "partial")
    assert verdicts.count("no_behaviour") >= 9, verdicts


@pytest.mark.parametrize("name", sorted(BUNDLED_TASKS))
def test_one_untrained_twin_is_refused(name: str, tmp_path: Path) -> None:
    model = load_model(untrained(tmp_path / "twin", 0))
    run = discover(model, load_task(name, model, pairs=PAIRS), runs_dir=tmp_path / "runs")
    assert run.circuit.verdict == "no_behaviour"
    assert run.circuit.size == 0
