"""Loaded Hugging Face directories give the logits of transformers alone, and the right facts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.random_models.tiny_models import (
    ARCHITECTURES,
    CONTEXT,
    VOCAB,
    load_plain_module,
    save_hugging_face,
    save_native,
    save_tokenizer,
)
from discovery.backends.base import Backend, Batch
from discovery.backends.loading.load import load_model
from discovery.backends.loading.source import bundled_directory
from discovery.errors import BackendMismatchError
from discovery.interventions import scale
from discovery.sites import Site
from discovery.tasks import load_task
from tests.discovery.backends.loading.faulty_backend import ALL_ABILITIES
from tests.discovery.backends.loading.refusals import refuse
from tests.oracles.models.hooked_module import HookedModule

TOKENS = torch.randint(VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(0))


def every_position(model: Backend, tokens: Tensor) -> Tensor:
    """Logits [row pos d_vocab], one answer position at a time."""
    rows, width = tokens.shape
    logits = [
        model.run(Batch(tokens, torch.full((rows,), position))).logits for position in range(width)
    ]
    return torch.stack([each for each in logits if each is not None], 1)


def assert_plain(
    model: Backend,
    folder: Path,
    tokens: Tensor = TOKENS,
    dtype: torch.dtype = torch.float32,
    close: float = 1e-5,
) -> None:
    expected = load_plain_module(folder, dtype)(input_ids=tokens).logits
    torch.testing.assert_close(
        every_position(model, tokens), expected, atol=close * float(expected.abs().max()), rtol=0
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_are_those_of_transformers_alone(tiny_models, backend, kind):
    assert_plain(tiny_models.load(kind, backend), tiny_models.path(kind))


FACTS = {
    "gpt2": ("GPT2LMHeadModel", 3, 2, 2, 8, False, "standard", "LN"),
    "llama": ("LlamaForCausalLM", 3, 4, 2, 4, False, "rotary", "RMS"),
    "neox": ("GPTNeoXForCausalLM", 2, 2, 2, 8, True, "rotary", "LN"),
    "opt": ("OPTForCausalLM", 2, 2, 2, 8, False, "standard", "LN"),
    "mistral": ("MistralForCausalLM", 3, 4, 2, 4, False, "rotary", "RMS"),
    "qwen2": ("Qwen2ForCausalLM", 3, 4, 2, 4, False, "rotary", "RMS"),
    "gemma": ("GemmaForCausalLM", 3, 4, 2, 6, False, "rotary", "RMS"),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_known_of_a_model(tiny_models, backend, kind):
    info = tiny_models.load(kind, backend).info
    facts = (
        info.architecture,
        info.n_layers,
        info.n_heads,
        info.n_kv_heads,
        info.d_head,
        info.parallel,
        info.positional_embedding,
        info.normalization,
    )
    assert facts == FACTS[kind]
    assert (info.d_model, info.d_vocab, info.n_ctx, info.attn_only, info.weight_processing) == (
        16,
        VOCAB,
        CONTEXT,
        False,
        "none",
    )
    assert (info.backend, info.device, info.dtype, info.warnings) == (backend, "cpu", "float32", ())
    assert info.name == info.source == str(tiny_models.path(kind))
    assert info.revision is None
    module = load_plain_module(tiny_models.path(kind))
    assert info.n_params == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_work_of_a_block_is_that_of_its_matrices(tiny_models, backend, kind):
    """Hooks count inputs times outputs of every matmul with a weight, for one position."""
    info = tiny_models.load(kind, backend).info
    module = load_plain_module(tiny_models.path(kind))
    macs = []

    def count(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs.append(inputs[0].shape[-1] * output.shape[-1])

    blocks = max((part for part in module.modules() if isinstance(part, nn.ModuleList)), key=len)
    for part in blocks[1].modules():
        if hasattr(part, "weight") and part.weight.ndim == 2:
            part.register_forward_hook(count)
    module(input_ids=TOKENS[:1])
    assert sum(macs) == info.macs_attention + info.macs_mlp


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_shortcut_that_an_architecture_has_is_found(tiny_models, backend, kind):
    abilities = tiny_models.load(kind, backend).abilities
    assert abilities.prefix
    assert abilities.columns
    assert abilities.linear_heads
    assert abilities.after_attention == (kind != "neox")


@pytest.mark.parametrize(
    ("dtype", "close"), [("float64", 1e-6), ("bfloat16", 2e-2), ("float16", 5e-3)]
)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_other_dtypes(tiny_models, backend, kind, dtype, close):
    model = tiny_models.load(kind, backend, dtype)
    width = getattr(torch, dtype)
    assert model.info.dtype == dtype
    out = model.run(Batch(TOKENS, torch.tensor([3, 4])), [Site("resid_post", 1)])
    assert out.logits is not None
    assert out.logits.dtype == out.activations[Site("resid_post", 1)].dtype == width
    assert_plain(model, tiny_models.path(kind), dtype=width, close=close)


def test_without_a_tokenizer_there_is_none(tiny_models, backend):
    model = tiny_models.load("gpt2", backend)
    assert model.tokenizer is None
    (pair,) = load_task(
        [{"clean": [1, 2], "corrupted": [3, 2], "answer": 4, "wrong": 5}], model
    ).pairs
    assert pair.clean == (1, 2)


@pytest.mark.parametrize("bos", [False, True])
def test_text_is_tokenised_with_the_tokenizers_own_special_tokens(folder, backend, bos):
    model = load_model(
        save_tokenizer(save_hugging_face(folder, "gpt2"), bos=bos), backend=backend, device="cpu"
    )
    assert model.tokenizer is not None
    assert model.tokenizer.encode("the cat sees") == [0] * bos + [2, 3, 5]
    assert model.tokenizer.decode([2, 3]) == "the cat"
    task = load_task(
        [
            {
                "clean": "the cat sees",
                "corrupted": "the dog sees",
                "answer": " fish",
                "wrong": " bones",
            }
        ],
        model,
    )
    assert task.pairs[0].clean == (*(0,) * bos, 2, 3, 5)
    assert task.pairs[0].answer == (6,)


def test_nothing_is_printed(folder, capsys):
    load_model(save_hugging_face(folder, "gpt2"), device="cpu")
    assert capsys.readouterr().out == ""


def test_the_fingerprint_is_that_of_the_weights_file(tmp_path, tiny_models):
    first = tiny_models.path("gpt2") / "model.safetensors"
    assert (
        tiny_models.load("gpt2").info.fingerprint == hashlib.sha256(first.read_bytes()).hexdigest()
    )
    again = load_model(save_hugging_face(tmp_path / "again", "gpt2"), device="cpu").info
    other = load_model(save_hugging_face(tmp_path / "other", "gpt2", seed=1), device="cpu").info
    assert again.fingerprint == tiny_models.load("gpt2").info.fingerprint != other.fingerprint


def test_weights_in_several_files(folder, tiny_models):
    load_plain_module(tiny_models.path("gpt2")).save_pretrained(folder, max_shard_size="20KB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    model = load_model(folder, device="cpu")
    assert_plain(model, tiny_models.path("gpt2"))
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    assert model.info.fingerprint == hashlib.sha256(digests.encode()).hexdigest()


def test_weights_want_no_gradients(tiny_models, backend):
    model = tiny_models.load("gpt2", backend)
    assert not any(
        parameter.requires_grad
        for parameter in (model.module if backend == "nnsight" else model.bridge).parameters()
    )


def test_a_wrapper_that_changes_the_model_is_caught(folder, monkeypatch):
    """The reference is computed before the wrapping, so changes to the module in place show."""
    from transformer_lens.model_bridge.sources import _bridge_builder

    build = _bridge_builder.build_bridge_from_module

    def careless(module: Any, *args: Any, **kwargs: Any) -> Any:
        module.transformer.ln_f.bias.data += 0.1
        return build(module, *args, **kwargs)

    monkeypatch.setattr(_bridge_builder, "build_bridge_from_module", careless)
    with pytest.raises(
        BackendMismatchError, match="computes other logits than Hugging Face for GPT2LMHeadModel"
    ):
        load_model(save_hugging_face(folder, "gpt2"), device="cpu")


def test_a_sequential_gpt_neox_is_not_parallel(folder, backend):
    model = load_model(
        save_hugging_face(folder, "neox", use_parallel_residual=False),
        backend=backend,
        device="cpu",
    )
    assert not model.info.parallel
    assert model.abilities.after_attention
    assert_plain(model, folder)


def windowed(folder: Path, kind: str) -> Path:
    if kind == "mistral":
        return save_hugging_face(folder, "mistral", sliding_window=3)
    import transformers

    from benchmarks.random_models import tiny_models

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 6,
    }
    config: Any = getattr(transformers, kind)(
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        sliding_window=3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        **sizes,
    )
    module = transformers.AutoModelForCausalLM.from_config(config)
    tiny_models.randomise(module, 0)
    module.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["mistral", "Gemma2Config", "Gemma3TextConfig"])
def test_attention_in_a_window_can_be_resumed_after_any_prefix(folder, backend, kind):
    """The prefix must keep all positions: Hugging Face's cache drops those outside the window."""
    model = load_model(windowed(folder, kind), backend=backend, device="cpu", dtype="float64")
    expected = load_plain_module(folder, torch.float64)(input_ids=TOKENS).logits
    assert model.abilities.prefix
    prefix = model.run(Batch(TOKENS, torch.tensor([0, 0])), keep_prefix=True).prefix
    assert prefix is not None
    for cut in range(1, CONTEXT):
        for position in range(cut, CONTEXT):
            last = torch.full((2,), position - cut)
            got = model.run(
                Batch(TOKENS[:, cut:], last, prefix=prefix.take(torch.arange(2), cut))
            ).logits
            torch.testing.assert_close(got, expected[:, position], atol=1e-5, rtol=1e-5)


