"""What a head does is right on a hand-built model, and not known where nothing is to be known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.loading.load import load_model
from discovery.engine import Engine
from discovery.errors import MeasurementError, SiteError
from discovery.methods.ablation import ablate_heads
from discovery.methods.heads import attention_patterns, head_kinds, interpret_head
from discovery.methods.heads.attention_patterns import measure_shares
from discovery.methods.patching import patch_sweep
from discovery.sites import head
from discovery.tasks import load_task

PAIRS = 16


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    path = build_known_circuit("induction").save(tmp_path_factory.mktemp("known") / "induction")
    model = load_model(str(path), device="cpu")
    return model, load_task(str(path / "task.jsonl"), model, pairs=PAIRS)


@pytest.fixture(scope="module")
def kinds(known):
    return head_kinds(known[0], controls=0)


@pytest.fixture(scope="module")
def found(known, kinds):
    return interpret_head(known[0], "a1.h1", known[1], kinds=kinds)


def claims(statements, aspect):
    return [statement.claim for statement in statements if statement.aspect == aspect]


def test_an_induction_head(found):
    assert claims(found.known, "kind") == [
        "Of the kind induction; its score",
        "Of the kind copying; its score",
    ]
    assert claims(found.known, "reads") == ["From the answer position it looks at B1"]
    assert claims(found.known, "writes") == [
        "It raises the token that it reads; share of tokens",
        "It writes to the answer's logit difference itself; share of it",
    ]
    assert len(claims(found.known, "needed")) == 3
    for statement in found.known:
        assert statement.p <= 0.05
        assert statement.value.low <= statement.value.mean <= statement.value.high
        assert str(statement) in found.summary
    assert found.weights.reads_from[0].writer == "a0.h2"
    assert repr(found) == f"<{found.summary}>"


def test_numbers_are_those_of_the_tools(known, found):
    model, task = known
    needed = {s.claim.split("(")[1]: s.value.mean for s in found.statements if s.aspect == "needed"}
    for direction in ("denoising", "noising"):
        sweep = patch_sweep(model, task, "head_out", direction=direction)
        name = next(key for key in needed if key.startswith(direction))
        assert needed[name] == pytest.approx(float(sweep.values[1, 1]), abs=1e-5)
    mean = ablate_heads(model, task, ["a1.h1"], ablation="mean")
    gap = float((sweep.metric_clean - sweep.metric_corrupted).mean())
    lost = (mean.metric_clean - mean.metric_ablated) / gap
    assert needed["mean ablation)"] == pytest.approx(lost, abs=1e-5)
    looks = attention_patterns(model, task, nodes=["a1.h1"], top=1)
    assert found.looks_at[0].share == looks.heads[0].sources[0].share


def test_an_idle_head_is_not_known(known, kinds):
    model, task = known
    idle = interpret_head(model, "a1.h0", task, kinds=kinds)
    assert claims(idle.known, "writes") == claims(idle.known, "needed") == []
    assert len(claims(idle.not_known, "needed")) == 3
    nothing = replace(idle, statements=idle.not_known)
    expected = f"What a1.h0 does on {idle.task} is not known: nothing is beyond chance."
    assert nothing.summary == expected


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "qwen3"])
def test_random_heads_write_nothing_by_rule(tiny_models, name):
    model = tiny_models.load(name)
    task = as_task(random_pairs([6] * 12, seed=4, labelled=True))
    found = interpret_head(model, "a1.h1", task, tokens=24, controls=3)
    assert claims(found.known, "matches") == []
    assert [s.claim for s in found.known if "token that it reads" in s.claim] == []
    assert len(claims(found.statements, "matches")) == (0 if name == "qwen3" else 2)
    assert found.cost.forward_equivalents > 0


def test_shares_are_tested_against_uniform_attention(known):
    model, task = known
    tested = {
        source.share.source: source for source in measure_shares(Engine(model, task), head(1, 1))
    }
    assert tested["B1"].p < 1e-6
    lengths = [len(pair.clean) for pair in task.pairs]
    assert tested["B1"].uniform == pytest.approx(sum(1 / n for n in lengths) / len(lengths))
    others = [source.p for name, source in tested.items() if name != "B1"]
    assert min(others) > 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"node": "a9.h0"}, SiteError, "does not exist"),
        ({"node": "a0.h0", "controls": 0}, MeasurementError, "controls is 0"),
    ],
)
def test_bad_input(known, arguments, error, message):
    with pytest.raises(error, match=message):
        interpret_head(known[0], task=known[1], **arguments)
