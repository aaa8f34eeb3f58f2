"""Tiny random models, saved as users save theirs, and random prompt pairs. Everything is seeded.

The weights, biases and norm gains are drawn large enough (scaled by the fan-in) that every part of
a model moves its logits. `TinyModels` keeps the models that a session has built and loaded. A
loaded backend carries no state from one run to the next.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from discovery.sites import BackendName, MetricName
from discovery.tasks.task import EncodedPair, SplitName, Task

VOCAB = 31
CONTEXT = 12
NATIVE_FIELDS: Mapping[str, Any] = {
    "n_layers": 2,
    "d_model": 12,
    "n_heads": 3,
    "d_head": 6,
    "d_mlp": 20,
    "n_ctx": CONTEXT,
    "d_vocab": VOCAB,
    "act_fn": "gelu_new",
    "attn_only": False,
    "normalization_type": "LN",
    "eps": 1e-5,
    "positional_embedding_type": "standard",
}


def _gpt2(c: Any, **changes: Any) -> Any:
    return c.GPT2Config(
        **{"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 3, "n_head": 2}
        | changes
    )


def _llama_like(kind: str) -> Callable[..., Any]:
    def config(c: Any, **changes: Any) -> Any:
        sizes = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        return getattr(c, kind)(
            **{"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, **sizes} | changes
        )

    return config


def _neox(c: Any, **changes: Any) -> Any:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return c.GPTNeoXConfig(
        **{"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, **sizes} | changes
    )


def _opt(c: Any, **changes: Any) -> Any:
    sizes = {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return c.OPTConfig(
        **{"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, **sizes} | changes
    )


ARCHITECTURES: Mapping[str, Callable[..., Any]] = {
    "gpt2": _gpt2,
    "llama": _llama_like("LlamaConfig"),
    "neox": _neox,
    "opt": _opt,
    "mistral": _llama_like("MistralConfig"),
    "qwen2": _llama_like("Qwen2Config"),
    "gemma": lambda c, **changes: _llama_like("GemmaConfig")(c, **{"head_dim": 6} | changes),
}
_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_CLASSIC = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}


def _config_factory(kind: str, sizes: Mapping[str, Any], **more: Any) -> Callable[..., Any]:
    return lambda c, **changes: getattr(c, kind)(**{"vocab_size": VOCAB, **sizes, **more} | changes)


# Not every test runs on these. They have, for example, norms behind the attention, scaled residual
# streams, biases by distance, or experts.
OTHER_ARCHITECTURES: Mapping[str, Callable[..., Any]] = {
    "bloom": _config_factory("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "codegen": _config_factory("CodeGenConfig", _CLASSIC, n_head=4, rotary_dim=4),
    "falcon": _config_factory(
        "FalconConfig", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ),
    "falcon_sequential": _config_factory(
        "FalconConfig",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        parallel_attn=False,
    ),
    "gemma2": _config_factory(
        "Gemma2Config", _SMALL, num_key_value_heads=1, head_dim=6, sliding_window=3
    ),
    "gemma3": _config_factory(
        "Gemma3TextConfig", _SMALL, num_key_value_heads=1, head_dim=6, sliding_window=3
    ),
    "gpt_bigcode": _config_factory("GPTBigCodeConfig", _CLASSIC),
    "gpt_neo": _config_factory(
        "GPTNeoConfig",
        {"hidden_size": 16, "num_layers": 2, "num_heads": 2},
        attention_types=[[["global", "local"], 1]],
        window_size=3,
        max_position_embeddings=CONTEXT,
    ),
    "gptj": _config_factory("GPTJConfig", _CLASSIC, rotary_dim=4),
    "granite": _config_factory(
        "GraniteConfig",
        _SMALL,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
        embedding_multiplier=2.0,
        logits_scaling=3.0,
    ),
    "mixtral": _config_factory(
        "MixtralConfig", _SMALL, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1
    ),
    "mpt": _config_factory(
        "MptConfig", {"d_model": 16, "n_heads": 2, "n_layers": 2}, max_seq_len=CONTEXT
    ),
    "neox_sequential": _config_factory("GPTNeoXConfig", _SMALL, use_parallel_residual=False),
    "olmo2": _config_factory("Olmo2Config", _SMALL),
    "phi": _config_factory("PhiConfig", _SMALL),
    "phi3": _config_factory("Phi3Config", _SMALL),
    "qwen2_moe": _config_factory(
        "Qwen2MoeConfig",
        _SMALL,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=12,
    ),
    "qwen3": _config_factory("Qwen3Config", _SMALL, num_key_value_heads=1, head_dim=6),
    "starcoder2": _config_factory("Starcoder2Config", _SMALL, num_key_value_heads=1),
    "xglm": _config_factory(
        "XGLMConfig",
        {"d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 2},
        max_position_embeddings=CONTEXT,
    ),
}
# The numbers of query heads and of key-value heads of Llamas, by name.
GROUPED_LLAMAS: Mapping[str, tuple[int, int]] = {
    "llama_9_3": (9, 3),
    "llama_8_4": (8, 4),
    "llama_8_1": (8, 1),
    "llama_4_4": (4, 4),
}
SPECIAL_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


def save_hugging_face(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """Save a random Hugging Face model of an architecture, without a tokenizer."""
    import transformers

    config = {**ARCHITECTURES, **OTHER_ARCHITECTURES}[kind](
        transformers, **SPECIAL_TOKEN_IDS | changes
    )
    module = transformers.AutoModelForCausalLM.from_config(config)
    randomise(module, seed)
    module.save_pretrained(folder)
    return folder


def save_grouped_llama(folder: Path, name: str) -> Path:
    """Save a random Llama of `GROUPED_LLAMAS` with two layers, without a tokenizer."""
    heads, kv_heads = GROUPED_LLAMAS[name]
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    sizes |= {"num_hidden_layers": 2, "hidden_size": 4 * heads, "head_dim": 4}
    return save_hugging_face(folder, "llama", **sizes)


def save_tokenizer(
    folder: Path,
    words: Sequence[str] = ("the", "cat", "dog", "sees", "fish", "bones"),
    *,
    bos: bool = False,
) -> Path:
    """Save a word tokenizer beside a model. Ids 0 and 1 are <s> and <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<s>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def load_plain_module(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a Hugging Face directory's module as transformers does, unwrapped, as a reference."""
    import transformers

    module = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", local_files_only=True
    )
    return module.eval().requires_grad_(False)


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> None:
    """Draw every parameter.

    Matrices are scaled by their fan-in. Embeddings and norm gains are about 1, biases about 0.1.
    """
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=rng)
        if parameter.ndim == 1:
            drawn = 1 + 0.2 * drawn if name.endswith("weight") else 0.1 * drawn
        elif not any(word in name for word in ("embed", "wte", "wpe")):
            drawn = 1.5 * drawn / parameter.shape[-1 if "c_" not in name else 0] ** 0.5
        parameter.copy_(drawn)


