"""Node scores by `auto-circuit`, the published implementation of EAP, integrated edge gradients and ACDC, for `benchmarks.recovery`.

Its pins clash with ours, so it runs in an environment of its own, and this file imports nothing of the project:

    python -m benchmarks.recovery --export DIR [--models DIR]
    python3 -m venv other
    other/bin/pip install auto-circuit==1.0.1 "transformer-lens>=2.11,<3" "transformers<5" torch==2.13.0 "pyarrow<20"
    other/bin/python benchmarks/methods/auto_circuit_scores.py DIR > scores.json
    python -m benchmarks.recovery --published scores.json [--models DIR]

It scores edges. A node's score is the largest of the edges that leave it, since it is in a circuit as soon as one of them is; for the
gradient methods also their sum. Its batches hold prompts of one length: EAP's scores are summed over them; ACDC, which takes one batch, is
run on each (up to 64 pairs), and an edge's score is its threshold, summed over pairs. The library's measures (a difference of mean logits,
KL) are replaced by the task's metric, ACDC's thresholds are shares of its gap. Its integrated gradients go along all edges' masks at once,
not along the input embedding as in EAP-IG, so they have their own name; edges from the embedding are among its edges, and ablated too.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos import ACDC, mask_gradient
from auto_circuit.utils.graph_utils import patchable_model
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

STEPS = 50  # of integrated gradients, as in its own presets
THRESHOLD_BASES, THRESHOLD_EXPONENTS = (
    [1, 3],
    [-3, -2, -1],
)  # of ACDC's thresholds, shares of m(clean) − m(corrupted)
NEVER_PRUNED_SCORE = 1.0  # larger than any threshold: the edge stays at all of them
MAX_ACDC_PAIRS = 64  # of one length, for ACDC, which runs hundreds of passes over its batch
METRICS = ("logit_difference", "probability_difference")


def load_hooked_transformer(folder: Path) -> Any:
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


def make_loaders(pairs: list[dict[str, Any]], most: int | None = None) -> list[Any]:
    """One for each length of prompt."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for pair in pairs:
        groups[len(pair["clean"])].append(pair)
    made = []
    for group in groups.values():
        part = group[:most]
        columns = [
            [torch.tensor(pair[name]) for pair in part]
            for name in ("clean", "corrupted", "answer", "wrong")
        ]
        made.append(
            PromptDataLoader(
                PromptDataset(*columns),
                seq_len=None,
                diverge_idx=0,
                batch_size=len(part),
                shuffle=False,
            )
        )
    return made


def compute_metric(metric: str, logits: torch.Tensor, batch: Any) -> torch.Tensor:
    """The task's metric, mean over pairs, as `discovery.metrics` has it."""
    values = logits if metric == "logit_difference" else logits.log_softmax(-1)
    right, wrong = (
        values.gather(-1, tokens.reshape(len(values), -1)).logsumexp(-1)
        for tokens in (batch.answers, batch.wrong_answers)
    )
    return (right - wrong if metric == "logit_difference" else right.exp() - wrong.exp()).mean()


def node_name(name: str) -> str | None:
    """Our name of a source, where it is a node."""
    if name.startswith("MLP "):
        return f"m{name.removeprefix('MLP ')}"
    if name.startswith("A"):
        layer, head = name.removeprefix("A").split(".")
        return f"a{layer}.h{head}"
    return None


def scores_by_node(
    model: Any, scores: dict[str, torch.Tensor], combine: Callable[[list[float]], float]
) -> dict[str, float]:
    """The scores of the edges that leave each node, joined."""
    found: dict[str, list[float]] = defaultdict(list)
    for edge in model.edges:
        name = node_name(edge.src.name)
        if name is not None:
            found[name].append(abs(float(edge.prune_score(scores))))
    return {name: combine(values) for name, values in found.items()}


def load_patchable(folder: Path) -> Any:
    """The model as auto-circuit takes it."""
    return patchable_model(
        load_hooked_transformer(folder), factorized=True, slice_output="last_seq", separate_qkv=True
    )


