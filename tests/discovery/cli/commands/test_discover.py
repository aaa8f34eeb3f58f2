from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery.backends.loading.load_arguments import LoadArguments
from discovery.graph import CircuitGraph
from discovery.store import list_runs
from tests.discovery.cli.stand_ins import CommandResult, StubAgent, StubTask

RUN_ID = "ioi-bundled-20261120-153012-a1b2"


def test_without_arguments_the_bundled_model_and_ioi(
    scout: Callable[..., CommandResult], agent: StubAgent, runs_dir: Path
) -> None:
    assert scout("discover").status == 0
    [(name, (model, task), options)] = agent.calls
    load = LoadArguments(
        model="bundled",
        backend="auto",
        device="auto",
        dtype="float32",
        device_map=None,
        remote=False,
        task="ioi",
        pairs=None,
    )
    assert (name, model, task) == ("discover", ("model", load), ("task", 0))
    expected = {
        "metric": None,
        "seed": 0,
        "universe": "all",
        "budget": None,
        "memory": None,
        "exhaustive": False,
    }
    assert {key: options[key] for key in expected} == expected
    assert (options["runs_dir"], options["command"], options["load"]) == (
        runs_dir,
        "circuit-scout discover",
        load,
    )


def test_a_spread_or_remote_model_ignores_the_environment(
    scout: Callable[..., CommandResult], agent: StubAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, word in (("DEVICE", "cpu"), ("BACKEND", "transformerlens"), ("DTYPE", "float16")):
        monkeypatch.setenv(f"CIRCUIT_SCOUT_{name}", word)
    for flag in ("--device-map=auto", "--remote"):
        assert scout("discover", flag).status == 0
    spread, remote = (options["load"] for _, _, options in agent.calls)
    assert [getattr(spread, name) for name in ("device", "backend", "dtype", "device_map")] == [
        "auto",
        "transformerlens",
        "float16",
        "auto",
    ]
    assert [getattr(remote, name) for name in ("device", "backend", "dtype", "remote")] == [
        "auto",
        "auto",
        "float32",
        True,
    ]


def test_every_flag_arrives(
    scout: Callable[..., CommandResult], agent: StubAgent, tmp_path: Path
) -> None:
    line = "induction --model gpt2 --backend transformerlens --device cpu --dtype float64"
    line += " --pairs 60 --seed 3 --metric kl_divergence --universe heads --budget 5000"
    line += f" --memory 512MiB --exhaustive --remote --runs-dir {tmp_path}/kept"
    assert scout("discover", *line.split()).status == 0
    load = LoadArguments(
        model="gpt2",
        backend="transformerlens",
        device="cpu",
        dtype="float64",
        device_map=None,
        remote=True,
        task="induction",
        pairs=60,
    )
    expected = {
        "metric": "kl_divergence",
        "seed": 3,
        "universe": "heads",
        "budget": 5000.0,
        "memory": 512 * 2**20,
        "exhaustive": True,
    }
    assert {key: agent.options[key] for key in expected} == expected
    assert agent.options["load"] == load
    assert agent.options["runs_dir"] == tmp_path / "kept"
    assert agent.options["command"] == f"circuit-scout discover {line}"


def test_the_environment_gives_settings(
    scout: Callable[..., CommandResult], agent: StubAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MODEL": "gpt2",
        "BACKEND": "nnsight",
        "DEVICE": "cuda",
        "DTYPE": "float16",
        "MEMORY": "1GB",
    }.items():
        monkeypatch.setenv(f"CIRCUIT_SCOUT_{name}", value)
    scout("discover", "--device", "cpu")
    load = agent.options["load"]
    assert [getattr(load, name) for name in ("model", "backend", "device", "dtype")] == [
        "gpt2",
        "nnsight",
        "cpu",
        "float16",
    ]
    assert agent.options["memory"] == 10**9


def test_paths_are_absolute_so_that_a_run_resumes_from_anywhere(
    scout: Callable[..., CommandResult],
    agent: StubAgent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "my.jsonl").touch()
    (tmp_path / "ioi").touch()
    (tmp_path / "bundled").mkdir()
    scout("discover", "my.jsonl", "--model", "gpt2")
    assert (agent.options["load"].model, agent.options["load"].task) == (
        str(tmp_path / "gpt2"),
        str(tmp_path / "my.jsonl"),
    )
    scout("discover", "ioi", "--model", "bundled")
    assert (agent.options["load"].model, agent.options["load"].task) == ("bundled", "ioi")


def test_the_summary_is_on_stdout_and_the_journal_on_stderr(
    scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    result = scout("discover")
    assert "ioi in bundled: partial" in result.out
    assert f"circuit-scout runs show {RUN_ID}" in result.out
    assert "heads: two heads\n    they move the metric\n" in result.err
    assert "250 of about 1,000 done" in result.err
    assert "added L1H1" not in result.err
    assert "added L1H1" in scout("discover", "-v").err


def test_json_is_the_record_and_nothing_else(
    scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    result = scout("discover", "--json", "-q")
    assert result.err == ""
    assert CircuitGraph.from_json(result.out).verdict == "partial"
    assert result.out.isascii()


def test_a_dry_run_only_estimates(scout: Callable[..., CommandResult], agent: StubAgent) -> None:
    result = scout("discover", "--dry-run", "--budget", "10", "--universe", "heads")
    assert [name for name, _, _ in agent.calls] == ["estimate_cost"]
    assert agent.options == {
        "metric": None,
        "universe": "heads",
        "budget": 10.0,
        "memory": None,
        "exhaustive": False,
        "seed": 0,
    }
    assert "1,234" in result.out
    assert "2 min 3 s at 10 a second" in result.out
    assert "gets 10 of the budget" in result.out
    assert "left out" in result.out
    assert "a guess" in result.out
    assert json.loads(scout("discover", "--dry-run", "--json").out)["stages"] == {
        "heads": 1000.0,
        "validate": 234.5,
    }


def test_a_run_is_resumed(
    scout: Callable[..., CommandResult], agent: StubAgent, runs_dir: Path
) -> None:
    result = scout("discover", "--resume", RUN_ID, "--json", "-q")
    [(name, run_id, options)] = agent.calls
    assert (name, run_id, options["runs_dir"]) == ("resume", RUN_ID, runs_dir)
    assert json.loads(result.out)["graph"]["run_id"] == RUN_ID


def test_a_run_goes_on_with_a_larger_budget(
    scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    assert scout("discover", "--resume", RUN_ID, "--budget", "9000").status == 0
    assert agent.options["budget"] == 9000.0
    scout("discover", "--resume", RUN_ID)
    assert agent.options["budget"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["--seed", "0"],
        ["ioi"],
        ["--dry-run"],
        ["--exhaustive"],
        ["--model", "gpt2"],
        ["--memory", "1GB"],
    ],
)
def test_a_resumed_run_takes_no_other_settings(
    words: list[str], scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    result = scout("discover", "--resume", RUN_ID, *words)
    assert (result.status, agent.calls) == (2, [])
    assert ("TASK" if words == ["ioi"] else words[0]) in result.err
    assert "Leave them out" in result.err


@pytest.mark.slow
def test_a_real_run_is_interrupted_and_resumed(
    model_directory: Path, root: Path, runs_dir: Path
) -> None:
    command = [sys.executable, "-m", "mcp_server", "discover"]
    flags = [
        str(model_directory / "task.jsonl"),
        "--model",
        str(model_directory),
        "--pairs",
        "100",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*command, *flags], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any(line.startswith("heads:") for line in process.stderr)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate()
    [summary] = list_runs(runs_dir)
    assert (process.returncode, out, summary.status) == (130, "", "interrupted")
    assert err.endswith(f"circuit-scout discover --resume {summary.id}\n")
    done = subprocess.run(
        [*command, "--resume", summary.id, "--json"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert CircuitGraph.from_json(done.stdout).run_id == summary.id
    assert (runs_dir / summary.id / "circuit.json").read_text() == done.stdout


def test_a_split_too_small_for_a_verdict_is_a_warning_before_anything_is_measured(
    scout: Callable[..., CommandResult], agent: StubAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "held-out pairs" not in scout("discover").err
    monkeypatch.setattr(StubTask, "heldout", range(42))
    assert (
        "warning: 42 held-out pairs: the verdict will be inconclusive, because it needs 48"
        in scout("discover").err
    )