@dataclass(frozen=True)
class NativeCheckpoint:
    """A random model in TransformerLens's format, and the directory in which it is saved."""

    path: Path
    config: dict[str, Any]
    state: dict[str, Tensor]

    def save(self) -> Path:
        """Write the model, which may have been changed, and return its directory."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "tl_config.json").write_text(json.dumps(self.config))
        save_file(
            {name: value.contiguous() for name, value in self.state.items()},
            self.path / "model.safetensors",
        )
        return self.path


def save_native(
    folder: Path, seed: int = 0, *, without: Sequence[str] = (), **changes: Any
) -> NativeCheckpoint:
    """Save a random native model.

    Args:
        folder: the model's directory.
        seed: draws the weights.
        without: endings of the names of weights to leave out, for example "b_O".
        changes: fields of tl_config.json that differ from `NATIVE_FIELDS`.
    """
    config = {**NATIVE_FIELDS, **changes}
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in native_shapes(config).items():
        drawn = torch.randn(shape, generator=rng)
        letter = name.rpartition(".")[2]
        if letter == "w":
            drawn = 1 + 0.2 * drawn
        elif letter.lstrip("_").startswith("b"):
            drawn = 0.1 * drawn
        elif letter not in ("W_E", "W_pos"):
            drawn = 1.5 * drawn / shape[-2] ** 0.5
        if not name.endswith(tuple(without)):
            state[name] = drawn
    checkpoint = NativeCheckpoint(folder, config, state)
    checkpoint.save()
    return checkpoint


def native_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight that a native model of this configuration may have."""
    d_model, d_head, heads, d_mlp, vocab = (
        config[name] for name in ("d_model", "d_head", "n_heads", "d_mlp", "d_vocab")
    )
    kv_heads = config.get("n_key_value_heads") or heads
    kind = config["normalization_type"]
    shared = "_" if kv_heads != heads else ""
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (vocab, d_model),
        "unembed.W_U": (d_model, vocab),
        "unembed.b_U": (vocab,),
    }
    if config["positional_embedding_type"] == "standard":
        shapes["pos_embed.W_pos"] = (config["n_ctx"], d_model)
    norms = ["ln_final"]
    for layer in range(config["n_layers"]):
        at = f"blocks.{layer}"
        norms += [f"{at}.ln1"] + ([] if config["attn_only"] else [f"{at}.ln2"])
        for letter, count, hidden in (
            ("Q", heads, ""),
            ("K", kv_heads, shared),
            ("V", kv_heads, shared),
        ):
            shapes[f"{at}.attn.{hidden}W_{letter}"] = (count, d_model, d_head)
            shapes[f"{at}.attn.{hidden}b_{letter}"] = (count, d_head)
        shapes |= {f"{at}.attn.W_O": (heads, d_head, d_model), f"{at}.attn.b_O": (d_model,)}
        if not config["attn_only"]:
            shapes |= {f"{at}.mlp.W_in": (d_model, d_mlp), f"{at}.mlp.b_in": (d_mlp,)}
            shapes |= {f"{at}.mlp.W_out": (d_mlp, d_model), f"{at}.mlp.b_out": (d_model,)}
            if config.get("gated_mlp"):
                shapes[f"{at}.mlp.W_gate"] = (d_model, d_mlp)
    if kind in ("LN", "RMS"):
        shapes |= {f"{norm}.w": (d_model,) for norm in norms}
    if kind == "LN":
        shapes |= {f"{norm}.b": (d_model,) for norm in norms}
    return shapes


