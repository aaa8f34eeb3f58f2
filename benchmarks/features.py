"""The bundled dictionary: where it stands, how good it is, and which of its features the tasks rest on: `python -m benchmarks.features`

Three tables of Markdown. The places in front of a layer are compared by the circuit that `discover` finds for ioi: its nodes that write
before and read behind it, and the edges between these. Features are ranked by exact ablation, every one that fires on the task.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.output import format_header
from discovery import discover, load_model, load_task, sae_top_features
from discovery.backends.base import Backend
from discovery.features import load_sae
from discovery.features.directory import read_info
from discovery.graph import CircuitGraph
from discovery.sites import Node
from discovery.tasks import BUILTIN

CONTROL_DRAWS = 19  # of the shuffled-decoder control: p is at least 1 / 20


def cuts_table(circuit: CircuitGraph) -> str:
    """What of the circuit lies on either side of each place."""
    rows = [
        format_header(
            "place",
            "write before it",
            "read behind it",
            "edges between them",
            "sum of their effects",
            "the strongest",
        )
    ]
    layers = {node.id: node.layer for node in circuit.nodes if node.layer is not None}
    for cut in range(1, max(layers.values()) + 1):
        before = [Node.parse(node).label for node, layer in layers.items() if layer < cut]
        behind = [Node.parse(node).label for node, layer in layers.items() if layer >= cut]
        crossing = [
            edge
            for edge in circuit.edges
            if layers.get(edge.source, cut) < cut <= layers.get(edge.target, -1)
        ]
        sizes = [abs(edge.effect.mean or 0.0) if edge.effect else 0.0 for edge in crossing]
        size, best = max(zip(sizes, crossing, strict=True), key=lambda pair: pair[0])
        strongest = f"{Node.parse(best.source).label} → {Node.parse(best.target).label} {size:.2f}"
        cells = (
            ", ".join(before),
            ", ".join(behind),
            str(len(crossing)),
            f"{sum(sizes):.2f}",
            strongest,
        )
        rows.append(f"| resid_pre.{cut} | {' | '.join(cells)} |\n")
    return "".join(rows)


def quality_table(model: Backend, source: str | Path) -> str:
    """The dictionary on its own text, and on each task."""
    told: Any = read_info(source).scores
    rows = [format_header("on", "positions", "variance explained", "L0", "survives splicing it in")]
    loss = (
        f"loss recovered {told['loss_recovered']:.4f} of zero, {told['loss_recovered_mean']:.4f} of mean ablation "
        f"(nats: clean {told['loss_clean']:.3f}, spliced {told['loss_spliced']:.3f}, zero {told['loss_zero']:.2f}, "
        f"mean {told['loss_mean']:.2f})"
    )
    rows.append(
        f"| held-out sentences | {told['tokens']:,} | {told['variance_explained']:.3f} | {told['l0']:.1f} | {loss} |\n"
    )
    for name in BUILTIN:
        found = sae_top_features(
            model, source, task=load_task(name, model), k=1, controls=0
        ).reconstruction
        share = (
            f"{found.share.mean:.3f} [{found.share.low:.3f}, {found.share.high:.3f}] of the metric"
            if found.share
            else "–"
        )
        rows.append(
            f"| {name}, every position | {found.n_positions:,} | {found.variance_explained:.3f} | {found.l0:.1f} | {share} |\n"
        )
    return (
        "".join(rows) + f"\nDead: {told['dead']:.1%} of {read_info(source).features:,} features.\n"
    )


def features_table(model: Backend, source: str | Path, task: str, top: int, pairs: int) -> str:
    """The features of a task by exact ablation."""
    sae = load_sae(source, model)
    found = sae_top_features(
        model, sae, task=load_task(task, model, pairs=pairs), k=sae.d_sae, controls=CONTROL_DRAWS
    )
    best = sorted(found.features, key=lambda feature: -abs(feature.ablation.mean))[:top]
    rows = [
        format_header(
            "feature",
            "exact ablation",
            "attribution",
            "control p",
            "fires: clean / corrupted / unrelated",
            "fires on",
            "promotes",
        )
    ]
    for feature in best:
        seen, ablation = feature.consistency, feature.ablation
        fires = " / ".join(
            f"{part.share:.0%}" if part else "–"
            for part in (seen.clean, seen.corrupted, seen.unrelated)
        )
        tokens = ", ".join(f"{token.text} ({token.fired})" for token in feature.tokens[:3])
        promotes = ", ".join(str(token.text) for token in feature.direct.promoted[:4])
        effect = f"{ablation.mean:+.2f} [{ablation.low:.2f}, {ablation.high:.2f}]"
        attribution = f"{feature.attribution.mean:+.2f}" if feature.attribution else "–"
        p = f"{feature.control.p:.2f}" if feature.control else "–"
        rows.append(
            f"| {feature.index} | {effect} | {attribution} | {p} | {fires} | {tokens} | {promotes} |\n"
        )
    counted = (
        f"{len(found.features)} features fire; metric {found.metric_clean:.2f} on clean prompts."
    )
    return "".join(rows) + f"\n{counted}\n"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sae", default="bundled")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=64)
    given, out = parser.parse_args(), sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as runs:
        model = load_model("bundled")
        out.write(
            f"{cuts_table(discover(model, load_task('ioi', model), runs_dir=runs).circuit)}\n"
        )
        out.write(f"{quality_table(model, given.sae)}\n")
        out.write(features_table(model, given.sae, given.task, given.top, given.pairs))


if __name__ == "__main__":
    main()
