"""A training that is stopped or killed ends with the same SAE, in SAELens's own format."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_models.tiny_models import (
    as_task,
    random_pairs,
    save_hugging_face,
    save_native,
)
from discovery import (
    edit_features,
    feature_examples,
    generate_with_features,
    load_model,
    load_task,
    sae_top_features,
    train_sae,
)
from discovery.errors import FeatureError, Interrupted, MemoryLimitError, StoreError
from discovery.features import load_sae
from discovery.features.training import estimate_training, loop, resume_training
from discovery.features.training.text import resolve_text
from discovery.store import ModelSource, create_run, list_runs, open_run, run_ids
from tests.discovery.features.training.conftest import token_rows
from tests.tiny_saes import saelens
from training.corpus import sentences

SMALL = {"d_sae": 24, "k": 3, "tokens": 2600, "batch": 32}


def weights(trained) -> dict[str, torch.Tensor]:
    return load_file(trained.directory / "sae_weights.safetensors")


def have_same_weights(one, other) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


@pytest.fixture(autouse=True, scope="module")
def _few_reports():
    """Report seldom, because the reports of a tiny training take longer than its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "REPORTS_PER_TRAINING", 4)
        yield


@pytest.fixture(scope="module")
def whole(word_model, text, tmp_path_factory):
    """A training that was not stopped."""
    return train_sae(
        word_model, text, "resid_post.1", runs_dir=tmp_path_factory.mktemp("runs"), **SMALL
    )


def test_the_run_folder(whole, word_model, text):
    run = open_run(whole.path.parent, whole.run_id)
    assert (run.record.kind, run.status) == ("sae", "completed")
    assert run.record.scores == whole.scores.model_dump(mode="json")
    assert run.record.configuration["text"]["name"] == "animals.txt"  # type: ignore[index, call-overload]  # JSON
    assert not (run.path / "checkpoint.safetensors").exists()
    stages = [event["stage"] for event in run.events()]
    assert stages[:2] == ["estimate", "text"]
    assert stages[-1] == "scores"
    on_the_way = [event["measured"] for event in run.events() if event["stage"] == "train"]
    assert len(on_the_way) == 4
    assert (
        on_the_way[-1]["heldout"]["variance_explained"]
        > on_the_way[0]["heldout"]["variance_explained"]
    )
    assert {"step", "tokens", "loss", "learning_rate", "batch", "heldout", "seconds"} <= set(
        on_the_way[0]
    )
    assert {"l0", "variance_explained", "dead", "loss_recovered"} <= set(on_the_way[0]["heldout"])
    [listed] = list_runs(whole.path.parent)
    assert (listed.kind, listed.status, listed.verdict, listed.task) == (
        "sae",
        "completed",
        None,
        "sae-resid_post.1",
    )
    again = resume_training(whole.run_id, runs_dir=whole.path.parent)
    assert (again.scores, again.recipe) == (whole.scores, whole.recipe)


def test_its_id_names_the_sae(whole, word_model, monkeypatch, tmp_path):
    """An id is found in the runs directory that is given, or in the default one."""
    runs = whole.path.parent
    opened = load_sae(whole.run_id, word_model, runs_dir=runs)
    assert (opened.name, opened.fingerprint) == (whole.run_id, whole.sae.fingerprint)
    with pytest.raises(FeatureError, match=r"is no directory, no run in"):
        load_sae(whole.run_id, word_model)
    monkeypatch.setenv("CIRCUIT_SCOUT_RUNS_DIR", str(runs))
    results = [
        sae_top_features(word_model, sae, prompt="the cat sees", k=2, controls=0)
        for sae in (whole.run_id, whole.path, whole.sae)
    ]
    assert results[0].sae == whole.run_id
    assert results[0].features == results[1].features == results[2].features
    text = ["the dog sees the fish"]
    assert (
        feature_examples(word_model, whole.run_id, text, [1]).features
        == feature_examples(word_model, whole.sae, text, [1]).features
    )
    assert edit_features(
        word_model, as_task(random_pairs((4, 4))), whole.run_id, {0: 1.0}
    ).change.features == (0,)
    assert generate_with_features(word_model, whole.run_id, "the cat", {0: 1.0}, tokens=1).prompt