def test_soft_capped_logits_are_not_taken_by_columns(folder, backend):
    model = load_model(windowed(folder, "Gemma2Config"), backend=backend, device="cpu")
    assert not model.abilities.columns
    assert (
        not model.abilities.linear_heads
    )  # a norm stands between the heads and the residual stream
    assert_plain(model, folder)


@pytest.mark.parametrize("name", ["babyllama105", "stories260K"])
def test_trained_models(shared_models, backend, name):
    folder = shared_models / name / "hf"
    if not folder.is_dir():
        pytest.skip(f"{name} is not among the shared models")
    model = load_model(folder, backend=backend, device="cpu")
    from transformers import AutoTokenizer

    text = "Once upon a time there was a"
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(text)
    assert ids == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert_plain(model, folder, torch.tensor([ids]))
    reference = HookedModule(load_plain_module(folder), "llama")
    tokens = torch.tensor([ids])
    layer = model.info.n_layers // 2
    for kind in ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"):
        site = Site(kind, layer)  # type: ignore[arg-type]
        logits, seen = reference.run(tokens, {site: lambda activation: 0.5 * activation}, [site])
        out = model.run(Batch(tokens, torch.tensor([len(ids) - 1])), [site], [scale(site, 0.5)])
        close = {"atol": 1e-5 * float(logits.abs().max()), "rtol": 1e-5}
        torch.testing.assert_close(out.activations[site], seen[site], **close)
        torch.testing.assert_close(out.logits, logits[:, -1], **close)


