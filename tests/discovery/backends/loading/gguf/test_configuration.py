"""What transformers makes of a header, without a single weight being read."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest
from transformers import AutoConfig, AutoTokenizer

from benchmarks.random_models.gguf_files import KINDS, write_gguf
from discovery.backends.loading.gguf.configuration import (
    READABLE_ARCHITECTURES,
    read_config,
    save_tokenizer,
)
from discovery.backends.loading.gguf.header import read_header
from discovery.backends.loading.outline import read_outline
from discovery.errors import ModelError

TEXTS = ("the cat", "  the thecat", "a cat</s> the", "")


def test_every_architecture_that_is_said_to_be_readable_can_be_written_here():
    assert sorted(KINDS) == sorted(READABLE_ARCHITECTURES)


@pytest.mark.parametrize("architecture", READABLE_ARCHITECTURES)
def test_the_configuration_is_that_of_transformers(gguf_models, architecture):
    path = gguf_models(architecture)
    expected = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    assert read_config(read_header((path,))).to_dict() == expected | {"_name_or_path": ""}


@pytest.mark.parametrize(
    ("architecture", "tokenizer"),
    [("llama", "gpt2"), ("llama", "llama"), ("qwen2", "gpt2"), ("gemma2", "llama")],
)
@pytest.mark.parametrize("bos", [False, True])
def test_the_saved_tokenizer_is_that_of_transformers(
    gguf_models, tmp_path, architecture, tokenizer, bos
):
    source = gguf_models(architecture).parent.parent / f"{architecture}-source"
    path = write_gguf(
        source,
        tmp_path / "m.gguf",
        architecture,
        tokenizer=tokenizer,
        metadata={"tokenizer.ggml.add_bos_token": bos},
    )
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    read_config(read_header((path,))).save_pretrained(tmp_path / "saved")
    save_tokenizer(read_header((path,)), tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in TEXTS:
        ids = saved(text)["input_ids"]
        assert ids == expected(text)["input_ids"]
        assert saved.decode(ids) == expected.decode(ids)
    assert (saved("the")["input_ids"][0] == saved.bos_token_id) == bos


def test_an_unknown_architecture_is_refused_with_a_list(gguf_models, tmp_path):
    source = gguf_models("llama").parent.parent / "llama-source"
    path = write_gguf(
        source, tmp_path / "m.gguf", "llama", metadata={"general.architecture": "rwkv7"}
    )
    with pytest.raises(ModelError, match="architecture 'rwkv7'") as caught:
        read_outline(path)
    assert "llama, nemotron, phi3, qwen2" in caught.value.cause


def test_metadata_that_lack_a_size_are_refused(gguf_models, tmp_path):
    source = gguf_models("llama").parent.parent / "llama-source"
    path = write_gguf(
        source, tmp_path / "m.gguf", "llama", metadata={"llama.attention.head_count": "many"}
    )
    with pytest.raises(ModelError, match="transformers cannot read its configuration"):
        read_outline(path)


def test_a_file_without_an_embedding_is_refused(gguf_models, tmp_path):
    source = gguf_models("llama").parent.parent / "llama-source"
    path = write_gguf(source, tmp_path / "m.gguf", "llama", without=["token_embd.weight"])
    with pytest.raises(ModelError, match=r"has no tensor token_embd\.weight"):
        read_outline(path)


def test_the_outline_reads_the_header_alone(gguf_models, tmp_path, monkeypatch):
    """Every read is counted, and none reaches the data; no other file is opened for reading."""
    path = gguf_models("llama", "F32")
    start = min(tensor.offset for tensor in read_header((path,)).tensors)
    ends: list[int] = []
    opened: list[Path] = []
    open_path = Path.open

    def open_watched(self: Path, *args, **kwargs):
        file = open_path(self, *args, **kwargs)
        if self == path:
            opened.append(self)
            return _Watched(file, ends)
        return file

    monkeypatch.setattr(Path, "open", open_watched)
    before = _mapped_files()
    outline = read_outline(path)
    assert opened
    assert max(ends) <= start
    assert str(path) not in _mapped_files() - before
    assert (outline.quantisation, outline.n_layers, outline.tokenizer) == ("F32", 2, True)


def test_the_outline_of_a_model_that_is_larger_than_the_memory(gguf_models, tmp_path):
    """The data of this file are a hole of hundreds of GB: nothing could be read from it."""
    source = gguf_models("llama", "F32")
    header = read_header((source,))
    start = min(tensor.offset for tensor in header.tensors)
    path = tmp_path / "hole.gguf"
    path.write_bytes(source.read_bytes()[:start])
    with path.open("r+b") as file:
        file.truncate(400 * 2**30)
    before = psutil.Process().memory_info().rss
    assert read_outline(path).n_params == read_outline(source).n_params
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


def test_no_other_file_of_the_directory_is_looked_at(gguf_models, tmp_path):
    """A tokenizer_config.json beside the file could ask to run code."""
    path = shutil.copy(gguf_models("llama"), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.Y"}}')
    (tmp_path / "tokenizer.json").write_text("no tokenizer")
    header = read_header((Path(path),))
    save_tokenizer(header, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("the cat")["input_ids"]


class _Watched:
    """A file that notes how far it is read."""

    def __init__(self, file, ends: list[int]) -> None:
        self.file = file
        self.ends = ends

    def read(self, size: int = -1) -> bytes:
        content: bytes = self.file.read(size)
        self.ends.append(self.file.tell())
        return content

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *fault) -> None:
        self.file.close()


def _mapped_files() -> set[str]:
    return {region.path for region in psutil.Process().memory_maps()}
