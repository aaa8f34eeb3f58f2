"""Each check of `circuit-scout doctor`, in a sound installation and in one where what it looks for is wrong."""

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
from tests.discovery.cli.conftest import CommandResult


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)


def test_doctor_finds_this_installation_sound(
    scout: Callable[..., CommandResult], tmp_path: Path
) -> None:
    told = scout("doctor", "--json", "--runs-dir", str(tmp_path / "new" / "runs"))
    assert told.status == 0, told.err
    found = json.loads(told.out)
    assert found["ok"] is True, found
    assert [check["check"] for check in found["checks"]] == [
        "python", "versions", "names", "memory", "devices", "writing", "transformerlens", "nnsight", "hub",
    ]  # fmt: skip
    assert not (tmp_path / "new").exists(), "looking is not making"
    told = scout("doctor")
    assert "nnsight          runs the bundled model; logits within" in told.out
    assert told.out.endswith("Everything that is needed works.\n")


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
    found = installation.check_versions()
    assert found.status == "failed"
    assert found.found.startswith("nothing-of-this-name is missing; networkx is ")
    assert "not >=99" in found.found
    assert "pytest" not in found.found


def test_another_distribution_with_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"discovery": ["circuit-scout", "other-tool"], "mcp_server": ["circuit-scout"]}
    monkeypatch.setattr(installation.metadata, "packages_distributions", lambda: owners)
    found = installation.check_package_names()
    assert (found.status, found.found) == ("failed", "discovery also belongs to other-tool")
    assert "Uninstall other-tool" in (found.cure or "")


def test_a_backend_that_cannot_run_and_one_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> list[float]:
        raise ModelError("It cannot be wrapped.", "Use another.")

    monkeypatch.setattr(installation, "_bundled_logits", refuse)
    found = next(one for one in installation.run_checks() if one.check == "nnsight")
    assert found.status == "failed"
    assert "It cannot be wrapped." in found.found
    assert "pip install" in (found.cure or "")
    monkeypatch.setattr(
        installation, "_bundled_logits", lambda name: [1.0] if name == "nnsight" else refuse(name)
    )
    assert [(one.check, one.status) for one in installation.run_checks()][-3:-1] == [
        ("transformerlens", "failed"),
        ("nnsight", "ok"),
    ]
    monkeypatch.setattr(
        installation, "_bundled_logits", lambda name: [1.0, 10.0 if name == "nnsight" else 10.5]
    )
    assert (
        "differ from the other backend's by 4.8e-02" in installation.check_backend("nnsight").found
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
    found = list(installation.run_checks())
    assert {one.check for one in found if one.status == "failed"} == failed
    assert all(
        library in one.found and "pip install" in (one.cure or "")
        for one in found
        if one.status == "failed"
    )


def test_an_installation_without_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(name: str) -> None:
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation, "_bundled_logits", lambda name: [1.0])
    monkeypatch.setattr(installation.metadata, "requires", lack)
    assert [
        (one.check, "circuit-scout" in one.found)
        for one in installation.run_checks()
        if one.status == "failed"
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
    found = installation.check_devices()
    assert (found.status, found.found.endswith("on the device")) == ("failed", True)
    assert "GPU 9000 does not compute" in found.found
    assert "--device cpu" in (found.cure or "")


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9, total=8 * 10**9)
    )
    assert (installation.check_memory().status, installation.check_memory().found) == (
        "warning",
        "1.0 of 8.0 GB free",
    )


@pytest.mark.skipif(
    os.name != "posix",
    reason="a file in the way is refused alike everywhere else, with other words",
)
def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(installation.tempfile, "TemporaryFile", refuse)
    found = installation.check_writable(tmp_path)
    assert (found.status, found.cure) == (
        "failed",
        "Give another folder with --runs-dir or CIRCUIT_SCOUT_RUNS_DIR, or make this one writable.",
    )
    assert "Permission denied" in found.found


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [(200, "ok", "answers"), (401, "ok", "answers"), (503, "warning", "status 503")],
)
def test_the_hub(monkeypatch: pytest.MonkeyPatch, answer: int, status: str, words: str) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    session = SimpleNamespace(head=lambda url, timeout: SimpleNamespace(status_code=answer))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    assert (installation.check_hub().status, words in installation.check_hub().found) == (
        status,
        True,
    )


def test_a_hub_out_of_reach_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, timeout: float) -> None:
        raise ConnectionError("no route")

    assert "switched off" in installation.check_hub().found
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=fail))
    found = installation.check_hub()
    assert found.status == "warning"
    assert "(ConnectionError)" in found.found
    assert "local directories work without" in (found.cure or "")
