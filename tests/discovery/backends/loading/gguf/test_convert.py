"""The dequantised copy has the weights that transformers reads, and appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.random_models.gguf_files import save_gguf_source, write_gguf
from benchmarks.random_models.tiny_models import load_plain_module
from discovery.backends.base import Batch
from discovery.backends.loading import load
from discovery.backends.loading.gguf import convert
from discovery.backends.loading.gguf.configuration import READABLE_ARCHITECTURES
from discovery.backends.loading.gguf.convert import convert_gguf
from discovery.backends.loading.gguf.header import read_header
from discovery.backends.loading.load import load_model
from discovery.backends.loading.load_arguments import (
    load_arguments,
    model_source,
    reload_model,
)
from discovery.store import ModelSource, create_run
from tests.discovery.backends.loading.refusals import refuse

TOKENS = torch.tensor([[3, 30, 41, 5, 60, 12, 7, 33]])
QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0")
QUICK = (
    ("llama", "Q4_1"),
    ("qwen2", "Q8_0"),
    ("qwen3", "F16"),
    ("gemma2", "Q4_0"),
    ("gemma3", "Q8_0"),
    ("phi3", "Q4_0"),
    ("gpt2", "Q8_0"),
)
UNKNOWN_TO_NNSIGHT = ("falcon", "stablelm", "nemotron")
SLOW = [
    pytest.param(architecture, quantisation, marks=pytest.mark.slow)
    for architecture in READABLE_ARCHITECTURES
    for quantisation in QUANTISATIONS
    if (architecture, quantisation) not in QUICK
]


def read_with_transformers(path: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Return the dequantised model of transformers' own reader."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, attn_implementation="eager"
    ).eval()


def convert_file(path: Path, dtype: str = "float32") -> Path:
    return convert_gguf(read_header((path,)), "0" * 64, dtype)


@pytest.mark.parametrize(("architecture", "quantisation"), [*QUICK, *SLOW])
def test_logits_are_those_of_transformers_own_reader(
    gguf_models, architecture, quantisation, backend
):
    path = gguf_models(architecture, quantisation)
    with torch.no_grad():
        expected = read_with_transformers(path)(TOKENS).logits[0]
    if backend == "nnsight" and architecture in UNKNOWN_TO_NNSIGHT:
        assert "nnsight" in refuse(path, backend=backend).cause
        return
    model = load_model(path, backend=backend, device="cpu")
    n = TOKENS.shape[1]
    logits = model.run(Batch(TOKENS.expand(n, -1), torch.arange(n))).logits
    assert logits is not None
    # GPT-2's and Bloom's GELU is computed in one kernel here; the other parts are the same.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-5)
    assert model.info.quantisation == quantisation
    assert model.info.source == str(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("architecture", "quantisation"), QUICK)
def test_weights_equal_those_of_transformers_bit_by_bit(
    gguf_models, architecture, quantisation, dtype
):
    path = gguf_models(architecture, quantisation)
    torch_dtype = getattr(torch, dtype)
    expected = read_with_transformers(path, torch_dtype).state_dict()
    weights = load_plain_module(convert_file(path, dtype), torch_dtype).state_dict()
    assert set(weights) == set(expected)
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("architecture", READABLE_ARCHITECTURES)
def test_without_quantisation_the_model_is_the_one_that_was_written(gguf_models, architecture):
    """This holds whatever transformers does: a wrong permutation would show here."""
    path = gguf_models(architecture, "F32")
    source = path.parent.parent / f"{architecture}-source"
    with torch.no_grad():
        expected = load_plain_module(source)(TOKENS).logits
        logits = load_plain_module(convert_file(path))(TOKENS).logits
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_heads_without_a_count_of_key_value_heads_are_put_in_order(tmp_path):
    """A file may leave the count out if every head has its own; transformers forgets to permute."""
    source = save_gguf_source(tmp_path / "source", "llama", num_key_value_heads=4)
    path = write_gguf(source, tmp_path / "with.gguf", "llama")
    content = path.read_bytes().replace(
        b"llama.attention.head_count_kv", b"llama.attention.head_count_no"
    )
    path.write_bytes(content)
    with torch.no_grad():
        expected = load_plain_module(source)(TOKENS).logits
        logits = load_plain_module(convert_file(path))(TOKENS).logits
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_float64_uses_the_copy_in_float32(gguf_models):
    path = gguf_models()
    assert convert_file(path, "float64") == convert_file(path, "float32")
    model = load_model(path, device="cpu", dtype="float64")
    assert model.info.dtype == "float64"


def test_the_second_load_uses_the_copy(gguf_models, cache, monkeypatch):
    path = gguf_models()
    first = load_model(path, device="cpu")
    [directory] = [entry for entry in cache.iterdir() if entry.is_dir()]
    assert directory.name.startswith(first.info.fingerprint)
    monkeypatch.setattr(convert, "_write_copy", lambda *_: pytest.fail("it was converted again"))
    assert load_model(path, device="cpu").info == first.info


def test_a_copy_that_lost_a_file_is_made_again(gguf_models):
    directory = convert_file(gguf_models())
    weights = (directory / convert.WEIGHTS).read_bytes()
    (directory / convert.WEIGHTS).write_bytes(weights[:-1])
    assert convert_file(gguf_models()) == directory
    assert (directory / convert.WEIGHTS).read_bytes() == weights
    (directory / "gguf.json").unlink()
    convert_file(gguf_models())
    assert json.loads((directory / "gguf.json").read_text())["quantisation"] == "Q8_0"


def test_a_conversion_that_fails_leaves_nothing(gguf_models, cache, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("half-way")

    monkeypatch.setattr(convert, "save_tokenizer", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        convert_file(gguf_models())
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


CONVERT = """
import sys, time
from pathlib import Path
from discovery.backends.loading.gguf import convert
from discovery.backends.loading.gguf.header import read_header
write = convert._write_weight
def write_slowly(file, weight):
    write(file, weight)
    file.flush()
    print("wrote", flush=True)
    time.sleep(float(sys.argv[2]))
