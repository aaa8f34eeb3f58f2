from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from discovery.cli.console import Console, divert_stdout, escape_unprintable
from discovery.errors import StoreError


def test_whatever_is_printed_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with divert_stdout(verbose=False, quiet=False) as console:
        sys.stdout.write("a library's greeting\n")
        os.write(1, b"a library in C\n")
        os.system("echo a program")
        console.write_result("the result")
    sys.stdout.write("after\n")
    os.write(1, b"and below\n")
    result = capfd.readouterr()
    assert sorted(result.out.splitlines()) == ["after", "and below", "the result"]
    assert sorted(result.err.splitlines()) == [
        "a library in C",
        "a library's greeting",
        "a program",
    ]


def test_standard_output_is_back_after_a_fault(capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir("/dev/fd")) if Path("/dev/fd").exists() else None
    with pytest.raises(RuntimeError), divert_stdout(verbose=False, quiet=False):
        raise RuntimeError
    os.write(1, b"here\n")
    assert capfd.readouterr().out == "here\n"
    assert before is None or len(os.listdir("/dev/fd")) == len(before)


def test_a_document_is_written_unchanged_and_text_is_escaped(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with divert_stdout(verbose=False, quiet=False) as console:
        console.write_document("é\x1b\n")
        console.write_result("\x1b[31mred\r∅")
    assert capfd.readouterr().out == "é\x1b\n\\x1b[31mred\\r∅\n"
    assert escape_unprintable("a\tb\nc\x00\u202e") == "a\tb\nc\\x00\\u202e"


def test_characters_that_the_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        Console(file.fileno(), "ascii").write_result("m(∅)")
    assert (tmp_path / "out").read_bytes() == b"m(\\u2205)\n"


def test_quiet_leaves_only_warnings(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    import warnings

    with divert_stdout(verbose=False, quiet=True) as console:
        assert os.environ["TQDM_DISABLE"] == "1"
        console.write_note("a note")
        console.report_event({"stage": "heads", "concluded": "two", "why": "so"})
        console.progress(1, 2, "heads")
        warnings.warn("a warning", stacklevel=1)
        console.write_warning("a warning to keep")
    assert "TQDM_DISABLE" not in os.environ
    assert capfd.readouterr() == ("", "a warning to keep\n")
    assert len(recwarn) == 0


def test_an_event_shows_its_reason_and_a_decision_only_if_verbose(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for verbose, lines in (
        (False, ["mend: two nodes", "    all hold"]),
        (True, ["mend: dropped", "    weak", "mend: two nodes", "    all hold"]),
    ):
        with divert_stdout(verbose=verbose, quiet=False) as console:
            console.report_event(
                {"stage": "mend", "kind": "decision", "concluded": "dropped", "why": "weak"}
            )
            console.report_event(
                {"stage": "mend", "kind": "stage", "concluded": "two nodes", "why": "all hold"}
            )
        assert capfd.readouterr().err.splitlines() == lines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_an_error_of_the_caller() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(StoreError, match="Standard output cannot be written"),
    ):
        Console(full.fileno(), "utf-8").write_document("x")
