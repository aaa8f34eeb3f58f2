"""Tiny random models as GGUF files, written as llama.cpp's converter writes them.

The steps that llama.cpp takes with each architecture are written out here, and are the inverse of
what a reader must do: Llama's queries and keys are permuted, Gemma's and Nemotron's norms are
stored with one added, GPT-2's matrices are transposed, Bloom's queries, keys and values are sorted,
and merged experts are taken apart. Source: convert_hf_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.random_models.tiny_models import load_plain_module

GGUF_VOCAB = 64
_SIZES = {
    "vocab_size": GGUF_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_OWN_SIZES = {"vocab_size": GGUF_VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True, kw_only=True)
class GgufKind:
    """An architecture of which tiny GGUF files can be written.

    Attributes:
        architecture: its name in GGUF.
        config: the class of its configuration in transformers.
        sizes: the arguments of that class.
        metadata: metadata beside those that follow from the sizes.
    """

    architecture: str
    config: str
    sizes: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


KINDS: Mapping[str, GgufKind] = {
    kind.architecture: kind
    for kind in (
        GgufKind(architecture="llama", config="LlamaConfig", sizes=_SIZES),
        GgufKind(architecture="qwen2", config="Qwen2Config", sizes=_SIZES),
        GgufKind(architecture="qwen3", config="Qwen3Config", sizes=_SIZES | {"head_dim": 128}),
        GgufKind(
            architecture="gemma2",
            config="Gemma2Config",
            sizes=_SIZES | {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 256},
        ),
        GgufKind(
            architecture="gemma3",
            config="Gemma3TextConfig",
            sizes=_SIZES | {"head_dim": 16, "sliding_window": 4},
        ),
        GgufKind(
            architecture="phi3",
            config="Phi3Config",
            sizes=_SIZES,
            metadata={"tokenizer.ggml.padding_token_id": 0},
        ),
        GgufKind(
            architecture="gpt2",
            config="GPT2Config",
            sizes={
                "vocab_size": GGUF_VOCAB,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 1024,
            },
        ),
        GgufKind(architecture="starcoder2", config="Starcoder2Config", sizes=_SIZES),
        GgufKind(architecture="stablelm", config="StableLmConfig", sizes=_SIZES),
        GgufKind(architecture="nemotron", config="NemotronConfig", sizes=_SIZES),
        GgufKind(architecture="bloom", config="BloomConfig", sizes=_OWN_SIZES),
        GgufKind(architecture="qwen2moe", config="Qwen2MoeConfig", sizes=_SIZES | _EXPERTS),
        GgufKind(
            architecture="qwen3moe",
            config="Qwen3MoeConfig",
            sizes=_SIZES | _EXPERTS | {"head_dim": 16, "norm_topk_prob": True},
        ),
        GgufKind(
            architecture="falcon",
            config="FalconConfig",
            sizes={
                "vocab_size": GGUF_VOCAB,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
        ),
    )
}


def save_gguf_source(folder: Path, architecture: str, seed: int = 0, **changes: Any) -> Path:
    """Save the Hugging Face directory of a tiny model that can be written as GGUF."""
    import transformers

    from benchmarks.random_models.tiny_models import randomise

    kind = KINDS[architecture]
    sizes = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **kind.sizes, **changes}
    module = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, kind.config)(**sizes)
    )
    randomise(module, seed)
    module.save_pretrained(folder)
    return folder


def write_gguf(
    source: Path,
    path: Path,
    architecture: str,
    quantisation: str = "F32",
    *,
    tokenizer: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Write a Hugging Face directory as a GGUF file.

    Args:
        source: the directory.
        path: the file.
        architecture: a key of `KINDS`.
        quantisation: F32, F16, BF16, Q8_0, Q4_0, Q4_1, …; norms and biases stay F32.
        tokenizer: "gpt2" for a byte-level vocabulary, "llama" for a SentencePiece one, or None.
        metadata: further metadata, which replace what would be written.
        without: names of tensors in GGUF that are left out.
    """
    import gguf

    module = load_plain_module(source)
    config = module.config
    writer = gguf.GGUFWriter(path, architecture)
    facts = _describe(architecture, config) | {"general.file_type": _file_type(quantisation)}
    facts |= KINDS[architecture].metadata
    for key, value in (facts | dict(metadata or {})).items():
        _add_value(writer, key, value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    for name, weight in _tensors(architecture, module).items():
        if name not in without:
            _add_tensor(writer, name, np.ascontiguousarray(weight), quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _file_type(quantisation: str) -> int:
    import gguf

    return int(
        gguf.LlamaFileType.ALL_F32
        if quantisation == "F32"
        else gguf.LlamaFileType[f"MOSTLY_{quantisation}"]
    )


def _describe(architecture: str, config: Any) -> dict[str, Any]:
    """Return the metadata of a configuration, by the table with which transformers reads them."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    names = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
    table = GGUF_TO_TRANSFORMERS_MAPPING["config"][names.get(architecture, architecture)]
    facts = {}
    for key, name in table.items():
        if name == "rope_theta":
            parameters = config.rope_parameters
            value = parameters.get("full_attention", parameters)["rope_theta"]
        else:
            value = getattr(config, name, None) if name else None
        if value is not None:
            facts[f"{architecture}.{key}"] = value
    return facts


def _add_value(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tokenizer(writer: Any, kind: str) -> None:
    """Add a vocabulary of `GGUF_VOCAB` tokens that knows lower-case letters and a few words."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        merges = ["t h", "th e", "Ġ the", "c a", "ca t", "Ġ cat"]
        words = ["th", "the", "Ġthe", "ca", "cat", "Ġcat"]
        tokens = ["<s>", "</s>", "Ġ", *letters, *words]
        tokens += [chr(0x100 + number) for number in range(GGUF_VOCAB - len(tokens))]
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(merges)
    else:
        tokens = ["<unk>", "<s>", "</s>", "▁", *letters, "th", "the", "▁the", "ca", "cat", "▁cat"]
        tokens += [chr(0x3B1 + number) for number in range(GGUF_VOCAB - len(tokens))]
        writer.add_token_scores([-float(number) for number in range(GGUF_VOCAB)])
        writer.add_unk_token_id(0)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") else 1 for token in tokens])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))


def _tensors(architecture: str, module: Any) -> dict[str, np.ndarray]:
    """Return a module's weights under their GGUF names, as llama.cpp stores them."""
    import gguf

    [number] = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(number, module.config.num_hidden_layers)
    result: dict[str, np.ndarray] = {}
    for name, parameter in module.named_parameters():
        weight = parameter.detach().numpy()
        if name.endswith("mlp.experts.gate_up_proj"):
            layer = name.split(".")[2]
            (
                result[f"blk.{layer}.ffn_gate_exps.weight"],
                result[f"blk.{layer}.ffn_up_exps.weight"],
            ) = np.split(weight, 2, axis=1)
            continue
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:  # Bloom's and GPT-2's tables lack the prefix
            renamed = names.get_name(
                name.removeprefix("transformer."), try_suffixes=(".weight", ".bias")
            )
        if renamed is None:
            raise ValueError(f"The package gguf has no name for {name} of {architecture}.")
        if name.endswith("mlp.experts.down_proj"):
            renamed += ".weight"
        result[renamed] = _as_stored(architecture, module.config, renamed, weight)
    return result


def _as_stored(architecture: str, config: Any, name: str, weight: np.ndarray) -> np.ndarray:
    """Return a weight in the layout in which llama.cpp stores it."""
    if architecture == "llama" and ".attn_q." in name:
        return _permute(weight, config.num_attention_heads)
    if architecture == "llama" and ".attn_k." in name:
        return _permute(weight, config.num_key_value_heads)
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return weight + 1
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return weight[0]
    matrices = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    if architecture == "gpt2" and name.endswith(matrices):
        return weight.T
    if architecture == "bloom" and "attn_qkv" in name:
        heads = config.n_head
        parts = weight.reshape(heads, 3, -1, *weight.shape[1:]).swapaxes(0, 1)
        return parts.reshape(weight.shape)
    return weight


def _permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put the two halves of each head's rotary dimensions in turn."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _add_tensor(writer: Any, name: str, weight: np.ndarray, quantisation: str) -> None:
    import gguf

    if weight.ndim == 1 or quantisation == "F32":
        writer.add_tensor(name, weight.astype(np.float32))
    elif quantisation == "F16":
        writer.add_tensor(name, weight.astype(np.float16))
    else:
        kind = gguf.GGMLQuantizationType[quantisation]
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