class TinyModels:
    """Models that are built once in a folder and loaded once, by name.

    A name is an architecture of `ARCHITECTURES` or `OTHER_ARCHITECTURES`, a Llama of
    `GROUPED_LLAMAS`, or one of three native models: "native" (sequential, LayerNorm, learned
    positions), "attn_only" (no MLP, no norm) and "rotary" (RMS norm, grouped keys).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[tuple[str, BackendName, str], Any] = {}
        self._natives: dict[str, NativeCheckpoint] = {}

    def path(self, name: str) -> Path:
        """Return the model's directory, and save the model if it is not there yet."""
        if name in ("native", "attn_only", "rotary"):
            return self.native(name).path
        folder = self.folder / name
        if folder.is_dir():
            return folder
        if name in GROUPED_LLAMAS:
            return save_grouped_llama(folder, name)
        return save_hugging_face(folder, name)

    def native(self, name: str) -> NativeCheckpoint:
        """Return the weights of a native model."""
        changes: dict[str, dict[str, Any]] = {
            "native": {},
            "attn_only": {"attn_only": True, "normalization_type": None, "act_fn": None},
            "rotary": {
                "normalization_type": "RMS",
                "positional_embedding_type": "rotary",
                "n_heads": 4,
                "n_key_value_heads": 2,
            },
        }
        if name not in self._natives:
            self._natives[name] = save_native(self.folder / name, **changes[name])
        return self._natives[name]

    def load(
        self, name: str, backend: BackendName = "transformerlens", dtype: str = "float32"
    ) -> Any:
        """Return the loaded backend."""
        from discovery.backends.loading.load import load_model

        if (name, backend, dtype) not in self._loaded:
            self._loaded[name, backend, dtype] = load_model(
                self.path(name), backend=backend, device="cpu", dtype=dtype
            )
        return self._loaded[name, backend, dtype]


def random_pairs(
    lengths: Sequence[int] = (6, 6, 6),
    seed: int = 0,
    *,
    changed: int = 2,
    same_end: bool = True,
    sets: int = 1,
    templates: int = 1,
    labelled: bool = False,
    d_vocab: int = VOCAB,
) -> tuple[EncodedPair, ...]:
    """Draw pairs of random tokens, one for each length.

    Args:
        lengths: the number of tokens of each pair.
        seed: draws the tokens.
        changed: how many positions of the corrupted side differ, or fewer if the prompt is short.
        same_end: whether the last tokens agree.
        sets: the largest number of answers and of wrong answers of a pair. The smallest is 1.
        templates: the number of templates.
        labelled: whether positions have labels: "first" is the first changed position, "end" the
            last position, and every second pair has "middle".
        d_vocab: the size of the vocabulary.
    """
    rng = random.Random(seed)
    pairs = []
    for number, length in enumerate(lengths):
        clean = [rng.randrange(d_vocab) for _ in range(length)]
        changeable = list(range(length - 1 if same_end and length > 1 else length))
        positions = sorted(rng.sample(changeable, min(changed, len(changeable))))
        corrupted = list(clean)
        for position in positions:
            corrupted[position] = (clean[position] + rng.randrange(1, d_vocab)) % d_vocab
        tokens = rng.sample(range(d_vocab), 2 * sets)
        answer = tokens[: rng.randint(1, sets)]
        wrong = tokens[sets : sets + rng.randint(1, sets)]
        labels = {"first": positions[0], "end": length - 1} if labelled else {}
        if labelled and number % 2 == 0:
            labels["middle"] = length // 2
        pair = EncodedPair(
            clean=tuple(clean),
            corrupted=tuple(corrupted),
            answer=tuple(answer),
            wrong=tuple(wrong),
            template=f"t{number % templates}",
            labels=labels,
        )
        pairs.append(pair)
    return tuple(pairs)


def as_task(
    pairs: Sequence[EncodedPair], metric: MetricName = "logit_difference", name: str = "tiny"
) -> Task:
    """Return the pairs as a task that has all of them in the discovery split."""
    split: SplitName = "discovery"
    return Task(
        name=name,
        pairs=tuple(pairs),
        splits=tuple(split for _ in pairs),
        split_method="none",
        metric=metric,
    )
