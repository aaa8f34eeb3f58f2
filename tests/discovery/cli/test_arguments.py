from __future__ import annotations

import argparse
import doctest
from pathlib import Path

import pytest

from discovery.cli import arguments, console
from discovery.cli.arguments import (
    SETTINGS,
    UsageError,
    parse_byte_count,
    parse_device,
    parse_folder,
    parse_positive_number,
    parse_whole_number,
)


@pytest.mark.parametrize(
    ("word", "size"),
    [
        ("4GB", 4 * 10**9),
        ("512MiB", 512 * 2**20),
        ("123456", 123456),
        ("1.5gb", 1_500_000_000),
        ("2 TiB", 2 * 2**40),
        ("16k", 16000),
        ("16Ki", 16384),
        ("7B", 7),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_bytes(word: str, size: int) -> None:
    assert parse_byte_count("--memory", word) == size


@pytest.mark.parametrize(
    "word", ["", "GB", "-1", "0", "4XB", "1e9", "4 apples", "0.5", "nan", "1.5", "0MB"]
)
def test_words_that_are_not_a_number_of_bytes(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_byte_count("--memory", word)
    assert repr(word) in caught.value.cause
    assert "4GB" in caught.value.cure
    assert "512MiB" in caught.value.cure


@pytest.mark.parametrize("word", ["0", "-3", "1.5", "many", "", "²"])
def test_words_that_are_not_a_number_of_pairs(word: str) -> None:
    with pytest.raises(UsageError, match="whole number of at least 1"):
        parse_whole_number(1, "--pairs", word)


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "1e999", "much", ""])
def test_words_that_are_not_a_budget(word: str) -> None:
    with pytest.raises(UsageError, match="number above 0"):
        parse_positive_number("--budget", word)


def test_numbers() -> None:
    assert (
        parse_whole_number(1, "--pairs", "60"),
        parse_whole_number(0, "--seed", "0"),
        parse_positive_number("--budget", "1e5"),
    ) == (60, 0, 1e5)


def test_devices() -> None:
    assert [
        parse_device("--device", word) for word in ("auto", "cpu", "mps", "cuda", "cuda:1")
    ] == ["auto", "cpu", "mps", "cuda", "cuda:1"]
    with pytest.raises(UsageError, match="'gpu'; allowed: auto, cpu, cuda, mps"):
        parse_device("--device", "gpu")


def test_a_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_folder("--runs-dir", "a/../b") == tmp_path / "b"
    assert parse_folder("--runs-dir", "~no-such-user/x").is_absolute()
    with pytest.raises(UsageError, match="empty"):
        parse_folder("--runs-dir", " ")


def test_the_flag_overrides_the_environment_and_that_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = argparse.Namespace(model=None)
    given = argparse.Namespace(model="gpt2")
    assert (arguments.MODEL.resolve_value(absent), arguments.MODEL.resolve_value(given)) == (
        "bundled",
        "gpt2",
    )
    monkeypatch.setenv("CIRCUIT_SCOUT_MODEL", "pythia")
    assert (arguments.MODEL.resolve_value(absent), arguments.MODEL.resolve_value(given)) == (
        "pythia",
        "gpt2",
    )
    monkeypatch.setenv("CIRCUIT_SCOUT_MODEL", "")
    assert arguments.MODEL.resolve_value(absent) == "bundled"


def test_the_environment_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUIT_SCOUT_MEMORY", "lots")
    with pytest.raises(UsageError, match="CIRCUIT_SCOUT_MEMORY is 'lots'"):
        arguments.MEMORY.resolve_value(argparse.Namespace(memory=None))


def test_every_setting_has_a_variable() -> None:
    names = {"MODEL", "BACKEND", "DEVICE", "DTYPE", "RUNS_DIR", "MODELS_DIR", "MEMORY"}
    assert {setting.variable for setting in SETTINGS} == {f"CIRCUIT_SCOUT_{name}" for name in names}


def test_the_choices_are_those_of_the_modules_that_are_too_heavy_to_import() -> None:
    from typing import get_args

    from discovery.backends import info
    from discovery.backends.hardware import devices
    from discovery.cli.commands.runs import FORMATS
    from discovery.graph import ExportFormat

    assert arguments.DTYPE_NAMES is info.DTYPE_NAMES
    assert arguments.DEVICE_KINDS is devices.DEVICE_KINDS
    assert set(FORMATS) == set(get_args(ExportFormat))


@pytest.mark.parametrize("module", [arguments, console])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
