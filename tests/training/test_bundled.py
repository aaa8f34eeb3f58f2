"""The bundled model does its four behaviours where it was not trained on them, no head does one alone, and its card is about it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from discovery import check_task, load_model, load_task
from discovery.backends.loading.source import locate_model
from discovery.engine import Meter
from discovery.evaluation import SplitEvaluator
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.tasks import BUILTIN
from discovery.tasks.builtin.tokenizer_filter import TokenizerFilter
from training.evaluate_bundled import sample_unseen
from training.heldout import HELDOUT_TEMPLATES

PAIRS = 300
FOLDER = locate_model("bundled").directory


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("bundled", device="cpu")


@pytest.mark.parametrize("new_wording", [False, True])
@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_it_is_right_on_what_it_never_saw(name: str, new_wording: bool, model: Any) -> None:
    """Combinations of words that are in no training sentence, in wordings that are, and in wordings that are not."""
    wordings = (
        sorted(HELDOUT_TEMPLATES[name])
        if new_wording
        else [w for w in BUILTIN[name].templates if w not in HELDOUT_TEMPLATES[name]]
    )
    pairs = sample_unseen(
        name, TokenizerFilter(AutoTokenizer.from_pretrained(FOLDER), name), PAIRS, wordings, True
    )
    found = check_task(model, load_task(list(pairs), model), metric=BUILTIN[name].metric)  # type: ignore[arg-type]  # a metric
    assert found.n == PAIRS
    assert found.accuracy >= 0.95
    assert found.accuracy_low > 0.95
    assert found.gap.low > 0


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_no_behaviour_is_one_head(name: str, model: Any) -> None:
    task = load_task(name, model, pairs=64)
    bench = SplitEvaluator.of(model, task, "all", 0, metric=task.metric, memory=None, meter=Meter())
    heads = [frozenset({node}) for node in model.info.nodes("heads")]
    for ablation in EVIDENCE_ABLATIONS:
        assert float(bench.f(ablation)(heads, "single heads").max()) < 0.5


def test_there_is_at_least_one_whole_wording_held_out_of_each() -> None:
    assert set(HELDOUT_TEMPLATES) == set(BUILTIN)
    for name, held in HELDOUT_TEMPLATES.items():
        assert held
        assert held < set(BUILTIN[name].templates)
    assert len(BUILTIN["ioi"].templates) >= 8


def test_its_card_is_of_these_weights_and_it_is_small() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    weights = FOLDER / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    assert f"{weights.stat().st_size:,} bytes" in card
    assert (
        sum(path.stat().st_size for path in Path(FOLDER).rglob("*") if path.is_file()) <= 8_000_000
    )
