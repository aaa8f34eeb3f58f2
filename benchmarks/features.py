"""The bundled sparse autoencoder: its site, its quality, and the features on which tasks depend.

    python -m benchmarks.features

Prints three Markdown tables. The first compares the sites in front of each layer by the circuit
that `discover` finds for ioi: the nodes that write before the site, the nodes that read behind it,
and the edges between them. The second shows how well the autoencoder reconstructs. The third ranks
the features of a task by exact ablation of every feature that fires on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.output import format_header, format_row, open_output
from discovery import discover, load_model, load_task, sae_top_features
from discovery.backends.base import Backend
from discovery.features import load_sae
from discovery.features.directory import read_info
from discovery.graph import CircuitGraph
from discovery.sites import Node
from discovery.tasks import BUNDLED_TASKS

CONTROL_DRAWS = 19  # of the shuffled-decoder control, so that p is at least 1 / 20
SITE_COLUMNS = (
    "place",
    "write before it",
    "read behind it",
    "edges between them",
    "sum of their effects",
    "the strongest",
)
QUALITY_COLUMNS = ("on", "positions", "variance explained", "L0", "survives splicing it in")
FEATURE_COLUMNS = (
    "feature",
    "exact ablation",
    "attribution",
    "control p",
    "fires: clean / corrupted / unrelated",
    "fires on",
    "promotes",
)


def sites_table(circuit: CircuitGraph) -> str:
    """Return what of the circuit lies on either side of the site in front of each layer."""
    table = format_header(*SITE_COLUMNS)
    layers = {node.id: node.layer for node in circuit.nodes if node.layer is not None}
    for cut in range(1, max(layers.values()) + 1):
        writers = [Node.parse(node).label for node, layer in layers.items() if layer < cut]
        readers = [Node.parse(node).label for node, layer in layers.items() if layer >= cut]
        crossing = [
            edge
            for edge in circuit.edges
            if layers.get(edge.source, cut) < cut <= layers.get(edge.target, -1)
        ]
        sizes = [abs(edge.effect.mean or 0.0) if edge.effect else 0.0 for edge in crossing]
        size, edge = max(zip(sizes, crossing, strict=True), key=lambda pair: pair[0])
        labels = f"{Node.parse(edge.source).label} → {Node.parse(edge.target).label}"
        table += format_row(
            f"resid_pre.{cut}",
            ", ".join(writers),
            ", ".join(readers),
            len(crossing),
            f"{sum(sizes):.2f}",
            f"{labels} {size:.2f}",
        )
    return table


def quality_table(model: Backend, source: str | Path) -> str:
    """Return how well the autoencoder reconstructs its own text and each task."""
    info = read_info(source)
    scores: Any = info.scores
    table = format_header(*QUALITY_COLUMNS)
    table += format_row(
        "held-out sentences",
        f"{scores['tokens']:,}",
        f"{scores['variance_explained']:.3f}",
        f"{scores['l0']:.1f}",
        f"loss recovered {scores['loss_recovered']:.4f} of zero,"
        f" {scores['loss_recovered_mean']:.4f} of mean ablation"
        f" (nats: clean {scores['loss_clean']:.3f}, spliced {scores['loss_spliced']:.3f},"
        f" zero {scores['loss_zero']:.2f}, mean {scores['loss_mean']:.2f})",
    )
    for name in BUNDLED_TASKS:
        task = load_task(name, model)
        result = sae_top_features(model, source, task=task, k=1, controls=0).reconstruction
        share = "–"
        if result.share:
            interval = f"[{result.share.low:.3f}, {result.share.high:.3f}]"
            share = f"{result.share.mean:.3f} {interval} of the metric"
        table += format_row(
            f"{name}, every position",
            f"{result.n_positions:,}",
            f"{result.variance_explained:.3f}",
            f"{result.l0:.1f}",
            share,
        )
    return f"{table}\nDead: {scores['dead']:.1%} of {info.features:,} features.\n"


def features_table(model: Backend, source: str | Path, task_name: str, top: int, pairs: int) -> str:
    """Return the features of a task with the largest effect by exact ablation."""
    sae = load_sae(source, model)
    task = load_task(task_name, model, pairs=pairs)
    result = sae_top_features(model, sae, task=task, k=sae.d_sae, controls=CONTROL_DRAWS)
    by_effect = sorted(result.features, key=lambda feature: -abs(feature.ablation.mean))
    table = format_header(*FEATURE_COLUMNS) + "".join(map(format_feature, by_effect[:top]))
    n_firing = len(result.features)
    metric = f"metric {result.metric_clean:.2f} on clean prompts"
    return f"{table}\n{n_firing} features fire; {metric}.\n"


def format_feature(feature: Any) -> str:
    """Return one feature's row."""
    ablation = feature.ablation
    consistency = feature.consistency
    shares = (consistency.clean, consistency.corrupted, consistency.unrelated)
    return format_row(
        feature.index,
        f"{ablation.mean:+.2f} [{ablation.low:.2f}, {ablation.high:.2f}]",
        f"{feature.attribution.mean:+.2f}" if feature.attribution else "–",
        f"{feature.control.p:.2f}" if feature.control else "–",
        " / ".join(f"{share.share:.0%}" if share else "–" for share in shares),
        ", ".join(f"{token.text} ({token.fired})" for token in feature.tokens[:3]),
        ", ".join(str(token.text) for token in feature.direct.promoted[:4]),
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sae", default="bundled")
    parser.add_argument("--task", default="ioi", help="the task of the third table")
    parser.add_argument("--top", type=int, default=10, help="how many features to show")
    parser.add_argument("--pairs", type=int, default=64)
    arguments = parser.parse_args()
    sae = arguments.sae
    with open_output() as output:
        model = load_model("bundled")
        circuit = discover(model, load_task("ioi", model), runs_dir=output.folder).circuit
        output.write(sites_table(circuit) + "\n")
        output.write(quality_table(model, sae) + "\n")
        output.write(features_table(model, sae, arguments.task, arguments.top, arguments.pairs))


if __name__ == "__main__":
    main()
