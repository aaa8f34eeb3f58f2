"""The checks of an installation, which `circuit-scout doctor` runs.

Each check returns what it found, and what to do if something is wrong. A check that fails with an
expected error counts as failed, and the error is what it found.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

from discovery.errors import DiscoveryError
from discovery.sites import BackendName
from discovery.store import default_runs_dir

DISTRIBUTION = "circuit-scout"
MIN_PYTHON = (3, 11)
MIN_FREE_MEMORY = 2 * 2**30
HUB_TIMEOUT_SECONDS = 5.0
TEST_PROMPT = "When Mary and John went to the store, John gave a drink to"
MAX_LOGIT_DIFFERENCE = 1e-4
"""How far the logits of two backends may differ, relative to the largest logit."""

EXPECTED_ERRORS = (
    DiscoveryError,
    ImportError,
    OSError,
    RuntimeError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
REINSTALL_ADVICE = (
    "Install again from the clone, in an environment of its own: "
    "uv tool install --force --constraints constraints.txt ."
)


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: the name of the check.
        status: "failed" if something will not work, and "warning" if not everybody needs it.
        observation: the outcome, in words.
        cure: what to do, or None if there is nothing to do.
    """

    check: str
    status: Literal["ok", "warning", "failed"]
    observation: str
    cure: str | None = None


def check_python() -> Finding:
    """Check that Python is recent enough."""
    version = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < MIN_PYTHON:
        cure = f"Install Python {'.'.join(map(str, MIN_PYTHON))} or later."
        return Finding("python", "failed", version, cure)
    return Finding("python", "ok", version)


