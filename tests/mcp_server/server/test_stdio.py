"""A server over standard input and output: only protocol lines, soon after the start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

from tests.mcp_server.servers import HELLO, INDUCTION_TASK, exchange, server_environment
from tests.packaging.test_light_imports import HEAVY_LIBRARIES

# Stands for a library that prints in every way there is: on import, later, and at the end.
NOISE = """
import atexit, builtins, os, sys, threading
def noise(where):
    print("STRAY", where)
    sys.stdout.write("STRAY write\\n")
    os.write(1, b"STRAY descriptor 1\\n")
    os.system("echo STRAY child")
    sys.__stdout__.write("STRAY original\\n")
noise("at start")
def later():
    from mcp_server.session import lazy_discovery
    patch_sweep = lazy_discovery.patch_sweep
    def noisy_patch_sweep(*arguments, **options):
        noise("in a tool")
        import tqdm
        list(tqdm.tqdm(range(3), file=sys.stdout))
        assert sys.stdin.read() == ""
        return patch_sweep(*arguments, **options)
    lazy_discovery.patch_sweep = noisy_patch_sweep
atexit.register(noise, "at exit")
"""


SERVE_WITH_NOISE = """
from mcp_server.server import command
sys.stdout.flush()
set_environment = command.set_library_environment
def set_environment_and_noise(settings):
    set_environment(settings)
    later()
command.set_library_environment = set_environment_and_noise
"""


def call_message(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    """Return the JSON-RPC message of a tool call."""
    parameters = {"name": name, "arguments": arguments}
    return {"id": number, "method": "tools/call", "params": parameters}


def test_stdout_carries_protocol_lines_only(
    models: Path, runs_dir: Path, tmp_path: Path, root: Path
) -> None:
    (tmp_path / "noisy.py").write_text(
        f"{NOISE}{SERVE_WITH_NOISE}command.run_serve(['--models-dir', {str(models)!r}])\n"
    )
    words = [sys.executable, str(tmp_path / "noisy.py")]
    noisy = server_environment(runs_dir, PYTHONPATH=str(root))
    process = subprocess.Popen(
        words, cwd=root, env=noisy, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    for _ in range(4):  # written before the server took the descriptor
        assert "STRAY" in process.stdout.readline()
    process.stdout.readline()
    answers = exchange(
        process.stdin,
        process.stdout,
        {"id": 1, "method": "initialize", "params": HELLO},
        {"method": "notifications/initialized"},
        call_message(2, "load_model", model="induction"),
        call_message(3, "patch_sweep", model_id="induction", task=INDUCTION_TASK, pairs=2),
    )
    process.stdin.close()
    rest = process.stdout.read()
    process.wait(30)
    errors = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert [answer["result"].get("isError", False) for answer in answers] == [False, False, False]
    assert [line for line in rest.splitlines() if line and "jsonrpc" not in json.loads(line)] == []
    assert "STRAY in a tool" in errors
    assert "STRAY descriptor 1" in errors


def test_the_first_list_of_tools_needs_no_heavy_library(runs_dir: Path, tmp_path: Path) -> None:
    """Its time is measured in the benchmarks; what would make it slow is what is imported."""
    words = [sys.executable, "-X", "importtime", "-m", "mcp_server", "serve"]
    with (tmp_path / "imports").open("w+") as imports:
        process = subprocess.Popen(
            words,
            env=server_environment(runs_dir),
            stdin=PIPE,
            stdout=PIPE,
            stderr=imports,
            text=True,
        )
        assert process.stdin
        assert process.stdout
        messages = (
            {"id": 1, "method": "initialize", "params": HELLO},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/list"},
        )
        _, listed = exchange(process.stdin, process.stdout, *messages)
        process.stdin.close()
        assert process.wait(20) == 0
        process.stdout.close()
        imports.seek(0)
        imported = {line.rsplit("|", 1)[1].strip() for line in imports if line.count("|") == 2}
    assert len(listed["result"]["tools"]) > 10
    assert "mcp_server.server.server" in imported
    assert imported.isdisjoint(HEAVY_LIBRARIES)
    assert len(imported) < 1800