def test_the_bundled_model(backend):
    model = load_model(backend=backend, device="cpu")
    folder = bundled_directory()
    assert (model.info.name, model.info.source, model.info.revision) == ("bundled", "bundled", None)
    assert (
        model.info.fingerprint
        == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    )
    assert model.abilities == ALL_ABILITIES
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("When Mary and John went to the store, John gave a drink to")
    assert 0 < max(ids) < model.info.d_vocab
    assert_plain(model, folder, torch.tensor([ids]))


def test_a_model_that_looks_back_and_forth(folder):
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    assert "is not causal" in refuse(folder).cause


def test_an_architecture_that_the_backend_does_not_support(folder):
    import transformers

    config = transformers.CTRLConfig(
        vocab_size=VOCAB, n_positions=12, n_embd=16, dff=24, n_layer=1, n_head=2
    )
    transformers.CTRLLMHeadModel(config).save_pretrained(folder)
    assert "TransformerLens cannot wrap CTRLLMHeadModel" in refuse(folder).cause


def test_a_configuration_that_does_not_fit_itself(folder):
    import transformers

    config = transformers.StableLmConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )  # its default of 32 key heads is left
    transformers.StableLmForCausalLM(config).save_pretrained(folder)
    assert "does not run" in refuse(folder).cause


@pytest.mark.parametrize("dtype", ["int8", "float", "torch.float32", ""])
def test_an_unknown_dtype(dtype):
    fault = refuse("anything", dtype=dtype)
    assert f"dtype {dtype!r} is not known" in fault.cause
    assert "float32" in fault.cure


def test_an_unknown_backend():
    assert "backend 'jax' is not known" in refuse("anything", backend="jax").cause


def test_a_sound_model_is_not_refused(folder, tmp_path):
    assert load_model(save_native(folder).path, device="cpu").info.n_layers == 2
    assert (
        load_model(str(save_hugging_face(tmp_path / "hf", "gpt2")), device="cpu").info.n_layers == 3
    )