def check_versions() -> Finding:
    """Check that every required library is installed, in a version that works."""
    from packaging.requirements import Requirement

    problems = []
    count = 0
    for line in metadata.requires(DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if problems:
        return Finding("versions", "failed", "; ".join(problems), REINSTALL_ADVICE)
    own_version = f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    return Finding("versions", "ok", f"{own_version}; {count} libraries in their ranges")


def check_package_names() -> Finding:
    """Check that no other distribution owns one of our packages."""
    owners = metadata.packages_distributions()
    other_owners = {
        name: sorted({*owners.get(name, ())} - {DISTRIBUTION})
        for name in ("discovery", "mcp_server")
    }
    clashes = {name: others for name, others in other_owners.items() if others}
    if clashes:
        texts = [f"{name} also belongs to {', '.join(others)}" for name, others in clashes.items()]
        first = next(iter(clashes.values()))[0]
        cure = f"Uninstall {first}, or use an environment of its own for one of the two."
        return Finding("names", "failed", "; ".join(texts), cure)
    return Finding("names", "ok", f"discovery and mcp_server belong to {DISTRIBUTION} alone")


def check_backend(name: BackendName) -> Finding:
    """Check that a backend runs the bundled model and computes the same logits as the other one."""
    logits = _bundled_logits(name)
    try:
        reference = _bundled_logits("transformerlens")
    except EXPECTED_ERRORS:
        outcome = "runs the bundled model; there is no other backend to compare it with"
        return Finding(name, "ok", outcome)
    scale = max(map(abs, reference))
    differences = [abs(a - b) / scale for a, b in zip(logits, reference, strict=True)]
    largest = max(differences)
    # max() may skip a NaN, so that each difference is compared with the bound.
    if not all(difference <= MAX_LOGIT_DIFFERENCE for difference in differences):
        return Finding(
            name,
            "failed",
            f"its logits differ from the other backend's by {largest:.1e}",
            "Report it with the output of `circuit-scout doctor --json`; use the other backend "
            "meanwhile.",
        )
    if name == "transformerlens":
        return Finding(name, "ok", "runs the bundled model")
    return Finding(name, "ok", f"runs the bundled model; logits within {largest:.0e}")


@cache
def _bundled_logits(name: BackendName) -> list[float]:
    import torch

    from discovery import load_model
    from discovery.backends.base import Batch

    model = load_model("bundled", backend=name, device="cpu")
    assert model.tokenizer is not None  # the bundled model has one
    ids = model.tokenizer.encode(TEST_PROMPT)
    logits = model.run(Batch(torch.tensor([ids]), torch.tensor([len(ids) - 1]))).logits
    assert logits is not None  # a batch with answer positions has logits
    return logits[0].tolist()


def check_memory() -> Finding:
    """Check that there is enough free memory for the bundled model, and report how much."""
    import psutil

    from discovery.backends.hardware import containers

    memory = psutil.virtual_memory()
    free = memory.available
    limit = containers.read_container_memory()
    outcome = f"{free / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if limit is not None and limit < free:
        free = limit
        outcome += f", of which this container or job may take {limit / 1e9:.1f} GB"
    if free < MIN_FREE_MEMORY:
        return Finding(
            "memory",
            "warning",
            outcome,
            "Close other programs, or keep measurements small with --memory; "
            "`circuit-scout models info M` says how much memory a model needs.",
        )
    return Finding("memory", "ok", outcome)


def check_devices() -> Finding:
    """Check that every GPU computes, and report the devices."""
    import torch

    devices = [f"cpu with {torch.get_num_threads()} threads"]
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    devices += [torch.cuda.get_device_name(number) for number in gpus]
    for number in gpus:
        try:
            torch.ones(2, 2, device=f"cuda:{number}").sum().item()
        except RuntimeError as fault:  # e.g. this torch has no kernels for a GPU so new or so old
            name = torch.cuda.get_device_name(number)
            return Finding(
                "devices",
                "failed",
                f"{name} does not compute: {_first_line(fault)}",
                "Install a torch that is built for this GPU, or use --device cpu meanwhile.",
            )
    if torch.backends.mps.is_available():
        devices.append("mps (untested)")
    has_driver = Path("/proc/driver/nvidia").exists()
    if torch.version.cuda is not None and not torch.cuda.is_available() and has_driver:
        return Finding(
            "devices",
            "warning",
            f"{devices[0]}; the GPU here is not usable",
            "Install a driver that fits torch, see `nvidia-smi`.",
        )
    return Finding("devices", "ok", ", ".join(devices))


def check_writable(runs_dir: Path | None = None) -> Finding:
    """Check that runs, temporary files and downloaded models can be written."""
    from huggingface_hub import constants

    runs_folder = runs_dir or default_runs_dir()
    folders = {
        "runs": (runs_folder, "--runs-dir or CIRCUIT_SCOUT_RUNS_DIR"),
        "temporary files": (_temporary_folder(), "TMPDIR"),
        "downloaded models": (Path(constants.HF_HUB_CACHE), "HF_HOME"),
    }
    for content, (folder, setting) in folders.items():
        if (reason := _write_refusal(folder)) is not None:
            outcome = f"{content} cannot be written to {folder} ({reason})"
            cure = f"Give another folder with {setting}, or make this one writable."
            return Finding("writing", "failed", outcome, cure)
    return Finding("writing", "ok", f"runs go to {runs_folder}")


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path(os.environ.get("TMPDIR", "/tmp"))


def _write_refusal(folder: Path) -> str | None:
    """Return why a folder cannot be written to, or None if it can.

    A folder that does not exist can be written to if the folder in which it would be made can.
    """
    existing = (path for path in (folder, *folder.parents) if path.exists())
    nearest = next(existing, folder)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as fault:
        return fault.strerror or type(fault).__name__


def check_hub() -> Finding:
    """Check that models can be downloaded."""
    from huggingface_hub import constants, get_session

    need = "Only hub names need it: the bundled model and local directories work without."
    if constants.is_offline_mode():
        outcome = "downloads are switched off (HF_HUB_OFFLINE)"
        return Finding("hub", "warning", outcome, f"Unset HF_HUB_OFFLINE. {need}")
    fault = ""
    try:
        status = get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS).status_code
        fault = f"answers with status {status}" if status >= 500 else ""
    # The errors of the HTTP client have no base class in common with anything that we import.
    except Exception as error:  # noqa: BLE001
        fault = type(error).__name__
    if fault:
        outcome = f"{constants.ENDPOINT} cannot be reached ({fault})"
        return Finding("hub", "warning", outcome, f"Check the connection and proxy. {need}")
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers")


def run_checks(runs_dir: Path | None = None) -> Iterator[Finding]:
    """Run all checks, and yield what each of them found."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", check_python),
        ("versions", check_versions),
        ("names", check_package_names),
        ("memory", check_memory),
        ("devices", check_devices),
        ("writing", lambda: check_writable(runs_dir)),
        *((name, partial(check_backend, name)) for name in get_args(BackendName)[1:]),
        ("hub", check_hub),
    ]
    for name, check in checks:
        with contextlib.redirect_stdout(sys.stderr):  # TransformerLens and other libraries print
            finding = _run_check(name, check)
        yield finding


def _run_check(name: str, check: Callable[[], Finding]) -> Finding:
    """Run a check. It fails if it cannot run, e.g. because a library is missing or damaged."""
    try:
        return check()
    except EXPECTED_ERRORS as fault:
        outcome = f"{type(fault).__name__}: {_first_line(fault)}"
        return Finding(name, "failed", outcome, REINSTALL_ADVICE)


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or ["no details"])[0]
