"""Node scores by `auto-circuit`, a published implementation of EAP, integrated gradients and ACDC.

`benchmarks.circuits.recovery` compares them with our circuits. The library's version pins clash
with ours, so this file runs in an environment of its own and imports nothing of the project:

    python -m benchmarks.circuits.recovery --export DIR [--models DIR]
    python3 -m venv other
    other/bin/pip install auto-circuit==1.0.1 "transformer-lens>=2.11,<3" "transformers<5" \\
        torch==2.13.0 "pyarrow<20"
    other/bin/python benchmarks/methods/auto_circuit_scores.py DIR > scores.json
    python -m benchmarks.circuits.recovery --published scores.json [--models DIR]

The library scores edges. A node's score is the largest score of the edges that leave it, since the
node is in a circuit as soon as one of them is. For the gradient methods their sum is given too.

Its batches hold prompts of one length. EAP's scores are summed over them. ACDC takes one batch, so
it is run on each of them (up to 64 pairs), and an edge's score is its threshold, summed over pairs.
The task's metric replaces the library's measures (a difference of mean logits, and KL), and ACDC's
thresholds are shares of its gap.

Its integrated gradients go along the masks of all edges at once, not along the input embedding as
in EAP-IG, so they have a name of their own. Edges from the embedding are among its edges, and are
ablated too.
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
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

INTEGRATION_STEPS = 50  # as in the library's own presets
# ACDC's thresholds are base · 10^exponent, as shares of m(clean) − m(corrupted).
THRESHOLD_BASES = [1, 3]
THRESHOLD_EXPONENTS = [-3, -2, -1]
NEVER_PRUNED_SCORE = 1.0  # larger than any threshold, for an edge that stays at all of them
MAX_ACDC_PAIRS = 64  # of one length, since ACDC runs hundreds of passes over its batch
METRICS = ("logit_difference", "probability_difference")
EdgeScores = dict[str, Tensor]
Combine = Callable[[list[float]], float]


def load_hooked_transformer(folder: Path) -> Any:
    """Load the model in TransformerLens's older form, which auto-circuit takes."""
    native_config = folder / "tl_config.json"
    if native_config.exists():
        fields = json.loads(native_config.read_text())
        config = HookedTransformerConfig(**fields, device="cpu")
        state = load_file(folder / "model.safetensors")
    else:
        config, state = convert_gpt2(folder)
    model = HookedTransformer(config)
    missing = model.load_state_dict(state, strict=False).missing_keys
    optional = ("mask", "IGNORE", "unembed.b_U")
    if needed := [name for name in missing if not name.endswith(optional)]:
        raise SystemExit(f"The model in {folder.name} lacks the weights {needed}.")
    if "unembed.b_U" in missing:
        torch.nn.init.zeros_(model.unembed.b_U)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    if not config.attn_only:
        model.set_use_hook_mlp_in(True)
    return model.eval()


