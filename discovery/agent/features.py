"""Features of an SAE put beside the circuit of a finished run.

They are measured on the run's own model and pairs, and written into its record. The verdict, the
evaluation and `runs verify` do not depend on them. The run's journal says what was measured and
why, and its drawing and its page are made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discovery.agent.outputs import save_page
from discovery.agent.saved.run_folder import read_saved_task, read_settings, reload_model_and_task
from discovery.backends.base import Backend
from discovery.errors import StoreError
from discovery.features import SAE, open_sae
from discovery.methods.arguments import Positions
from discovery.methods.features import FeatureCircuit, add_features
from discovery.progress import ProgressCallback
from discovery.report import draw_circuit
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
    """Find and verify features for a run's circuit, and record them with their edges.

    Args:
        sae: as in `add_features`. The id of a training is looked up in `runs_dir`.
        model: the run's model, if it is loaded already.
        positions: as in `add_features`.
        k: as in `add_features`.

    Raises:
        StoreError: if there is no such run, if another process writes to it, if it is not complete
            or has no circuit, or if the weights of its model have changed.
        FeatureError: as in `add_features`.
        MeasurementError: as in `add_features`.
    """
    with open_run(runs_dir, run_id, write=True) as run:
        if run.record.kind == "discovery" and run.record.status != "completed":
            raise StoreError(
                f"The run {run_id} is not complete.",
                f"Resume it first: circuit-scout discover --resume {run_id}, or "
                f"discover_circuit(run_id={run_id!r}).",
            )
        circuit = run.load_circuit()
        settings = read_settings(run)
        if model is None:
            model, task = reload_model_and_task(run)
        else:
            task = read_saved_task(run, model)
        result = add_features(
            model,
            circuit,
            task,
            open_sae(sae, model, runs_dir),
            positions=positions,
            k=k,
            seed=settings.seed,
            metric=settings.metric,
            memory=memory,
            progress=progress,
        )
        _save_features(run, result)
        return result


def _save_features(run: Run, result: FeatureCircuit) -> None:
    """Save the arrays first, then the journal, and then the record that names both."""
    if result.arrays:
        metadata = {
            "candidates": ",".join(str(candidate.node) for candidate in result.candidates),
            "edges": ",".join(f"{edge.source}->{edge.target}" for edge in result.edges),
        }
        arrays = {name: values.detach().cpu().numpy() for name, values in result.arrays.items()}
        run.save_arrays(result.result_id, arrays, metadata=metadata)
    run.append_event(_features_event(result))
    run.save_circuit(result.circuit)
    if result.circuit.size:
        run.save_figure("circuit", draw_circuit(result.circuit))
    save_page(run, result.circuit)


def _features_event(result: FeatureCircuit) -> dict[str, Any]:
    holding = [candidate for candidate in result.candidates if candidate.why is None]
    effects = ", ".join(
        f"{candidate.node.label} {candidate.noising.mean or 0.0:+.2f}" for candidate in holding
    )
    concluded = f"{len(holding)} of {len(result.candidates)} candidates hold"
    return {
        "stage": "features",
        "kind": "addition",
        "measured": {
            str(candidate.node): candidate.why or "holds" for candidate in result.candidates
        },
        "concluded": f"{concluded}: {effects}" if effects else concluded,
        "why": "found by attribution on discovery pairs, and verified by exact ablation on "
        "held-out pairs; features enter no verdict",
        "warnings": list(result.warnings),
        "forward_equivalents": result.cost.forward_equivalents,
    }
