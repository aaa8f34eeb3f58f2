"""Features put beside the circuit of a finished run: measured on the run's own model and pairs, and written into its record.

The verdict, the evaluation and `runs verify` know nothing of them. The run's journal says what was measured and why; its drawing and its
page are made anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discovery.agent.saved_run import read_saved_task, read_settings, reload_model_and_task
from discovery.backends.base import Backend
from discovery.errors import StoreError
from discovery.features import SAE, open_sae
from discovery.methods.features import FeatureCircuit, add_features
from discovery.methods.features.arguments import Positions
from discovery.progress import ProgressCallback
from discovery.report import draw_circuit, render_page
from discovery.store import Run, open_run


def add_features_to_run(
    run_id: str,
    sae: SAE | str | Path | None = None,
    *,
    model: Backend | None = None,
    positions: Positions = None,
    k: int = 16,
    runs_dir: Path | str | None = None,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> FeatureCircuit:
    """Find, verify and record the features of a dictionary in a run's circuit, with their edges.

    Args:
        sae, positions, k: as in `add_features`; the id of a training is looked up in `runs_dir`.
        model: the run's, where it is loaded already.

    Raises:
        StoreError: no such run, one that another process writes to, without a circuit, or whose model has other weights now.
        FeatureError, MeasurementError: as in `add_features`.
    """
    with open_run(runs_dir, run_id, write=True) as run:
        if run.record.kind == "discovery" and run.record.status != "completed":
            cure = f"Resume it first: circuit-scout discover --resume {run_id}, or discover_circuit(run_id={run_id!r})."
            raise StoreError(f"The run {run_id} is not complete.", cure)
        circuit, settings = run.load_circuit(), read_settings(run)
        own, task = (
            (model, read_saved_task(run, model))
            if model is not None
            else reload_model_and_task(run)
        )
        made = add_features(
            own,
            circuit,
            task,
            open_sae(sae, own, runs_dir),
            positions=positions,
            k=k,
            seed=settings.seed,
            metric=settings.metric,
            memory=memory,
            progress=progress,
        )
        _save_features(run, made)
        return made


def _save_features(run: Run, made: FeatureCircuit) -> None:
    """The arrays first, then the journal, then the record that names them."""
    if made.arrays:
        edges = ",".join(f"{edge.source}->{edge.target}" for edge in made.edges)
        candidates = ",".join(str(candidate.node) for candidate in made.candidates)
        arrays = {name: values.detach().cpu().numpy() for name, values in made.arrays.items()}
        run.save_arrays(made.result_id, arrays, metadata={"candidates": candidates, "edges": edges})
    run.append_event(_features_event(made))
    run.save_circuit(made.circuit)
    if made.circuit.size:
        run.save_figure("circuit", draw_circuit(made.circuit))
    run.save_report(
        render_page(
            made.circuit, {name: run.load_figure(name) for name in run.figure_names()}, run.events()
        )
    )


def _features_event(made: FeatureCircuit) -> dict[str, Any]:
    held = [candidate for candidate in made.candidates if candidate.why is None]
    named = ", ".join(f"{one.node.label} {one.noising.mean or 0.0:+.2f}" for one in held)
    return {
        "stage": "features",
        "kind": "addition",
        "measured": {
            str(candidate.node): candidate.why or "holds" for candidate in made.candidates
        },
        "concluded": f"{len(held)} of {len(made.candidates)} candidates hold{': ' if named else ''}{named}",
        "why": "found by attribution on discovery pairs, verified by exact ablation on held-out pairs; they enter no verdict",
        "warnings": list(made.warnings),
        "forward_equivalents": made.cost.forward_equivalents,
    }
