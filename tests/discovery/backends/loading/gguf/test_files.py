"""Which files are GGUF models, and which are parts of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery.backends.loading.gguf.files import find_gguf_parts, list_gguf_models
from discovery.errors import ModelError

PARTS = [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"GGUF")
    return folder


def test_a_model_in_parts_is_one_model_named_by_its_first_part(tmp_path):
    make(tmp_path, *reversed(PARTS), "small.gguf", "UPPER.GGUF", "notes.txt")
    (tmp_path / "folder.gguf").mkdir()
    names = [path.name for path in list_gguf_models(tmp_path)]
    assert names == ["UPPER.GGUF", PARTS[0], "small.gguf"]


def test_a_directory_that_is_not_there_holds_no_models(tmp_path):
    assert list_gguf_models(tmp_path / "nowhere") == []


@pytest.mark.parametrize("given", PARTS)
def test_any_part_leads_to_all_parts_in_order(tmp_path, given):
    make(tmp_path, *PARTS)
    assert find_gguf_parts(tmp_path / given) == tuple(tmp_path / name for name in PARTS)


def test_a_file_alone_is_its_only_part(tmp_path):
    path = make(tmp_path, "model-00001-of-3.gguf") / "model-00001-of-3.gguf"
    assert find_gguf_parts(path) == (path,)


@pytest.mark.parametrize("given", [PARTS[0], PARTS[2]])
def test_a_missing_part_is_named_with_the_command_that_merges(tmp_path, given):
    make(tmp_path, PARTS[0], PARTS[2])
    with pytest.raises(ModelError, match="1 of them is not in its directory") as caught:
        find_gguf_parts(tmp_path / given)
    assert PARTS[1] in caught.value.cause
    assert "gguf-split --merge" in caught.value.cure
