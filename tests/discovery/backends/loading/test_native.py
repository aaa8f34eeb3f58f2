"""Native directories give the numbers of an independent forward pass, and of HookedTransformer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.known_circuits.forward import run_forward
from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.random_models.tiny_models import VOCAB, random_pairs, save_native
from discovery.backends.base import Batch
from discovery.backends.loading.load import load_model
from discovery.interventions import replace_with
from discovery.sites import Site
from discovery.tasks import load_task
from tests.oracles.models import native_forward

PROMPT = [
    int(token) for token in torch.randint(VOCAB, (8,), generator=torch.Generator().manual_seed(0))
]
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def every_position(folder: Path, dtype: str = "float64") -> Tensor:
    """Logits [pos d_vocab] of the prompt."""
    model = load_model(folder, device="cpu", dtype=dtype)
    rows = torch.tensor([PROMPT] * len(PROMPT))
    logits = model.run(Batch(rows, torch.arange(len(PROMPT)))).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("norm", ["LN", "LNPre", "RMS", "RMSPre", None])
@pytest.mark.parametrize("attn_only", [False, True])
def test_norms_with_and_without_mlps(folder, norm, attn_only):
    checkpoint = save_native(
        folder,
        normalization_type=norm,
        attn_only=attn_only,
        act_fn=None if attn_only else "gelu_new",
    )
    expected = run_forward(checkpoint.config, checkpoint.state, torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(every_position(folder), expected, **CLOSE)
    torch.testing.assert_close(
        native_forward.native_logits(checkpoint.config, checkpoint.state, PROMPT), expected, **CLOSE
    )  # both references agree
    torch.testing.assert_close(
        every_position(folder, "float32").double(),
        expected,
        atol=1e-5 * float(expected.abs().max()),
        rtol=0,
    )


@pytest.mark.parametrize("act_fn", ["relu", "gelu", "gelu_new", "silu"])
def test_activations(folder, act_fn):
    checkpoint = save_native(folder, act_fn=act_fn)
    torch.testing.assert_close(
        every_position(folder),
        run_forward(checkpoint.config, checkpoint.state, torch.tensor([PROMPT])).logits[0],
        **CLOSE,
    )


@pytest.mark.parametrize("d_head", [4, 6, 2])
def test_heads_wider_and_narrower_than_the_stream(folder, d_head):
    checkpoint = save_native(folder, d_head=d_head)
    torch.testing.assert_close(
        every_position(folder),
        run_forward(checkpoint.config, checkpoint.state, torch.tensor([PROMPT])).logits[0],
        **CLOSE,
    )


@pytest.mark.parametrize(
    "without",
    [
        ("b_Q", "b_K", "b_V"),
        ("b_O",),
        ("b_in",),
        ("b_out",),
        ("b_U",),
        (".b", "b_Q", "b_O", "b_in", "b_out", "b_U"),
    ],
)
def test_absent_biases_are_zero(folder, without):
    checkpoint = save_native(folder, without=without)
    zeros = {
        name: torch.zeros_like(value)
        for name, value in save_native(folder.with_name("whole")).state.items()
        if name not in checkpoint.state
    }
    assert zeros
    torch.testing.assert_close(
        every_position(folder),
        native_forward.native_logits(checkpoint.config, checkpoint.state | zeros, PROMPT),
        **CLOSE,
    )


VARIETIES: dict[str, dict[str, Any]] = {
    "a scale of its own": {"attn_scale": 5.0},
    "no scale": {"use_attn_scale": False},
    "a scale that is not used": {"use_attn_scale": False, "attn_scale": 5.0},
    "the default scale written out": {"attn_scale": -1.0, "use_attn_scale": True},
    "a scale by layer": {"scale_attn_by_inverse_layer_idx": True},
    "rotary": {"positional_embedding_type": "rotary"},
    "rotary, half of the head": {"positional_embedding_type": "rotary", "rotary_dim": 4},
    "rotary, adjacent": {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": True},
    "rotary, adjacent, part": {
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": True,
        "rotary_dim": 2,
    },
    "rotary, its own base and scale": {
        "positional_embedding_type": "rotary",
        "rotary_base": 50,
        "attn_scale": 2.0,
    },
    "shared keys": {"n_heads": 4, "n_key_value_heads": 2},
    "one key for all, rotary, RMS": {
        "n_heads": 4,
        "n_key_value_heads": 1,
        "positional_embedding_type": "rotary",
        "normalization_type": "RMS",
    },
    "gated": {"gated_mlp": True, "act_fn": "silu"},
    "gated, attention's bias alone": {"gated_mlp": True, "act_fn": "gelu"},
    "another epsilon": {"eps": 0.1},
}


@pytest.mark.parametrize("changes", VARIETIES.values(), ids=VARIETIES.keys())
def test_varieties_by_hand(folder, changes):
    checkpoint = save_native(folder, **changes)
    torch.testing.assert_close(
        every_position(folder),
        native_forward.native_logits(checkpoint.config, checkpoint.state, PROMPT),
        **CLOSE,
    )


def test_every_variety_is_another_model(folder):
    """The same weights give other numbers, so no variety passes because it is ignored."""
    checkpoint = save_native(folder)
    for changes in (
        {"attn_scale": 5.0},
        {"use_attn_scale": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"eps": 0.1},
    ):
        plain, other = (
            native_forward.native_logits(config, checkpoint.state, PROMPT)
            for config in (checkpoint.config, checkpoint.config | changes)
        )
        assert (plain - other).abs().max() > 1e-2


def test_buffers_of_a_hooked_transformer_are_ignored(folder):
    checkpoint = save_native(folder, positional_embedding_type="rotary")
    expected = every_position(folder)
    for layer in range(2):
        at = f"blocks.{layer}.attn."
        checkpoint.state.update(
            {f"{at}mask": torch.ones(12, 12).tril().bool(), f"{at}IGNORE": torch.tensor(-1e5)}
        )
        checkpoint.state.update(
            {f"{at}rotary_sin": torch.zeros(12, 6), f"{at}rotary_cos": torch.zeros(12, 6)}
        )
    checkpoint.save()
    torch.testing.assert_close(every_position(folder), expected, atol=0, rtol=0)


@pytest.mark.parametrize("width", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_saved_in_another_width(folder, width):
    checkpoint = save_native(folder)
    checkpoint.state.update({name: value.to(width) for name, value in checkpoint.state.items()})
    checkpoint.save()
    torch.testing.assert_close(
        every_position(folder),
        native_forward.native_logits(checkpoint.config, checkpoint.state, PROMPT),
        **CLOSE,
    )


HOOKED: tuple[dict[str, Any], ...] = (
    {},
    {"attn_only": True, "normalization_type": "LNPre"},
    {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "n_key_value_heads": 1,
    },
    {"positional_embedding_type": "rotary", "rotary_dim": 6, "rotary_adjacent_pairs": True},
    {"gated_mlp": True, "act_fn": "silu", "final_rms": True},
    {"use_attn_scale": False, "d_vocab_out": 7},
    {
        "attn_scale": 3.0,
        "scale_attn_by_inverse_layer_idx": True,
        "normalization_type": None,
        "final_rms": True,
    },
    {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0},
)


@pytest.mark.parametrize("changes", HOOKED, ids=lambda changes: ", ".join(changes) or "plain")
def test_a_hooked_transformer_saved_as_it_is(folder, changes):
    """Its whole configuration and state dict are saved, buffers included."""
    sizes = {
        "n_layers": 2,
        "d_model": 12,
        "n_heads": 3,
        "d_head": 6,
        "d_mlp": 20,
        "n_ctx": 12,
        "d_vocab": VOCAB,
        "act_fn": "gelu_new",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that the class is deprecated
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        hooked = HookedTransformer(HookedTransformerConfig(**sizes | changes, device="cpu", seed=0))
        rng = torch.Generator().manual_seed(0)
        for _, parameter in sorted(hooked.named_parameters()):
            parameter.data.copy_(0.4 * torch.randn(parameter.shape, generator=rng))
        expected = hooked(torch.tensor([PROMPT]))[0].detach()
    folder.mkdir()
    (folder / "tl_config.json").write_text(json.dumps(hooked.cfg.to_dict(), default=str))
    save_file(
        {name: value.detach().clone().contiguous() for name, value in hooked.state_dict().items()},
        folder / "model.safetensors",
    )
    torch.testing.assert_close(
        every_position(folder, "float32"), expected, atol=1e-5 * float(expected.abs().max()), rtol=0
    )


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_hand_built_models(folder, name):
    case = build_known_circuit(name)
    model = load_model(case.save(folder), device="cpu")
    pair = case.pairs[0]
    expected = run_forward(case.config, case.state, torch.tensor([pair.clean])).logits[0]
    rows = torch.tensor([pair.clean] * len(pair.clean))
    got = model.run(Batch(rows, torch.arange(len(pair.clean)))).logits
    assert got is not None
    torch.testing.assert_close(
        got.double(), expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0
    )
    task = load_task(folder / "task.jsonl", model)
    assert [given.clean for given in task.pairs] == [written.clean for written in case.pairs]
    assert tuple(map(str, model.info.nodes())) == case.universe


@pytest.mark.parametrize("name", ["native", "attn_only"])
def test_a_nodes_value_is_z_through_its_output_matrix_or_what_the_mlp_writes(
    tiny_models, backend, name
):
    """Replacing z or mlp_out replaces the node of the independent pass: with b_V, without b_O."""
    model = tiny_models.load(name, backend, "float64")
    checkpoint = tiny_models.native(name)
    tokens, other = (
        torch.tensor([pair.clean for pair in random_pairs([7, 7], seed)]) for seed in (0, 1)
    )
    last = torch.tensor([6, 4])
    seen = run_forward(checkpoint.config, checkpoint.state, other)
    rng = torch.Generator().manual_seed(2)
    for node in model.info.nodes():
        layer = node.layer or 0
        if node.kind == "mlp":
            value = torch.randn(2, 7, 12, generator=rng, dtype=torch.float64)
            edit = replace_with(Site("mlp_out", layer), value)
        else:
            z = torch.randn(2, 7, 6, generator=rng, dtype=torch.float64)
            value = z @ model.head_weights(layer)[node.head]
            torch.testing.assert_close(
                model.head_weights(layer)[node.head],
                checkpoint.state[f"blocks.{layer}.attn.W_O"][node.head].double(),
            )
            edit = replace_with(
                Site("z", layer),
                z.unsqueeze(2).expand(2, 7, 3, 6),
                torch.arange(3).reshape(1, 1, 3) == node.head,
            )
        expected = run_forward(
            checkpoint.config, checkpoint.state, tokens, {str(node): value}
        ).logits[torch.arange(2), last]
        torch.testing.assert_close(
            model.run(Batch(tokens, last), edits=[edit]).logits, expected, **CLOSE
        )
        site = Site("mlp_out" if node.kind == "mlp" else "z", layer)
        read = model.run(Batch(other, last), [site]).activations[site]
        written = (
            read
            if node.kind == "mlp"
            else read[:, :, node.head] @ model.head_weights(layer)[node.head]
        )
        torch.testing.assert_close(written, seen.nodes[str(node)], **CLOSE)


def test_what_is_known_of_a_native_model(tiny_models, backend):
    info = tiny_models.load("native", backend).info
    assert (
        info.architecture,
        info.n_layers,
        info.n_heads,
        info.n_kv_heads,
        info.d_model,
        info.d_head,
    ) == ("NativeModel", 2, 3, 3, 12, 6)
    assert (
        info.d_vocab,
        info.n_logits,
        info.n_ctx,
        info.positional_embedding,
        info.normalization,
    ) == (
        VOCAB,
        VOCAB,
        12,
        "standard",
        "LN",
    )
    assert (info.attn_only, info.parallel, info.macs_attention, info.macs_mlp) == (
        False,
        False,
        4 * 12 * 18,
        2 * 12 * 20,
    )
    assert tiny_models.load("attn_only", backend).info.attn_only
    assert tiny_models.load("attn_only", backend).info.macs_mlp == 0
    assert tiny_models.load("rotary", backend).info.n_kv_heads == 2
    assert tiny_models.load("native", backend).tokenizer is None


def test_fewer_answers_than_tokens(folder):
    checkpoint = save_native(folder)
    checkpoint.config["d_vocab_out"] = 7
    checkpoint.state.update(
        {
            "unembed.W_U": checkpoint.state["unembed.W_U"][:, :7],
            "unembed.b_U": checkpoint.state["unembed.b_U"][:7],
        }
    )
    checkpoint.save()
    model = load_model(folder, device="cpu")
    assert (model.info.d_vocab, model.info.n_logits, model.n_logits) == (VOCAB, 7, 7)
    (pair,) = load_task(
        [{"clean": [1, 30], "corrupted": [2, 30], "answer": 3, "wrong": 4}], model
    ).pairs
    logits = model.run(Batch(torch.tensor([pair.clean]), torch.tensor([1]))).logits
    assert logits is not None
    assert logits.shape == (1, 7)


def test_d_head_and_d_mlp_have_their_usual_sizes_if_they_are_not_given(folder):
    checkpoint = save_native(folder, d_head=4, d_mlp=48)
    for name in ("d_head", "d_mlp"):
        del checkpoint.config[name]
    checkpoint.save()
    info = load_model(folder, device="cpu").info
    assert (info.d_head, info.macs_mlp) == (4, 2 * 12 * 48)