convert._write_weight = write_slowly
print(convert.convert_gguf(read_header((Path(sys.argv[1]),)), "0" * 64, "float32"), flush=True)
"""


def start_conversion(path: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT, str(path), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_is_used(gguf_models, cache):
    path = gguf_models()
    process = start_conversion(path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "wrote\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [leftover] = [entry for entry in cache.iterdir() if entry.is_dir()]
    assert leftover.name.endswith(".tmp")
    directory = convert_file(path)
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == [directory]
    load_plain_module(directory)


@pytest.mark.slow
def test_two_processes_at_once_make_one_copy(gguf_models):
    path = gguf_models()
    first = start_conversion(path, 0.1)
    assert first.stdout is not None
    assert first.stdout.readline() == "wrote\n"
    second = start_conversion(path, 0.1)
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert outputs[1].splitlines() == outputs[0].splitlines()[-1:]  # the second wrote nothing
    load_plain_module(Path(outputs[1].strip()))


def test_a_model_in_parts_is_read_as_one(gguf_models, tmp_path):
    whole = gguf_models("gpt2", "F32")
    parts = split_file(whole, tmp_path)
    model = load_model(parts[1], device="cpu")
    expected = load_model(whole, device="cpu")
    assert model.info.n_params == expected.info.n_params
    assert model.info.source == str(parts[0])
    batch = Batch(TOKENS, torch.tensor([TOKENS.shape[1] - 1]))
    assert torch.equal(model.run(batch).logits, expected.run(batch).logits)
    parts[2].unlink()
    assert parts[2].name in refuse(parts[0]).cause


def split_file(path: Path, folder: Path) -> list[Path]:
    """Write a model as three files, as gguf-split does: the metadata are in the first."""
    import gguf

    reader = gguf.GGUFReader(path)
    groups = [reader.tensors[0::3], reader.tensors[1::3], reader.tensors[2::3]]
    parts = []
    for number, tensors in enumerate(groups):
        part = folder / f"model-{number + 1:05d}-of-00003.gguf"
        writer = gguf.GGUFWriter(part, "gpt2")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        for key, field in reader.fields.items() if number == 0 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                sub_type = field.types[1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    return parts


def test_a_missing_weight_is_named(gguf_models, tmp_path):
    source = gguf_models("llama").parent.parent / "llama-source"
    name = "blk.1.ffn_gate.weight"
    path = write_gguf(source, tmp_path / "m.gguf", "llama", without=[name])
    assert "lacks 1 weights" in refuse(path).cause
    assert "model.layers.1.mlp.gate_proj.weight" in refuse(path).cause


def test_sizes_that_transformers_misreads_are_named(gguf_models, tmp_path):
    """transformers takes Qwen 3's head size as 128, whatever the file says."""
    source = save_gguf_source(tmp_path / "source", "qwen3", head_dim=16)
    path = write_gguf(source, tmp_path / "m.gguf", "qwen3")
    assert "blk.0.attn_q.weight has the shape (64, 32)" in refuse(path).cause