def convert_gpt2(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Convert a Hugging Face GPT-2 to TransformerLens's configuration and weights."""
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
    return config, convert_gpt2_weights(gpt2, config)


def make_loaders(pairs: list[dict[str, Any]], max_pairs: int | None = None) -> list[Any]:
    """Make one loader, with a single batch, for each length of prompt."""
    pairs_by_length: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for pair in pairs:
        pairs_by_length[len(pair["clean"])].append(pair)
    loaders = []
    for group in pairs_by_length.values():
        batch = group[:max_pairs]
        columns = [
            [torch.tensor(pair[name]) for pair in batch]
            for name in ("clean", "corrupted", "answer", "wrong")
        ]
        loaders.append(
            PromptDataLoader(
                PromptDataset(*columns),
                seq_len=None,
                diverge_idx=0,
                batch_size=len(batch),
                shuffle=False,
            )
        )
    return loaders


def compute_metric(metric: str, logits: Tensor, batch: Any) -> Tensor:
    """Compute the task's metric as `discovery.metrics` does, and average it over pairs."""
    values = logits if metric == "logit_difference" else logits.log_softmax(-1)
    right, wrong = (
        values.gather(-1, tokens.reshape(len(values), -1)).logsumexp(-1)
        for tokens in (batch.answers, batch.wrong_answers)
    )
    return (right - wrong if metric == "logit_difference" else right.exp() - wrong.exp()).mean()


def node_name(name: str) -> str | None:
    """Return our name of the source of an edge, or None if it is not a node."""
    if name.startswith("MLP "):
        return f"m{name.removeprefix('MLP ')}"
    if name.startswith("A"):
        layer, head = name.removeprefix("A").split(".")
        return f"a{layer}.h{head}"
    return None


def scores_by_node(model: Any, scores: EdgeScores, combine: Combine) -> dict[str, float]:
    """Combine the scores of the edges that leave each node."""
    edge_scores: dict[str, list[float]] = defaultdict(list)
    for edge in model.edges:
        name = node_name(edge.src.name)
        if name is not None:
            edge_scores[name].append(abs(float(edge.prune_score(scores))))
    return {name: combine(values) for name, values in edge_scores.items()}


def load_patchable(folder: Path) -> Any:
    """Load the model in the form that auto-circuit takes."""
    return patchable_model(
        load_hooked_transformer(folder), factorized=True, slice_output="last_seq", separate_qkv=True
    )


def run_gradient_method(
    folder: Path, metric: str, pairs: list[dict[str, Any]], **options: Any
) -> tuple[Any, EdgeScores, float]:
    """Run EAP or integrated edge gradients.

    Returns:
        the model, the scores of its edges, and the cost in forward-pass equivalents.
    """
    total: EdgeScores = {}
    model = load_patchable(folder)
    mask_gradient.batch_avg_answer_diff = lambda logits, batch: compute_metric(
        metric, logits, batch
    )
    for loader in make_loaders(pairs):
        for parameter in model.parameters():
            parameter.grad = None
        scores = mask_gradient.mask_gradient_prune_scores(
            model, loader, None, grad_function="logit", answer_function="avg_diff", **options
        )
        n_pairs = loader.batch_size  # the library's scores are means over pairs
        total = {name: total.get(name, 0.0) + n_pairs * values for name, values in scores.items()}
    n_gradients = 1
    if "integrated_grad_samples" in options:
        n_gradients = options["integrated_grad_samples"] + 1
    return model, total, float((1 + 3 * n_gradients) * len(pairs))


def run_acdc(
    folder: Path, metric: str, pairs: list[dict[str, Any]]
) -> tuple[Any, EdgeScores, float]:
    """Run ACDC. An edge's score is the largest threshold at which it stays, summed over pairs.

    Returns:
        the model, the scores of its edges, and the cost in forward-pass equivalents.
    """
    model = load_patchable(folder)
    total: EdgeScores = {}
    n_pairs = 0
    for loader in make_loaders(pairs, MAX_ACDC_PAIRS):
        n_pairs += loader.batch_size
        # Log-probabilities differ by what the logits differ by, so the metric can be computed.
        ACDC.multibatch_kl_div = make_loss(model, metric, next(iter(loader)))
        scores = ACDC.acdc_prune_scores(
            model, loader, None, tao_bases=THRESHOLD_BASES, tao_exps=THRESHOLD_EXPONENTS
        )
        for name, values in scores.items():
            finite = values.masked_fill(values == math.inf, NEVER_PRUNED_SCORE)
            total[name] = total.get(name, 0.0) + loader.batch_size * finite
    layers = model.cfg.n_layers
    # For each edge a pass starts at the layer of its reader.
    starts = [int(edge.dest.module_name.split(".")[1]) for edge in model.edges]
    n_thresholds = len(THRESHOLD_BASES) * len(THRESHOLD_EXPONENTS)
    passes = 2 + n_thresholds * (4 + sum(layers - start for start in starts) / layers)
    return model, total, float(passes * n_pairs)


def make_loss(model: Any, metric: str, batch: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Make ACDC's measure of change: how far the metric is off, as a share of its gap."""
    with torch.inference_mode():
        clean, corrupted = (
            compute_metric(metric, model(tokens)[model.out_slice], batch)
            for tokens in (batch.clean, batch.corrupt)
        )
    gap = abs(float(clean - corrupted))

    def loss(out: Tensor, clean_out: Tensor) -> Tensor:
        change = compute_metric(metric, clean_out, batch) - compute_metric(metric, out, batch)
        return change.abs() / gap

    return loss


def score_folder(folder: Path) -> dict[str, Any]:
    """Return every method's node scores and cost, with the stamp of the weights and pairs.

    Raises:
        SystemExit: if the task's metric is unknown here.
    """
    task = json.loads((folder / "pairs.json").read_text())
    metric = task["metric"]
    pairs = task["pairs"]
    if metric not in METRICS:
        raise SystemExit(
            f"The metric of {folder.name} is {metric}."
            f" Only {' and '.join(METRICS)} can be computed here."
        )
    eap = run_gradient_method(folder, metric, pairs, mask_val=0.0)
    integrated = run_gradient_method(
        folder, metric, pairs, integrated_grad_samples=INTEGRATION_STEPS
    )
    acdc = run_acdc(folder, metric, pairs)
    methods: dict[str, Any] = {}
    for name, combination, combine, result in (
        ("EAP", "largest", max, eap),
        ("EAP", "sum", sum, eap),
        ("integrated edge gradients", "largest", max, integrated),
        ("integrated edge gradients", "sum", sum, integrated),
        ("ACDC", "largest", max, acdc),
    ):
        model, scores, cost = result
        methods[f"{name} (auto-circuit, {combination})"] = {
            "scores": scores_by_node(model, scores, combine),
            "forward_equivalents": cost,
        }
    return {"stamp": task["stamp"], "methods": methods}


def main() -> None:
    """Print the scores of every model in a folder."""
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        scores = {}
        for folder in sorted(Path(sys.argv[1]).iterdir()):
            scores[folder.name] = score_folder(folder)
            print(folder.name, flush=True)
    json.dump(scores, stdout)


if __name__ == "__main__":
    main()
