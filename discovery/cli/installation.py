"""What a working installation needs, each thing tried: `circuit-scout doctor`.

A check finds something out and says what it found; where that is not enough it says what to do. It never raises: what goes wrong while
it looks is what it found.
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
MAX_LOGIT_DIFFERENCE = 1e-4  # of the largest logit, as in the tests of both backends
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
REINSTALL_ADVICE = f"Install again, in a fresh environment: python -m pip install {DISTRIBUTION}"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        status: failed: something will not work; warning: something that not everybody needs.
        cure: what to do; None where nothing is.
    """

    check: str
    status: Literal["ok", "warning", "failed"]
    found: str
    cure: str | None = None


def check_python() -> Finding:
    """The interpreter is recent enough."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < MIN_PYTHON:
        return Finding(
            "python", "failed", found, f"Install Python {'.'.join(map(str, MIN_PYTHON))} or later."
        )
    return Finding("python", "ok", found)


def check_versions() -> Finding:
    """Every library that is needed is there, in its range."""
    from packaging.requirements import Requirement

    wrong, count = [], 0
    for line in metadata.requires(DISTRIBUTION) or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} is {version}, not {wanted.specifier}")
    if wrong:
        return Finding(
            "versions",
            "failed",
            "; ".join(wrong),
            f"Install again: python -m pip install --upgrade {DISTRIBUTION}",
        )
    return Finding(
        "versions",
        "ok",
        f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}; {count} libraries in their ranges",
    )


def check_package_names() -> Finding:
    """No other distribution owns a package of ours."""
    owners = metadata.packages_distributions()
    others = {
        name: sorted({*owners.get(name, ())} - {DISTRIBUTION})
        for name in ("discovery", "mcp_server")
    }
    clashes = [
        f"{name} also belongs to {', '.join(found)}" for name, found in others.items() if found
    ]
    if clashes:
        other = next(found[0] for found in others.values() if found)
        return Finding(
            "names",
            "failed",
            "; ".join(clashes),
            f"Uninstall {other}, or use an environment of its own for one of the two.",
        )
    return Finding("names", "ok", f"discovery and mcp_server belong to {DISTRIBUTION} alone")


def check_backend(name: BackendName) -> Finding:
    """A backend runs the bundled model, which is held against the plain module when it is loaded."""
    logits = _bundled_logits(name)
    try:
        reference = _bundled_logits("transformerlens")
    except EXPECTED_ERRORS:
        return Finding(
            name, "ok", "runs the bundled model; there is no other backend to compare it with"
        )
    largest = max(map(abs, reference))
    apart = [abs(a - b) / largest for a, b in zip(logits, reference, strict=True)]
    difference = max(apart)
    if not all(one <= MAX_LOGIT_DIFFERENCE for one in apart):  # a NaN is no largest of anything
        cure = "Report it with the output of `circuit-scout doctor --json`; use the other backend meanwhile."
        return Finding(
            name, "failed", f"its logits differ from the other backend's by {difference:.1e}", cure
        )
    return Finding(
        name,
        "ok",
        "runs the bundled model"
        + ("" if name == "transformerlens" else f"; logits within {difference:.0e}"),
    )


@cache
def _bundled_logits(name: BackendName) -> list[float]:
    import torch

    from discovery import load_model
    from discovery.backends.base import Batch

    model = load_model("bundled", backend=name, device="cpu")
    assert model.tokenizer is not None  # the bundled model has one
    ids = model.tokenizer.encode(TEST_PROMPT)
    logits = model.run(Batch(torch.tensor([ids]), torch.tensor([len(ids) - 1]))).logits
    assert logits is not None  # asked for by an answer position
    return logits[0].tolist()


def check_memory() -> Finding:
    """Enough is free for the bundled model, and how much for others."""
    import psutil

    from discovery.backends.hardware import containers

    free, whole, left = (
        psutil.virtual_memory().available,
        psutil.virtual_memory().total,
        containers.read_container_memory(),
    )
    found = f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
    if left is not None and left < free:
        free, found = left, f"{found}, of which this container or job may take {left / 1e9:.1f} GB"
    if free < MIN_FREE_MEMORY:
        cure = "Close other programs, or keep measurements small with --memory; `circuit-scout models info M` says what a model takes."
        return Finding("memory", "warning", found, cure)
    return Finding("memory", "ok", found)


def check_devices() -> Finding:
    """What can compute."""
    import torch

    found = [f"cpu with {torch.get_num_threads()} threads"]
    found += (
        [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    for number in range(torch.cuda.device_count()) if torch.cuda.is_available() else ():
        try:
            torch.ones(2, 2, device=f"cuda:{number}").sum().item()
        except (
            RuntimeError
        ) as fault:  # as where this torch has no kernels for so new, or so old, a GPU
            words = f"{torch.cuda.get_device_name(number)} does not compute: {_first_line(fault)}"
            return Finding(
                "devices",
                "failed",
                words,
                "Install a torch that is built for this GPU, or use --device cpu meanwhile.",
            )
    found += ["mps (untested)"] if torch.backends.mps.is_available() else []
    if (
        torch.version.cuda is not None
        and not torch.cuda.is_available()
        and Path("/proc/driver/nvidia").exists()
    ):
        return Finding(
            "devices",
            "warning",
            f"{found[0]}; the GPU here is not usable",
            "Install a driver that fits torch, see `nvidia-smi`.",
        )
    return Finding("devices", "ok", ", ".join(found))


def check_writable(runs_dir: Path | None = None) -> Finding:
    """Runs, temporary files and downloaded models can be written."""
    from huggingface_hub import constants

    places = {
        "runs": (runs_dir or default_runs_dir(), "--runs-dir or CIRCUIT_SCOUT_RUNS_DIR"),
        "temporary files": (_temporary_folder(), "TMPDIR"),
    }
    places["downloaded models"] = (Path(constants.HF_HUB_CACHE), "HF_HOME")
    for what, (place, setting) in places.items():
        if (fault := _write_refusal(place)) is not None:
            cure = f"Give another folder with {setting}, or make this one writable."
            return Finding(
                "writing", "failed", f"{what} cannot be written to {place} ({fault})", cure
            )
    return Finding("writing", "ok", f"runs go to {places['runs'][0]}")


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path(os.environ.get("TMPDIR", "/tmp"))


def _write_refusal(place: Path) -> str | None:
    """Why nothing can be written there; folders that do not exist yet are judged by the one they would be made in."""
    nearest = next((folder for folder in (place, *place.parents) if folder.exists()), place)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as fault:
        return fault.strerror or type(fault).__name__


def check_hub() -> Finding:
    """Models can be downloaded."""
    from huggingface_hub import constants, get_session

    local = "Only hub names need it: the bundled model and local directories work without."
    if constants.is_offline_mode():
        return Finding(
            "hub",
            "warning",
            "downloads are switched off (HF_HUB_OFFLINE)",
            f"Unset HF_HUB_OFFLINE. {local}",
        )
    fault = ""
    try:
        status = get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS).status_code
        fault = f"answers with status {status}" if status >= 500 else ""
    except Exception as error:  # noqa: BLE001  # the client's errors share no base class with anything we import
        fault = type(error).__name__
    if fault:
        return Finding(
            "hub",
            "warning",
            f"{constants.ENDPOINT} cannot be reached ({fault})",
            f"Check the connection and proxy. {local}",
        )
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers")


def run_checks(runs_dir: Path | None = None) -> Iterator[Finding]:
    """All checks, one after another."""
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
        with contextlib.redirect_stdout(sys.stderr):  # TransformerLens and its friends print
            found = _run_check(name, check)
        yield found


def _run_check(name: str, check: Callable[[], Finding]) -> Finding:
    """What a check found; where it cannot even look, for a library that is missing or damaged, that is what it found."""
    try:
        return check()
    except EXPECTED_ERRORS as fault:
        return Finding(
            name, "failed", f"{type(fault).__name__}: {_first_line(fault)}", REINSTALL_ADVICE
        )


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or ["no more is said"])[0]
