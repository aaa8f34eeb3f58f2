"""Each check of `circuit-scout doctor`, in a sound installation and in a broken one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import psutil
import pytest
import torch
from huggingface_hub import constants

from discovery.cli import installation
from discovery.errors import ModelError
from tests.discovery.cli.stand_ins import CommandResult


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)


def test_doctor_finds_this_installation_sound(
    scout: Callable[..., CommandResult], tmp_path: Path
) -> None:
    result = scout("doctor", "--json", "--runs-dir", str(tmp_path / "new" / "runs"))
    assert result.status == 0, result.err
    facts = json.loads(result.out)
    assert facts["ok"] is True, facts
    names = "python versions names memory devices writing transformerlens nnsight hub".split()
    assert [check["check"] for check in facts["checks"]] == names
    assert not (tmp_path / "new").exists(), "doctor only reads"
    result = scout("doctor")
    assert "nnsight          runs the bundled model; logits within" in result.out
    assert result.out.endswith("Everything that is needed works.\n")


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert (installation.check_python().status, installation.check_python().cure) == (
        "failed",
        "Install Python 3.11 or later.",
    )


def test_a_library_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "torch>=2.6",
        "nothing-of-this-name>=1",
        "networkx>=99; python_version > '3'",
        "pytest>=99; extra == 'dev'",
    ]
    monkeypatch.setattr(installation.metadata, "requires", lambda name: wanted)
    finding = installation.check_versions()
    assert finding.status == "failed"
    assert finding.observation.startswith("nothing-of-this-name is missing; networkx is ")
    assert "not >=99" in finding.observation
    assert "pytest" not in finding.observation


def test_another_distribution_with_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"discovery": ["circuit-scout", "other-tool"], "mcp_server": ["circuit-scout"]}
    monkeypatch.setattr(installation.metadata, "packages_distributions", lambda: owners)
    finding = installation.check_package_names()
    assert (finding.status, finding.observation) == (
        "failed",
        "discovery also belongs to other-tool",
    )
    assert "Uninstall other-tool" in (finding.cure or "")


def test_a_backend_that_cannot_run_and_one_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> list[float]:
        raise ModelError("It cannot be wrapped.", "Use another.")

    monkeypatch.setattr(installation, "_bundled_logits", refuse)
    finding = next(finding for finding in installation.run_checks() if finding.check == "nnsight")
    assert finding.status == "failed"
    assert "It cannot be wrapped." in finding.observation
    assert "uv tool install" in (finding.cure or "")
    monkeypatch.setattr(
        installation, "_bundled_logits", lambda name: [1.0] if name == "nnsight" else refuse(name)
    )
    assert [(finding.check, finding.status) for finding in installation.run_checks()][-3:-1] == [
        ("transformerlens", "failed"),
        ("nnsight", "ok"),
    ]
    monkeypatch.setattr(
        installation, "_bundled_logits", lambda name: [1.0, 10.0 if name == "nnsight" else 10.5]
    )
    assert (
        "differ from the other backend's by 4.8e-02"
        in installation.check_backend("nnsight").observation
    )
    monkeypatch.setattr(
        installation,
        "_bundled_logits",
        lambda name: [1.0, float("nan") if name == "nnsight" else 10.5],
    )
    assert installation.check_backend("nnsight").status == "failed"


@pytest.mark.parametrize(
    ("library", "failed"),
    [
        ("psutil", {"memory"}),
        ("packaging.requirements", {"versions"}),
        ("huggingface_hub", {"writing", "hub"}),
    ],
)
def test_a_library_that_cannot_be_imported_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, library: str, failed: set[str]
) -> None:
    monkeypatch.setattr(installation, "_bundled_logits", lambda name: [1.0])
    monkeypatch.setitem(sys.modules, library, None)
    findings = list(installation.run_checks())
    assert {finding.check for finding in findings if finding.status == "failed"} == failed
    assert all(
        library in finding.observation and "uv tool install" in (finding.cure or "")
        for finding in findings
        if finding.status == "failed"
    )


def test_an_installation_without_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(name: str) -> None:
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation, "_bundled_logits", lambda name: [1.0])
    monkeypatch.setattr(installation.metadata, "requires", lack)
    assert [
        (finding.check, "circuit-scout" in finding.observation)
        for finding in installation.run_checks()
        if finding.status == "failed"
    ] == [("versions", True)]


def test_a_gpu_that_this_torch_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nmore"
        )

    for name, value in (
        ("is_available", True),
        ("device_count", 1),
        ("get_device_name", "GPU 9000"),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch, "ones", refuse)
    finding = installation.check_devices()
    assert (finding.status, finding.observation.endswith("on the device")) == ("failed", True)
    assert "GPU 9000 does not compute" in finding.observation
    assert "--device cpu" in (finding.cure or "")


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9, total=8 * 10**9)
    )
    assert (installation.check_memory().status, installation.check_memory().observation) == (
        "warning",
        "1.0 of 8.0 GB free",
    )


@pytest.mark.skipif(
    os.name != "posix",
    reason="other systems refuse a file in the way too, but with another message",
)
def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(installation.tempfile, "TemporaryFile", refuse)
    finding = installation.check_writable(tmp_path)
    assert (finding.status, finding.cure) == (
        "failed",
        "Give another folder with --runs-dir or CIRCUIT_SCOUT_RUNS_DIR, or make this one writable.",
    )
    assert "Permission denied" in finding.observation


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [(200, "ok", "answers"), (401, "ok", "answers"), (503, "warning", "status 503")],
)
def test_the_hub(monkeypatch: pytest.MonkeyPatch, answer: int, status: str, words: str) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    session = SimpleNamespace(head=lambda url, timeout: SimpleNamespace(status_code=answer))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    assert (installation.check_hub().status, words in installation.check_hub().observation) == (
        status,
        True,
    )


def test_a_hub_out_of_reach_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, timeout: float) -> None:
        raise ConnectionError("no route")

    assert "switched off" in installation.check_hub().observation
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=fail))
    finding = installation.check_hub()
    assert finding.status == "warning"
    assert "(ConnectionError)" in finding.observation
    assert "local directories work without" in (finding.cure or "")
