"""`make conformance`: the official suite, the inspector and a real client, against our server.

It needs npm and its registry, and installs what it needs, Node 22 included, into build/conformance.
The suite runs twice: on our server factory with the suite's fixtures, where every required scenario
of both revisions must pass, and on the production server, which must fail exactly the scenarios of
baseline.yml.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTALL_DIR = ROOT / "build" / "conformance"
PACKAGES = [
    "node@22",
    "@modelcontextprotocol/conformance@0.2.0-alpha.12",
    "@modelcontextprotocol/inspector@2.12.0",
    "@anthropic-ai/claude-code@2.1.197",
    "@anthropic-ai/mcpb@2.1.2",
]
VALIDATE_PLUGIN = ["claude", "plugin", "validate", ".claude-plugin/plugin.json", "--strict"]
REVISIONS = ("2025-11-25", "2026-07-28")
BASELINE = ROOT / "tests" / "conformance" / "baseline.yml"


def main() -> int:
    if shutil.which("npm") is None:
        say("npm is not installed: nothing was run")
        return 0 if "--if-possible" in sys.argv else 1
    environment = {
        **os.environ,
        "PATH": f"{INSTALL_DIR / 'node_modules' / '.bin'}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    if not install(environment):
        say("Node 22 and the suite could not be installed: nothing was run")
        return 0 if "--if-possible" in sys.argv else 1
    failed = [name for name, passed in checks(environment) if not passed]
    say(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def checks(environment: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """Yield the name of each check, and whether it passed."""
    yield from suite_checks(
        "fixtures", ["-m", "tests.conformance.server"], environment, expected_failures=None
    )
    yield from suite_checks(
        "production", ["-m", "mcp_server", "serve", "--http"], environment, BASELINE
    )
    inspect = ["mcp-inspector", "--cli", sys.executable, "-m", "mcp_server", "serve"]
    list_tools = ["--method", "tools/list", "--strict", "--format", "json", "-q"]
    for era in ("legacy", "modern"):
        command = [*inspect, "--protocol-era", era, *list_tools]
        yield f"inspector {era}", run_check(command, environment, quiet=True)
    yield "Claude Code plugin", run_check(VALIDATE_PLUGIN, environment)
    yield "MCP bundle", run_check(["mcpb", "validate", "manifest.json"], environment)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", "tests/conformance"]
    yield "Claude Code", run_check(command, environment)


def suite_checks(
    name: str,
    server_words: Sequence[str],
    environment: dict[str, str],
    expected_failures: Path | None,
) -> Iterator[tuple[str, bool]]:
    """Yield the name of each check of the official suite on one server, and whether it passed."""
    options = [] if expected_failures is None else ["--expected-failures", str(expected_failures)]
    with run_server(server_words, environment) as url:
        for revision in REVISIONS:
            output = INSTALL_DIR / "out" / f"{name}-{revision}"
            command = ["conformance", "server", "--url", url, "--requirements", revision]
            command += ["-o", str(output), *options]
            yield f"{name} {revision}", run_check(command, environment)


def install(environment: dict[str, str]) -> bool:
    """Install the packages if they are missing, and return whether they are there."""
    if all(
        (INSTALL_DIR / "node_modules" / ".bin" / name).exists()
        for name in ("node", "conformance", "mcp-inspector", "claude", "mcpb")
    ):
        return True
    INSTALL_DIR.mkdir(parents=True, exist_ok=True)
    command = [
        "npm",
        "install",
        "--no-save",
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--foreground-scripts",
        *PACKAGES,
    ]
    return subprocess.run(command, cwd=INSTALL_DIR, env=environment, check=False).returncode == 0


@contextmanager
def run_server(words: Sequence[str], environment: dict[str, str]) -> Iterator[str]:
    """Run a server on a free port, and yield its URL once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}" if words[-1] == "--http" else str(port)
    with tempfile.TemporaryDirectory() as runs:
        process = subprocess.Popen(
            [sys.executable, *words, address],
            cwd=ROOT,
            env={**environment, "CIRCUIT_SCOUT_RUNS_DIR": runs},
            stderr=subprocess.DEVNULL,
        )
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()
            process.wait(20)


def run_check(command: Sequence[str], environment: dict[str, str], *, quiet: bool = False) -> bool:
    """Run a command, and return whether it succeeded."""
    say(" ".join(command))
    output = subprocess.DEVNULL if quiet else None
    completed = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, check=False)
    return completed.returncode == 0


def say(words: str) -> None:
    sys.stderr.write(f"conformance: {words}\n")


if __name__ == "__main__":
    raise SystemExit(main())
