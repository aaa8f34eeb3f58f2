"""The count of circuits that used the same held-out pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import discovery
from discovery.errors import StoreError
from discovery.store import record_heldout_look

ROOT = Path(discovery.__file__).parents[1]


def test_only_another_circuit_at_the_same_pairs_counts(tmp_path: Path) -> None:
    assert record_heldout_look(tmp_path, "pairs", "a9.h6 m5") == 1
    assert record_heldout_look(tmp_path, "pairs", "a9.h6 m5") == 1
    assert record_heldout_look(tmp_path, "pairs", "a9.h6") == 2
    assert record_heldout_look(tmp_path, "other pairs", "a9.h6") == 1
    assert record_heldout_look(tmp_path, "pairs", "m5") == 3


def test_a_replay_gives_the_number_of_the_first_look(tmp_path: Path) -> None:
    looks = [record_heldout_look(tmp_path, "pairs", key) for key in ("A", "B", "C")]
    assert (
        [record_heldout_look(tmp_path, "pairs", key) for key in ("A", "B", "C")]
        == looks
        == [1, 2, 3]
    )


def test_no_look_is_lost_when_processes_look_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from discovery.store import record_heldout_look\n"
        "for number in range(15):\n"
        "    record_heldout_look(sys.argv[1], 'pairs', f'{sys.argv[2]}-{number}')"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(name)], cwd=ROOT)
        for name in range(3)
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert record_heldout_look(tmp_path, "pairs", "last") == 46


@pytest.mark.parametrize("content", ["", "[]", '{"pairs": 3}'])
def test_a_damaged_file_is_reported_and_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "heldout.json").write_text(content)
    with pytest.raises(StoreError, match=r"heldout\.json is damaged"):
        record_heldout_look(tmp_path, "pairs", "A")
    assert (tmp_path / "heldout.json").read_text() == content


def test_heldout_json_is_strict_json_that_people_can_read(tmp_path: Path) -> None:
    record_heldout_look(tmp_path / "new", "pairs", "a9.h6")
    assert json.loads((tmp_path / "new" / "heldout.json").read_text()) == {"pairs": ["a9.h6"]}


def test_a_directory_that_cannot_exist_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--runs-dir"):
        record_heldout_look(tmp_path / "file" / "x", "pairs", "A")
