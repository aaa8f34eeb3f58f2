"""The bundled model does its four behaviours on prompts that it was not trained on.

No head does a behaviour alone, and the model's card describes these weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks.methods.evaluator import new_evaluator
from discovery import check_task, load_model, load_task
from discovery.backends.loading.huggingface import TextTokenizer
from discovery.backends.loading.source import locate_model
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.tasks import BUILTIN, BUNDLED_TASKS
from discovery.tasks.builtin.tokenizer_filter import TokenizerFilter
from training.evaluate_bundled import sample_unseen
from training.heldout import HELDOUT_TEMPLATES

PAIRS = 300
FOLDER = locate_model("bundled").directory


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("bundled", device="cpu")


@pytest.mark.parametrize("new_templates", [False, True])
@pytest.mark.parametrize("name", sorted(BUNDLED_TASKS))
def test_it_is_right_on_what_it_never_saw(name: str, new_templates: bool, model: Any) -> None:
    """The combinations of words are in no training sentence; the templates may be."""
    templates = sorted(HELDOUT_TEMPLATES[name])
    if not new_templates:
        templates = [t for t in BUILTIN[name].templates if t not in HELDOUT_TEMPLATES[name]]
    tokenizer_filter = TokenizerFilter(TextTokenizer(AutoTokenizer.from_pretrained(FOLDER)), name)
    pairs = sample_unseen(name, tokenizer_filter, PAIRS, templates, True)
    task = load_task(list(pairs), model)
    behaviour = check_task(model, task, metric=BUILTIN[name].metric)
    assert behaviour.n == PAIRS
    assert behaviour.accuracy >= 0.95
    assert behaviour.accuracy_low > 0.95
    assert behaviour.gap.low > 0


@pytest.mark.parametrize("name", sorted(BUNDLED_TASKS))
def test_no_behaviour_is_one_head(name: str, model: Any) -> None:
    task = load_task(name, model, pairs=64)
    evaluator = new_evaluator(model, task)
    heads = [frozenset({node}) for node in model.info.nodes("heads")]
    for ablation in EVIDENCE_ABLATIONS:
        assert float(evaluator.f(ablation)(heads, "single heads").max()) < 0.5


def test_its_card_is_of_these_weights_and_it_is_small() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    weights = FOLDER / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    assert f"{weights.stat().st_size:,} bytes" in card
    sizes = [path.stat().st_size for path in Path(FOLDER).rglob("*") if path.is_file()]
    assert sum(sizes) <= 8_000_000
