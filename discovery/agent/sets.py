"""The sets of nodes that a search has measured, kept with the run: a resumed search knows what the first one knew."""

from __future__ import annotations

import torch
from torch import Tensor

from discovery.evaluation import Bench
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.store import Run


def save_sets(run: Run, bench: Bench) -> None:
    """Write arrays/sets-<ablation>: the metric of each set on all pairs, and of those measured on the first pairs only."""
    for ablation, f in bench.made.items():
        whole, parts = f.sets.measured()
        width = max((len(values) for values in parts.values()), default=0)
        parts = {nodes: values for nodes, values in parts.items() if len(values) == width}
        arrays = {"whole": _stack(whole).numpy(), "parts": _stack(parts).numpy()}
        run.save_arrays(f"sets-{ablation}", arrays, metadata={"whole": _names(whole), "parts": _names(parts)})


def restore_sets(run: Run, bench: Bench) -> None:
    """Take over what an earlier session of the run measured."""
    known = set(run.array_ids())
    for ablation in EVIDENCE_ABLATIONS:
        if f"sets-{ablation}" in known:
            arrays, names = run.load_arrays(f"sets-{ablation}"), run.array_metadata(f"sets-{ablation}")
            whole, parts = (_sets(names[kind], torch.from_numpy(arrays[kind])) for kind in ("whole", "parts"))
            bench.f(ablation).sets.restore(whole, parts)


def _stack(sets: dict[NodeSet, Tensor]) -> Tensor:
    return torch.stack([values.float().cpu() for values in sets.values()]) if sets else torch.zeros(0, 0)


def _names(sets: dict[NodeSet, Tensor]) -> str:
    return ";".join(",".join(map(str, sorted(nodes))) for nodes in sets)


def _sets(names: str, values: Tensor) -> dict[NodeSet, Tensor]:
    if not len(values):
        return {}
    return {frozenset(Node.parse(n) for n in name.split(",") if n): row for name, row in zip(names.split(";"), values, strict=True)}
