"""The sets of nodes that a run has measured, kept in its folder.

A run that is resumed does not measure them again: neither what the search measured, nor what the
circuit was judged by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from discovery.evaluation import SplitEvaluator
from discovery.graph import EVIDENCE_ABLATIONS, EvidenceAblation, RulesVersion
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.store import Run, join_names, split_names

SEARCH_SETS = "sets"
HELDOUT_SETS = "sets-heldout"
SINGLE_ABLATIONS: Mapping[EvidenceAblation, str] = {
    "resample": "nodes-noising",
    "mean": "nodes-mean",
}
"""The arrays that hold the metric with each single node ablated."""


def save_set_metrics(run: Run, evaluator: SplitEvaluator, prefix: str = SEARCH_SETS) -> None:
    """Write arrays/<prefix>-<ablation>.safetensors: the metric of each measured set.

    `whole` holds the sets that were measured on all pairs, `parts` those measured on the first
    pairs only, with NaN for the others; both are [set pair]. `whole_nodes` and `parts_nodes`, [set
    byte], say which nodes are in each set: a bit a node, in the order of `nodes` in the metadata.
    """
    for ablation, f in evaluator.measured_f_by_ablation.items():
        nodes = sorted(f.everything)
        arrays: dict[str, np.ndarray] = {}
        for kind, sets in zip(("whole", "parts"), f.set_metric.measurements(), strict=True):
            arrays[kind] = _stack_metrics(sets).numpy()
            arrays[f"{kind}_nodes"] = _pack_sets(sets, nodes)
        run.save_arrays(f"{prefix}-{ablation}", arrays, metadata={"nodes": join_names(nodes)})


def restore_set_metrics(run: Run, evaluator: SplitEvaluator, prefix: str = SEARCH_SETS) -> None:
    """Give the evaluator what an earlier process of the run measured."""
    result_ids = set(run.array_ids())
    for ablation in EVIDENCE_ABLATIONS:
        result_id = f"{prefix}-{ablation}"
        if result_id not in result_ids:
            continue
        arrays = run.load_arrays(result_id)
        metadata = run.array_metadata(result_id)
        whole, parts = (
            # Version 1 searched on all discovery pairs, of which these are the first.
            _join_metrics(
                _read_sets(kind, arrays, metadata),
                torch.from_numpy(arrays[kind])[:, : len(evaluator.engine)],
            )
            for kind in ("whole", "parts")
        )
        evaluator.f(ablation).set_metric.restore(whole, parts)


def restore_single_ablations(run: Run, evaluator: SplitEvaluator, rules: RulesVersion) -> None:
    """Give the evaluator what the ranking measured: the universe without each node, on few pairs.

    The ranking uses the first of the same pairs. Under version 1 of the rules its means are those
    of its own pairs, so that they cannot be mixed with the means of all pairs of the search.
    """
    for ablation, result_id in SINGLE_ABLATIONS.items():
        if result_id not in run.array_ids() or (ablation == "mean" and rules == 1):
            continue
        arrays = run.load_arrays(result_id)
        if "per_pair" not in arrays:
            continue  # a run of an earlier version, which kept only the means over pairs
        f = evaluator.f(ablation)
        by_pair = torch.from_numpy(arrays["per_pair"])
        nodes = map(Node.parse, split_names(run.array_metadata(result_id)["nodes"]))
        on_first_pairs = {
            f.everything - {node}: values for node, values in zip(nodes, by_pair.T, strict=True)
        }
        f.set_metric.restore({}, on_first_pairs)


def _stack_metrics(sets: Mapping[NodeSet, Tensor]) -> Float[Tensor, "set pair"]:
    if not sets:
        return torch.zeros(0, 0)
    rows = [values.float().cpu() for values in sets.values()]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)


def _join_metrics(
    sets: Sequence[NodeSet], values: Float[Tensor, "set pair"]
) -> dict[NodeSet, Tensor]:
    return {nodes: row[~row.isnan()] for nodes, row in zip(sets, values, strict=True)}


def _pack_sets(sets: Iterable[NodeSet], nodes: Sequence[Node]) -> UInt8[np.ndarray, "set byte"]:
    column = {node: number for number, node in enumerate(nodes)}
    listed = list(sets)
    is_member = np.zeros((len(listed), len(nodes)), dtype=bool)
    for row, node_set in enumerate(listed):
        is_member[row, [column[node] for node in node_set]] = True
    return np.packbits(is_member, axis=1)


def _read_sets(
    kind: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> list[NodeSet]:
    if kind in metadata:  # an earlier version listed the sets by name
        names_by_set = metadata[kind].split(";")[: len(arrays[kind])]
        return [
            frozenset(Node.parse(name) for name in split_names(names) if name)
            for names in names_by_set
        ]
    nodes = [Node.parse(name) for name in split_names(metadata["nodes"])]
    is_member = np.unpackbits(arrays[f"{kind}_nodes"], axis=1, count=len(nodes))
    return [frozenset(nodes[number] for number in np.flatnonzero(row)) for row in is_member]
