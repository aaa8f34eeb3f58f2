"""A real client: Claude Code's command line with a scripted model, without a network.

The tests check what the model is shown. They run if `claude` is on the path; `make conformance`
puts it there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery.store import list_runs
from tests.conformance.scripted_model import Script, Step, serve_script

CLAUDE = shutil.which("claude")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CLAUDE is None, reason="Claude Code's CLI is not here"),
]


def converse(
    script: Script, home: Path, runs: Path, *words: str, timeout_ms: int = 600_000
) -> None:
    """Hold one headless conversation that plays the script."""
    server = {
        "type": "stdio",
        "command": sys.executable,
        "args": ["-m", "mcp_server", "serve", "--runs-dir", str(runs), *words],
        "env": {"OMP_NUM_THREADS": "1"},
        "timeout": timeout_ms,
        "alwaysLoad": True,
    }
    config = home / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"circuit-scout": server}}))
    with serve_script(script) as url:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "ENABLE_TOOL_SEARCH": "false",
            "MCP_TIMEOUT": "120000",
        }
        command = [str(CLAUDE), "-p", "go", "--mcp-config", str(config), "--strict-mcp-config"]
        command += ["--allowedTools", "mcp__circuit-scout", "--max-turns", "20"]
        completed = subprocess.run(
            command,
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert script.failure == ""


def facts(result: dict[str, Any]) -> dict[str, Any]:
    """Return the structured result as the model reads it."""
    content = result["content"]
    text = (
        content
        if isinstance(content, str)
        else next(block["text"] for block in content if block.get("text", "").startswith("{"))
    )
    structured: dict[str, Any] = json.loads(text)
    return structured


def kinds(result: dict[str, Any]) -> list[str]:
    content = result["content"]
    return ["text"] if isinstance(content, str) else [block["type"] for block in content]


def fixed_step(name: str, **arguments: Any) -> Step:
    return name, lambda results: arguments


def test_a_conversation_on_the_bundled_model(tmp_path: Path) -> None:
    common = {"model_id": "bundled", "task": "ioi"}
    script = Script(
        [
            fixed_step("load_model", model="bundled"),
            fixed_step("patch_sweep", **common, site="head_out"),
            (
                "ablate_heads",
                lambda results: {
                    **common,
                    "nodes": [cell["node"] for cell in facts(results[1])["top"][:2]],
                },
            ),
            fixed_step("discover_circuit", **common, wait_seconds=500),
            ("get_circuit", lambda results: {"run_id": facts(results[3])["run_id"]}),
        ]
    )
    converse(script, tmp_path, tmp_path / "runs")
    assert {
        f"mcp__circuit-scout__{name}" for name in ("load_model", "patch_sweep", "get_circuit")
    } <= script.tools
    assert "Verdicts are computed" in script.system
    loaded, sweep, ablation, found, circuit = script.results
    assert facts(loaded)["n_layers"] == 4
    assert facts(sweep)["top"][0]["effect"] > 0.2
    assert "image" in kinds(sweep)
    assert facts(ablation)["change"] < 0
    assert (facts(found)["status"], facts(found)["verdict"]) == ("completed", "verified")
    nodes = {node["id"] for node in facts(circuit)["nodes"]}
    assert {"a0.h3", "a1.h3", "a2.h0"} <= nodes
    assert {edge["source"] for edge in facts(circuit)["edges"]} <= nodes | {"embed", "logits"}
    assert "image" in kinds(circuit)
    [run] = list_runs(tmp_path / "runs")
    assert (run.id, run.status) == (facts(found)["run_id"], "completed")


def test_the_features_of_the_bundled_model(tmp_path: Path) -> None:
    """If no SAE is named, the model's own is used, which needs no download."""
    common = {"model_id": "bundled", "task": "ioi"}
    script = Script(
        [
            fixed_step("load_model", model="bundled"),
            fixed_step("sae_top_features", **common, positions=["end"], k=3),
            (
                "edit_features",
                lambda results: {
                    **common,
                    "features": {str(facts(results[1])["features"][0]["index"]): 0},
                },
            ),
            (
                "sae_examples",
                lambda results: {
                    "model_id": "bundled",
                    "features": [facts(results[1])["features"][0]["index"]],
                    "text": "ioi",
                },
            ),
            fixed_step("sae_top_features", **common, positions=["nowhere"]),
        ]
    )
    converse(script, tmp_path, tmp_path / "runs")
    _, top, edited, examples, wrong = script.results
    found = facts(top)
    assert (found["sae"], found["warnings"], found["features"][0]["index"]) == ("bundled", [], 60)
    assert (
        list(found).index("warnings")
        < list(found).index("variance_explained")
        < list(found).index("features")
    )
    assert found["variance_explained"] > 0.9
    assert facts(edited)["on_metric"]["effect"]["high"] < 0
    assert facts(examples)["features"][0]["top"][0]["text"].endswith("« to»")
    assert wrong["is_error"]
    assert "labels: IO, S1, S1+1, S2, end" in json.dumps(wrong)


def test_a_discovery_in_a_model_of_the_users_and_a_wrong_argument(tmp_path: Path) -> None:
    build_known_circuit("induction").save(tmp_path / "models" / "induction")
    script = Script(
        [
            fixed_step("load_model", model="induction"),
            fixed_step(
                "discover_circuit",
                model_id="induction",
                task="induction/task.jsonl",
                wait_seconds=300,
            ),
            ("get_circuit", lambda results: {"run_id": facts(results[1])["run_id"]}),
            fixed_step("patch_sweep", model_id="induction", task="induction/task.jsonl", sitee="q"),
        ]
    )
    converse(script, tmp_path, tmp_path / "runs", "--models-dir", str(tmp_path / "models"))
    _, found, circuit, wrong = script.results
    assert facts(found)["verdict"] == "verified"
    assert {node["id"] for node in facts(circuit)["nodes"]} == {"a0.h2", "a1.h1"}
    assert "image" in kinds(circuit)
    assert "circuit.json" in json.dumps(circuit)
    assert wrong["is_error"]
    assert "Did you mean 'site'" in json.dumps(wrong)


def test_a_call_that_the_client_gives_up_leaves_the_server_well(tmp_path: Path) -> None:
    """The client's own limit ends a wait; the run continues, and can be found and stopped.

    The run has ten times the usual pairs, so that no machine completes it before the limit.
    """
    script = Script(
        [
            fixed_step("load_model", model="bundled"),
            fixed_step(
                "discover_circuit", model_id="bundled", task="ioi", pairs=2000, wait_seconds=600
            ),
            fixed_step("list_runs"),
            ("cancel_run", lambda results: {"run_id": facts(results[2])["runs"][0]["run_id"]}),
        ]
    )
    converse(script, tmp_path, tmp_path / "runs", timeout_ms=60_000)
    _, given_up, listed, stopped = script.results
    assert given_up["is_error"]
    assert "timed out" in json.dumps(given_up)
    assert facts(listed)["runs"][0]["status"] == "running"
    assert facts(stopped)["status"] == "interrupted"