def test_what_transformers_leaves_out_is_a_warning(gguf_models, tmp_path, monkeypatch):
    import gguf

    source = gguf_models("llama").parent.parent / "llama-source"
    write = gguf.GGUFWriter.write_header_to_file

    def add_frequencies(writer, *args):
        writer.add_tensor("rope_freqs.weight", torch.ones(4).numpy())
        write(writer, *args)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", add_frequencies)
    path = write_gguf(
        source, tmp_path / "m.gguf", "llama", metadata={"llama.rope.scaling.type": "yarn"}
    )
    [warning] = load_model(path, device="cpu").info.warnings
    assert "does not use rope_freqs.weight, llama.rope.scaling of m.gguf" in warning


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    gguf_models, cache, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    fault = refuse(gguf_models())
    assert "does not fit on the disk" in fault.cause
    assert "CIRCUIT_SCOUT_CACHE_DIR" in fault.cure
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_memory_that_is_too_small_is_named(gguf_models, monkeypatch):
    monkeypatch.setattr(convert, "read_free_memory", lambda _: 1000)
    assert "cannot be converted: its largest tensor takes" in refuse(gguf_models()).cause


def test_a_cache_that_cannot_be_written(gguf_models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIRCUIT_SCOUT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    fault = refuse(gguf_models())
    assert "cannot be written to" in fault.cause
    assert "CIRCUIT_SCOUT_CACHE_DIR" in fault.cure


def test_a_model_that_does_not_fit_is_refused_before_it_is_converted(
    gguf_models, cache, monkeypatch
):
    monkeypatch.setattr(load, "read_free_memory", lambda _: 1000)
    assert "does not fit" in refuse(gguf_models()).cause
    assert not cache.exists()


@pytest.mark.parametrize("remote", ["local", True])
def test_a_gguf_model_is_not_run_remotely(gguf_models, remote, monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "none")
    fault = refuse(gguf_models(), remote=remote)
    assert "NDIF" in fault.cause


@pytest.mark.slow
def test_the_largest_tensor_decides_the_memory(tmp_path, monkeypatch):
    """Converting takes the memory of a few copies of one tensor, not of the model."""
    source = save_gguf_source(tmp_path / "source", "llama", vocab_size=60_000, num_hidden_layers=8)
    path = write_gguf(source, tmp_path / "m.gguf", "llama", "Q4_0")
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from discovery.backends.loading.gguf import convert\n"
        "from discovery.backends.loading.gguf.header import read_header\n"
        "header = read_header((Path(sys.argv[1]),))\n"
        "plan = convert.plan_conversion(header)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "convert.convert_gguf(header, '0' * 64, 'float32')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    largest = 60_000 * 32
    assert int(result.stdout) * 1024 < convert._PEAK_BYTES_PER_WEIGHT * largest + 60 * 2**20


def test_a_run_names_the_file_and_loads_it_again_from_elsewhere(gguf_models, tmp_path, monkeypatch):
    path = gguf_models()
    monkeypatch.chdir(path.parent)
    model = load_model(path.name, device="cpu", backend="nnsight")
    source = model_source(model.info)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert (source.fingerprint, source.quantisation) == (digest, "Q8_0")
    arguments = load_arguments(model)
    assert arguments.model == str(path)
    with create_run(
        tmp_path / "runs", "task", source, {"load": arguments.model_dump(mode="json")}
    ) as run:
        monkeypatch.chdir(tmp_path)
        assert reload_model(run).info.fingerprint == digest
        record = json.loads((run.path / "run.json").read_text())
    assert record["model"]["quantisation"] == "Q8_0"
    assert "quantisation" not in ModelSource(name="bundled").model_dump()