def test_saelens_loads_the_same_sae(whole, word_model):
    theirs = saelens().SAE.load_from_disk(whole.directory)
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
    for ours in (
        whole.sae,
        load_sae(whole.directory, word_model),
        load_sae(whole.path, word_model),
    ):
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), atol=0, rtol=0)
        torch.testing.assert_close(ours.codes(x).reconstruction, theirs(x), atol=0, rtol=0)
        torch.testing.assert_close(ours.decode(ours.encode(x), x), theirs.decode(theirs.encode(x)))
    assert int((theirs.encode(x) != 0).sum(-1).max()) == 3
    torch.testing.assert_close(whole.sae.directions().norm(dim=-1), torch.ones(24))


def test_another_model_is_refused(whole, tmp_path):
    other = load_model(save_hugging_face(tmp_path / "gpt2", "gpt2", seed=1), device="cpu")
    with pytest.raises(FeatureError, match="other weights"):
        load_sae(whole.path, other)


@pytest.mark.parametrize(
    "stop_after",
    [60, pytest.param(2, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)],
)
def test_stopped_anywhere_it_resumes_to_the_same_sae(stop_after, whole, word_model, text, tmp_path):
    left = stop_after

    def progress(done: float, total: float, what: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted("stopped by the test")

    with pytest.raises(Interrupted) as stopped:
        train_sae(word_model, text, "resid_post.1", runs_dir=tmp_path, progress=progress, **SMALL)
    assert open_run(tmp_path, stopped.value.run_id).status == "interrupted"
    assert have_same_weights(resume_training(stopped.value.run_id, runs_dir=tmp_path), whole)
    assert open_run(tmp_path, stopped.value.run_id).status == "completed"


@pytest.mark.slow
def test_an_interrupted_step_is_taken_again(whole, word_model, text, tmp_path, monkeypatch):
    """Ctrl-C may come in the middle of a step; then the last checkpoint counts."""
    original = loop.step
    steps = 0

    def broken(trainer, batch):
        nonlocal steps
        steps += 1
        if steps == 40:
            trainer.sae.W_enc.data.zero_()
            raise KeyboardInterrupt
        return original(trainer, batch)

    monkeypatch.setattr(loop, "step", broken)
    with pytest.raises(Interrupted) as stopped:
        train_sae(
            word_model, text, "resid_post.1", runs_dir=tmp_path, checkpoint_seconds=0.0, **SMALL
        )
    assert (tmp_path / stopped.value.run_id / "checkpoint.safetensors").exists()
    assert have_same_weights(resume_training(stopped.value.run_id, runs_dir=tmp_path), whole)


@pytest.mark.slow
def test_killed_it_resumes_to_the_same_sae(whole, word_model, text, tmp_path, root):
    program = f"""
import time
from discovery import load_model, train_sae
from discovery.features.training import loop
original = loop.step
def slow(trainer, batch):
    time.sleep(0.02)
    return original(trainer, batch)
loop.step = slow
train_sae(
    load_model({word_model.info.source!r}, device="cpu"),
    {str(text)!r},
    "resid_post.1",
    runs_dir={str(tmp_path)!r},
    checkpoint_seconds=0.0,
    **{SMALL!r},
)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            [checkpoint] = list(tmp_path.glob("*/checkpoint.safetensors")) or [None]
            if checkpoint is not None or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    [run_id] = run_ids(tmp_path)
    run = open_run(tmp_path, run_id)
    assert run.status == "interrupted"
    assert not (run.path / "sae").exists(), "it was killed too late"
    assert have_same_weights(resume_training(run_id, runs_dir=tmp_path), whole)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_another_gives_another(whole, word_model, text, tmp_path):
    assert have_same_weights(
        train_sae(word_model, text, "blocks.1.hook_resid_post", runs_dir=tmp_path, **SMALL), whole
    )
    assert not have_same_weights(
        train_sae(word_model, text, "resid_post.1", runs_dir=tmp_path, seed=1, **SMALL), whole
    )


def test_a_changed_text_or_model_is_not_resumed(word_model, text, tmp_path):
    own = tmp_path / "text.txt"
    own.write_text(text.read_text())

    def progress(done: float, total: float, what: str) -> None:
        if done:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted) as stopped:
        train_sae(
            word_model, own, "resid_post.1", runs_dir=tmp_path / "runs", progress=progress, **SMALL
        )
    run_id = stopped.value.run_id
    own.write_text(text.read_text() + "the cat sees\n")
    with pytest.raises(StoreError, match=r"text\.txt' is not the one that run"):
        resume_training(run_id, runs_dir=tmp_path / "runs")
    own.write_text(text.read_text())
    path = tmp_path / "runs" / run_id / "run.json"
    record = json.loads(path.read_text())
    record["model"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="other weights than run"):
        resume_training(run_id, runs_dir=tmp_path / "runs")


@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("z.1", "blocks.1.attn.hook_z"),
        pytest.param("k.0", "blocks.0.attn.hook_k", marks=pytest.mark.slow),
        pytest.param("mlp_out.0", "blocks.0.hook_mlp_out", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_site_of_a_native_model_without_a_tokenizer(
    site, hook, tiny_models, tmp_path
):
    model = tiny_models.load("rotary")
    trained = train_sae(model, token_rows(), site, runs_dir=tmp_path, **SMALL)
    theirs = saelens().SAE.load_from_disk(trained.directory)
    assert theirs.cfg.metadata.hook_name == hook
    assert theirs.cfg.reshape_activations == ("hook_z" if site == "z.1" else "none")
    assert trained.scores.variance_explained > 0.2
    assert (trained.path / "rows.jsonl").exists()


@pytest.mark.slow
def test_a_task_is_a_text_and_the_other_backend_reads_the_same(tiny_models, tmp_path):
    task = as_task(random_pairs([8] * 60))
    trained = [
        train_sae(tiny_models.load("gpt2", backend), task, runs_dir=tmp_path, **SMALL)
        for backend in ("transformerlens", "nnsight")
    ]
    assert trained[0].recipe.site == "resid_pre.1"
    rows = [
        json.loads(line)["tokens"]
        for line in (trained[0].path / "rows.jsonl").read_text().splitlines()
    ]
    assert rows == [list(prompt) for pair in task.pairs for prompt in (pair.clean, pair.corrupted)]
    assert trained[0].scores.loss_clean == pytest.approx(trained[1].scores.loss_clean, abs=1e-5)
    assert trained[0].scores.variance_explained == pytest.approx(
        trained[1].scores.variance_explained, abs=1e-2
    )


@pytest.mark.slow
def test_the_standard_architecture(word_model, text, tmp_path):
    trained = train_sae(
        word_model,
        text,
        "resid_post.1",
        runs_dir=tmp_path,
        architecture="standard",
        d_sae=24,
        tokens=2000,
        batch=32,
    )
    theirs = saelens().SAE.load_from_disk(trained.directory)
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(trained.sae.encode(x), theirs.encode(x), atol=0, rtol=0)
    torch.testing.assert_close(trained.sae.directions().norm(dim=-1), torch.ones(24))


def test_a_first_position_that_outweighs_the_others_is_left_out(tmp_path):
    """GPT-2 has such a first position: attention rests on its first token."""
    native = save_native(tmp_path / "model")
    native.state["pos_embed.W_pos"][0] *= 300
    native.save()
    model = load_model(native.path, device="cpu")
    trained = train_sae(
        model, token_rows(), "resid_pre.0", runs_dir=tmp_path, **{**SMALL, "tokens": 640}
    )
    [event] = [
        event for event in open_run(tmp_path, trained.run_id).events() if event["stage"] == "text"
    ]
    assert event["measured"]["skip"] == 1
    assert "the first position is left out" in event["why"]
    assert trained.sae.module.cfg.metadata.circuit_scout["skipped_positions"] == 1
    rows = resolve_text(model, token_rows()).rows(model, trained.recipe)
    assert trained.scores.tokens == sum(len(row) - 1 for row in rows.heldout)


def test_the_name_of_a_built_in_task_is_a_text(monkeypatch):
    """Both sides of its pairs, each once."""
    monkeypatch.setattr("discovery.features.training.text.TEXT_PAIRS", 30)
    model = load_model("bundled", device="cpu")
    named = resolve_text(model, "greater_than")
    assert named.name == "greater_than"
    assert named.content == resolve_text(model, load_task("greater_than", model, pairs=30)).content
    assert resolve_text(model, Path("greater_than")).path == Path("greater_than").absolute()


def test_a_training_that_does_not_fit_leaves_no_run(word_model, text, tmp_path):
    with pytest.raises(
        MemoryLimitError,
        match=r"Training 24 features with batches of 32 takes about .* GB, and 0.00 GB are allowed",
    ):
        train_sae(word_model, text, "resid_post.1", runs_dir=tmp_path, memory=1000, **SMALL)
    with pytest.raises(MemoryLimitError, match="Training 24 features"):
        estimate_training(word_model, text, "resid_post.1", memory=1000, **SMALL)
    with pytest.raises(FeatureError, match="There is no file"):
        train_sae(word_model, "no/such/text.txt", "resid_post.1", runs_dir=tmp_path, **SMALL)
    assert run_ids(tmp_path) == []


def test_a_loss_that_is_not_finite_is_an_error(word_model, text, tmp_path):
    with pytest.raises(FeatureError, match="The loss is not finite at step") as fault:
        train_sae(word_model, text, "resid_post.1", runs_dir=tmp_path, learning_rate=1e30, **SMALL)
    assert "1e+30" in fault.value.cure
    [run] = list_runs(tmp_path)
    assert (run.status, run.problem) == ("interrupted", fault.value.cause)


def test_a_discovery_is_not_resumed_as_a_training(word_model, text, tmp_path):
    with create_run(tmp_path, "ioi", ModelSource(name="bundled"), {}) as run:
        run_id = run.id
    with pytest.raises(StoreError, match="is not a training of an SAE"):
        resume_training(run_id, runs_dir=tmp_path)


def test_the_estimate(word_model, text):
    recipe, estimate = estimate_training(word_model, text, "resid_post.1", **SMALL)
    assert (estimate.steps, estimate.tokens, estimate.documents) == (81, 2592, 190)
    assert recipe.steps == 81
    assert estimate.seconds >= estimate.seconds_per_step * 81 + 2592 / estimate.tokens_per_second
    lines = [line.split() for line in text.read_text().splitlines()]
    per_document = sum(map(len, lines)) / len(lines)
    assert estimate.epochs == pytest.approx(2592 / (190 * per_document), rel=0.15)
    parameters = 4 * 24 * 2 * 16
    assert estimate.memory_bytes > 10 * parameters
    _, wider = estimate_training(word_model, text, "resid_post.1", **{**SMALL, "d_sae": 2400})
    assert wider.memory_bytes - estimate.memory_bytes > 10 * 4 * (2400 - 24) * 32


@pytest.mark.slow
def test_the_estimate_is_near_the_real_time(tmp_path):
    """On a machine that does other things too: within a factor of four."""
    text = tmp_path / "sentences.txt"
    text.write_text("".join(f"{sentence}\n" for sentence in islice(sentences(3), 4000)))
    started = time.monotonic()
    trained = train_sae(
        load_model("bundled", device="cpu"),
        text,
        "resid_pre.1",
        runs_dir=tmp_path / "runs",
        d_sae=256,
        tokens=100_000,
    )
    seconds = time.monotonic() - started
    [expected] = [
        event["measured"]
        for event in open_run(tmp_path / "runs", trained.run_id).events()
        if event["stage"] == "estimate"
    ]
    assert expected["seconds"] / 4 < seconds < expected["seconds"] * 4
