from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_models.gguf_files import save_gguf_source, write_gguf
from benchmarks.random_models.tiny_models import save_hugging_face
from discovery.backends.hardware.placement import Placement
from tests.discovery.cli.stand_ins import CommandResult


@pytest.fixture
def tiny_models(tmp_path: Path) -> Path:
    """A directory with a Hugging Face model, a native one, and other things."""
    for name, file in (
        ("owner/b", "config.json"),
        ("a", "tl_config.json"),
        ("a/inner", "config.json"),
        (".cache/c", "config.json"),
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "owner/b/model.safetensors").write_bytes(b"0" * 2_000_000)
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_the_bundled_model_is_always_there(scout: Callable[..., CommandResult]) -> None:
    result = scout("models")
    assert result.out.split()[0] == "bundled"
    assert "--models-dir" in result.err
    assert [
        row["model"] for row in json.loads(scout("models", "list", "--json").out)["models"]
    ] == ["bundled"]


def test_local_models(
    scout: Callable[..., CommandResult], tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = scout("models", "list", "--models-dir", str(tiny_models), "--json")
    facts = json.loads(result.out)
    assert facts["models_dir"] == str(tiny_models)
    assert [(row["model"], row["format"], row["bytes"]) for row in facts["models"][1:]] == [
        (str(tiny_models / "a"), "native", None),
        (str(tiny_models / "owner/b"), "huggingface", 2_000_000),
    ]
    monkeypatch.setenv("CIRCUIT_SCOUT_MODELS_DIR", str(tiny_models))
    assert scout("models", "--json").out == result.out
    lines = scout("models", "list").out.splitlines()
    assert lines[2].split() == [str(tiny_models / "owner/b"), "huggingface", "2.0", "MB"]


def test_a_models_directory_that_does_not_exist(
    scout: Callable[..., CommandResult], tmp_path: Path
) -> None:
    result = scout("models", "--models-dir", str(tmp_path / "nowhere"))
    assert (result.status, result.out) == (2, "")
    assert "nowhere" in result.err


def test_info(scout: Callable[..., CommandResult], model_directory: Path) -> None:
    result = scout("models", "info", str(model_directory), "--json", "--device", "cpu")
    assert result.status == 0, result.err
    facts = json.loads(result.out)
    assert (facts["n_layers"], facts["n_heads"], facts["attn_only"], facts["tokenizer"]) == (
        2,
        4,
        True,
        False,
    )
    assert (facts["name"], facts["n_nodes"]) == (str(model_directory), 8)
    assert (facts["backend"], facts["fits"]) == ("transformerlens", True)
    assert "up to 2 billion" in facts["chosen"]
    assert facts["memory"]["loading"] > facts["memory"]["weights"] == 4 * facts["n_params"]
    result = scout("models", "info", str(model_directory), "--device", "cpu")
    assert "  n_heads         4\n" in result.out
    assert "In addition, a sweep of 32 pairs" in result.out
    assert "Free on cpu" in result.out


def test_info_of_a_model_that_is_to_be_spread(
    scout: Callable[..., CommandResult], tmp_path: Path
) -> None:
    facts = json.loads(
        scout(
            "models",
            "info",
            str(save_hugging_face(tmp_path / "gpt2", "gpt2")),
            "--device-map",
            "auto",
            "--json",
        ).out
    )
    assert (facts["backend"], "spread over devices" in facts["chosen"], facts["fits"]) == (
        "nnsight",
        True,
        True,
    )
    result = scout("models", "info", str(tmp_path / "gpt2"), "--device-map", "balanced")
    assert (result.status, "allowed: auto" in result.err) == (2, True)


def test_info_counts_the_memory_on_each_device(
    scout: Callable[..., CommandResult], tmp_path: Path, monkeypatch: Any
) -> None:
    path = str(save_hugging_face(tmp_path / "gpt2", "gpt2"))
    monkeypatch.setattr(Placement, "allowed_bytes", {"cpu": 1000})
    memory = json.loads(scout("models", "info", path, "--device-map", "auto", "--json").out)[
        "memory"
    ]
    whole = json.loads(scout("models", "info", path, "--json").out)["memory"]
    assert (memory["loading"], memory["weights"], memory["disk"]) == (
        1000,
        1000,
        whole["weights"] - 1000,
    )
    assert whole["disk"] == 0
    assert (
        "of the weights lie on the disk"
        in scout("models", "info", path, "--device-map", "auto").out
    )
    result = scout("models", "info", path, "--remote")
    assert (result.status, "runs models of the hub" in result.err) == (2, True)


def test_info_for_a_backend_that_does_not_know_the_model(
    scout: Callable[..., CommandResult], tmp_path: Path
) -> None:
    result = scout(
        "models",
        "info",
        str(save_hugging_face(tmp_path / "granite", "granite")),
        "--backend",
        "nnsight",
    )
    assert (result.status, result.out) == (2, "")
    assert "Use backend 'transformerlens'" in result.err


def test_info_about_a_directory_without_a_model(
    scout: Callable[..., CommandResult], tmp_path: Path
) -> None:
    result = scout("models", "info", str(tmp_path))
    assert (result.status, result.out) == (2, "")
    assert "config.json" in result.err


def test_gguf_files_are_listed_and_described_from_their_header(
    scout: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_gguf_source(tmp_path / "source", "llama")
    (tmp_path / "models").mkdir()
    path = write_gguf(source, tmp_path / "models" / "tiny.gguf", "llama", "Q4_0")
    (tmp_path / "models" / "big-00002-of-00002.gguf").write_bytes(b"GGUF")
    facts = json.loads(scout("models", "--models-dir", str(tmp_path / "models"), "--json").out)
    assert [(row["model"], row["format"], row["bytes"]) for row in facts["models"][1:]] == [
        (str(tmp_path / "models" / "big-00002-of-00002.gguf"), "gguf", None),
        (str(path), "gguf", path.stat().st_size),
    ]
    monkeypatch.chdir(path.parent)
    facts = json.loads(scout("models", "info", "tiny.gguf", "--json").out)
    assert (facts["name"], facts["quantisation"]) == (str(path), "Q4_0")
    assert facts["architecture"] == "LlamaForCausalLM"
