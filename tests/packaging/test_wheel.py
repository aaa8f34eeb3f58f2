"""The wheel: what it contains, and that it works without the checkout."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

DATA = {".json", ".jsonl", ".safetensors", ".md"}


def run(*words: str | Path, cwd: Path) -> str:
    process = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no files are left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for package in ("discovery", "mcp_server"):
        shutil.copytree(
            root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (root / name).is_file():
            shutil.copy(root / name, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "__init__.py").touch()  # must not be in the wheel
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=copy)
    [built] = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def read_project(root: Path) -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    return table


def test_the_top_level_names_are_the_two_packages(names: list[str]) -> None:
    top = {name.split("/")[0] for name in names}
    [info] = [name for name in top if name.endswith(".dist-info")]
    assert top - {info} == {"discovery", "mcp_server"}


def test_the_wheel_contains_every_module(names: list[str], root: Path) -> None:
    sources = {
        path.relative_to(root).as_posix()
        for package in ("discovery", "mcp_server")
        for path in (root / package).rglob("*.py")
    }
    assert sources <= set(names)


def test_the_wheel_contains_the_bundled_model(names: list[str], root: Path) -> None:
    bundled = root / "discovery" / "backends" / "bundled"
    files = {
        path.relative_to(root).as_posix() for path in bundled.rglob("*") if path.suffix in DATA
    }
    assert any(name.endswith("/config.json") for name in files)
    assert any(name.endswith(".safetensors") for name in files)
    assert files <= set(names)


def test_the_wheel_contains_the_bundled_sae_which_is_small(
    wheel: Path, names: list[str], root: Path
) -> None:
    folder = root / "discovery" / "features" / "bundled"
    files = {path.relative_to(root).as_posix() for path in folder.iterdir() if path.suffix in DATA}
    assert {Path(name).name for name in files} >= {
        "cfg.json",
        "sae_weights.safetensors",
        "SAE_CARD.md",
    }
    assert files <= set(names)
    with zipfile.ZipFile(wheel) as archive:
        assert sum(archive.getinfo(name).file_size for name in files) <= 6_000_000


def test_the_wheel_contains_the_files_of_a_study(names: list[str], root: Path) -> None:
    template = root / "mcp_server" / "setup" / "study_template"
    files = {path.relative_to(root).as_posix() for path in template.rglob("*") if path.is_file()}
    assert len(files) == 6
    assert files <= set(names)


def test_the_metadata(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [entry_points] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(entry_points).decode())
        [meta] = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        facts = Parser().parsestr(archive.read(meta).decode())
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert dict(scripts["console_scripts"]) == {"circuit-scout": "mcp_server.__main__:main"}
    assert (facts["Name"], facts["Version"]) == ("circuit-scout", read_project(root)["version"])
    assert facts["License-Expression"] == "MIT"
    assert licences


def test_the_installed_version_is_the_declared_one(root: Path) -> None:
    assert metadata.version("circuit-scout") == read_project(root)["version"]


def test_the_version_is_written_in_one_place(root: Path) -> None:
    version = str(read_project(root)["version"])
    sources = [
        path for package in ("discovery", "mcp_server") for path in (root / package).rglob("*.py")
    ]
    assert [path for path in sources if f'"{version}"' in path.read_text(encoding="utf-8")] == []


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(wheel: Path, root: Path, tmp_path: Path) -> None:
    """In a new environment, the packages come from the wheel and the libraries from this one."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    scheme = sysconfig.get_paths("venv", vars={"base": str(home), "platbase": str(home)})
    python = Path(scheme["scripts"]) / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (Path(scheme["purelib"]) / "libraries.pth").write_text(
        sysconfig.get_path("purelib"), encoding="utf-8"
    )
    locations = run(
        python,
        "-c",
        "import discovery, mcp_server; print(discovery.__file__); print(mcp_server.__file__)",
        cwd=tmp_path,
    )
    assert all(Path(line).is_relative_to(home) for line in locations.splitlines())
    script = Path(scheme["scripts"]) / "circuit-scout"
    assert str(read_project(root)["version"]) in run(script, "--version", cwd=tmp_path)
    models = run(script, "models", "list", "--json", cwd=tmp_path)
    assert "bundled" in models
