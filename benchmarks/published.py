"""Node scores by `auto-circuit`, the published implementation of EAP, EAP-IG and ACDC, for `benchmarks.recovery`.

Its pins clash with ours, so it runs in an environment of its own, and this file imports nothing of the project:

    python -m benchmarks.recovery --export DIR [--models DIR]
    python3 -m venv other
    other/bin/pip install auto-circuit==1.0.1 "transformer-lens>=2.11,<3" "transformers<5" torch==2.13.0 "pyarrow<20"
    other/bin/python benchmarks/published.py DIR > scores.json
    python -m benchmarks.recovery --published scores.json [--models DIR]

It scores edges; a node's score is the largest of the edges that leave it, since it is in a circuit as soon as one of them is. Its batches
hold prompts of one length: EAP's scores are summed over them, and ACDC, which takes one batch only, gets the largest.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.graph_utils import patchable_model
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

STEPS = 5  # of integrated gradients, as for the others
BASES, EXPONENTS = [1, 3], [-5, -4, -3, -2, -1]  # of ACDC's thresholds, in KL divergence
MOST_PAIRS = 32  # ACDC runs thousands of passes over its batch


def opened(folder: Path) -> Any:
    """The model in TransformerLens's older form, which auto-circuit takes."""
    native = folder / "tl_config.json"
    if native.exists():
        config = HookedTransformerConfig(**json.loads(native.read_text()), device="cpu")
        state = load_file(folder / "model.safetensors")
    else:
        from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
        from transformers import GPT2LMHeadModel

        gpt2 = GPT2LMHeadModel.from_pretrained(folder)
        shape = gpt2.config
        config = HookedTransformerConfig(
            n_layers=shape.n_layer,
            d_model=shape.n_embd,
            n_heads=shape.n_head,
            d_head=shape.n_embd // shape.n_head,
            n_ctx=shape.n_positions,
            d_vocab=shape.vocab_size,
            act_fn="gelu_new",
            normalization_type="LN",
            eps=shape.layer_norm_epsilon,
            device="cpu",
        )
        state = convert_gpt2_weights(gpt2, config)
    model = HookedTransformer(config)
    missing = model.load_state_dict(state, strict=False).missing_keys
    if left := [name for name in missing if not name.endswith(("mask", "IGNORE", "unembed.b_U"))]:
        raise SystemExit(f"{folder.name} lacks {left}")
    if "unembed.b_U" in missing:
        torch.nn.init.zeros_(model.unembed.b_U)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    if not config.attn_only:
        model.set_use_hook_mlp_in(True)
    return model.eval()


def loaders(pairs: list[dict[str, Any]], most: int | None = None) -> list[Any]:
    """One for each length of prompt, the largest first."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for pair in pairs:
        groups[len(pair["clean"])].append(pair)
    made = []
    for group in sorted(groups.values(), key=len, reverse=True):
        part = group[:most]
        columns = [[torch.tensor(pair[name]) for pair in part] for name in ("clean", "corrupted", "answer", "wrong")]
        made.append(PromptDataLoader(PromptDataset(*columns), seq_len=None, diverge_idx=0, batch_size=len(part), shuffle=False))
    return made


def node(name: str) -> str | None:
    """Our name of a source, where it is a node."""
    if name.startswith("MLP "):
        return f"m{name.removeprefix('MLP ')}"
    if name.startswith("A"):
        layer, head = name.removeprefix("A").split(".")
        return f"a{layer}.h{head}"
    return None


def by_node(model: Any, scores: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest score of the edges that leave each node."""
    found: dict[str, float] = defaultdict(float)
    for edge in model.edges:
        name = node(edge.src.name)
        if name is not None:
            found[name] = max(found[name], abs(float(edge.prune_score(scores))))
    return dict(found)


def attributed(folder: Path, pairs: list[dict[str, Any]], **how: Any) -> tuple[dict[str, float], float]:
    """EAP or EAP-IG: scores of nodes, and forward-pass equivalents."""
    total: dict[str, torch.Tensor] = {}
    model = patchable_model(opened(folder), factorized=True, slice_output="last_seq", separate_qkv=True)
    for loader in loaders(pairs):
        for parameter in model.parameters():
            parameter.grad = None
        found = mask_gradient_prune_scores(model, loader, None, grad_function="logit", answer_function="avg_diff", **how)
        weight = loader.batch_size  # its scores are means
        total = {name: total.get(name, 0.0) + weight * values for name, values in found.items()}
    passes = 1 + 3 * (how["integrated_grad_samples"] + 1 if "integrated_grad_samples" in how else 1)
    return by_node(model, total), float(passes * len(pairs))


def acdc(folder: Path, pairs: list[dict[str, Any]]) -> tuple[dict[str, float], float]:
    """ACDC: the largest threshold at which one of a node's edges stays."""
    model = patchable_model(opened(folder), factorized=True, slice_output="last_seq", separate_qkv=True)
    loader = loaders(pairs, MOST_PAIRS)[0]
    found = acdc_prune_scores(model, loader, None, tao_bases=BASES, tao_exps=EXPONENTS)
    never = 2 * max(BASES) * 10.0 ** max(EXPONENTS)
    capped = {name: values.masked_fill(values == math.inf, never) for name, values in found.items()}
    layers = model.cfg.n_layers
    starts = [int(edge.dest.module_name.split(".")[1]) for edge in model.edges]  # it starts at the reader's layer
    passes = len(BASES) * len(EXPONENTS) * (4 + sum(layers - start for start in starts) / layers)
    return by_node(model, capped), float(passes * loader.batch_size)


def main() -> None:
    """Print the scores of every model in a folder."""
    out, made = sys.stdout, {}
    with contextlib.redirect_stdout(sys.stderr):
        for folder in sorted(Path(sys.argv[1]).iterdir()):
            pairs = json.loads((folder / "pairs.json").read_text())
            answers = {
                "EAP (auto-circuit)": attributed(folder, pairs, mask_val=0.0),
                "EAP-IG (auto-circuit)": attributed(folder, pairs, integrated_grad_samples=STEPS),
                "ACDC (auto-circuit)": acdc(folder, pairs),
            }
            made[folder.name] = {name: {"scores": scores, "forward_equivalents": cost} for name, (scores, cost) in answers.items()}
            print(folder.name, flush=True)
    json.dump(made, out)


if __name__ == "__main__":
    main()