def run_gradient_method(
    folder: Path, metric: str, pairs: list[dict[str, Any]], **how: Any
) -> tuple[Any, dict[str, torch.Tensor], float]:
    """EAP or integrated edge gradients: scores of edges, and forward-pass equivalents."""
    total: dict[str, torch.Tensor] = {}
    model = load_patchable(folder)
    mask_gradient.batch_avg_answer_diff = lambda logits, batch: compute_metric(
        metric, logits, batch
    )
    for loader in make_loaders(pairs):
        for parameter in model.parameters():
            parameter.grad = None
        found = mask_gradient.mask_gradient_prune_scores(
            model, loader, None, grad_function="logit", answer_function="avg_diff", **how
        )
        weight = loader.batch_size  # its scores are means
        total = {name: total.get(name, 0.0) + weight * values for name, values in found.items()}
    passes = 1 + 3 * (how["integrated_grad_samples"] + 1 if "integrated_grad_samples" in how else 1)
    return model, total, float(passes * len(pairs))


def run_acdc(
    folder: Path, metric: str, pairs: list[dict[str, Any]]
) -> tuple[Any, dict[str, torch.Tensor], float]:
    """ACDC: the largest threshold at which an edge stays, summed over the pairs."""
    model = load_patchable(folder)
    total: dict[str, torch.Tensor] = {}
    n_pairs = 0
    for loader in make_loaders(pairs, MAX_ACDC_PAIRS):
        n_pairs += loader.batch_size
        batch = next(iter(loader))
        with torch.inference_mode():
            clean, corrupted = (
                compute_metric(metric, model(tokens)[model.out_slice], batch)
                for tokens in (batch.clean, batch.corrupt)
            )
        gap = float(clean - corrupted)

        def lost(
            out: torch.Tensor, clean_out: torch.Tensor, batch: Any = batch, gap: float = gap
        ) -> torch.Tensor:
            return (
                compute_metric(metric, clean_out, batch) - compute_metric(metric, out, batch)
            ).abs() / abs(gap)

        ACDC.multibatch_kl_div = lost  # log-probabilities differ by what the logits differ by
        found = ACDC.acdc_prune_scores(
            model, loader, None, tao_bases=THRESHOLD_BASES, tao_exps=THRESHOLD_EXPONENTS
        )
        for name, values in found.items():
            kept = values.masked_fill(values == math.inf, NEVER_PRUNED_SCORE)
            total[name] = total.get(name, 0.0) + loader.batch_size * kept
    layers = model.cfg.n_layers
    starts = [
        int(edge.dest.module_name.split(".")[1]) for edge in model.edges
    ]  # it starts at the reader's layer
    passes = 2 + len(THRESHOLD_BASES) * len(THRESHOLD_EXPONENTS) * (
        4 + sum(layers - start for start in starts) / layers
    )
    return model, total, float(passes * n_pairs)


def score_folder(folder: Path) -> dict[str, Any]:
    """Every method's node scores and cost, with the stamp of what they are of.

    Raises:
        SystemExit: for a metric that is not known here.
    """
    task = json.loads((folder / "pairs.json").read_text())
    metric, pairs = task["metric"], task["pairs"]
    if metric not in METRICS:
        raise SystemExit(f"{folder.name} is measured by {metric}; known are {', '.join(METRICS)}")
    made = {
        "EAP": run_gradient_method(folder, metric, pairs, mask_val=0.0),
        "integrated edge gradients": run_gradient_method(
            folder, metric, pairs, integrated_grad_samples=STEPS
        ),
        "ACDC": run_acdc(folder, metric, pairs),
    }
    joins: list[tuple[str, str, Callable[[list[float]], float]]] = [
        ("EAP", "largest", max),
        ("EAP", "sum", sum),
        ("integrated edge gradients", "largest", max),
        ("integrated edge gradients", "sum", sum),
        ("ACDC", "largest", max),
    ]
    found = {}
    for name, word, join in joins:
        model, scores, cost = made[name]
        found[f"{name} (auto-circuit, {word})"] = {
            "scores": scores_by_node(model, scores, join),
            "forward_equivalents": cost,
        }
    return {"stamp": task["stamp"], "methods": found}


def main() -> None:
    """Print the scores of every model in a folder."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        made = {}
        for folder in sorted(Path(sys.argv[1]).iterdir()):
            made[folder.name] = score_folder(folder)
            print(folder.name, flush=True)
    json.dump(made, out)


if __name__ == "__main__":
    main()
