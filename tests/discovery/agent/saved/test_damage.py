"""A stopped run whose files were damaged says so, and ends with the same circuit or refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from discovery import discover
from discovery.agent import DiscoveryResult, resume
from discovery.agent import run as agent_run
from discovery.backends.base import Backend
from discovery.errors import Interrupted, StoreError
from discovery.graph import Cost
from discovery.store import open_run
from discovery.tasks import Task


@pytest.fixture
def stopped(model_and_task: tuple[Backend, Task], tmp_path: Path) -> Path:
    """The folder of a run that was stopped before its edges, when all arrays but theirs exist."""

    def stop(event: Mapping[str, Any]) -> None:
        if (event["stage"], event["kind"]) == ("components", "stage"):
            raise Interrupted("stopped by the test")

    with pytest.raises(Interrupted) as stopped:
        discover(*model_and_task, runs_dir=tmp_path, on_event=stop)
    return tmp_path / str(stopped.value.run_id)


def flip_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(content)


def resume_with_events(folder: Path) -> tuple[DiscoveryResult, list[Mapping[str, Any]]]:
    events: list[Mapping[str, Any]] = []
    result = resume(folder.name, runs_dir=folder.parent, on_event=events.append)
    return result, [event for event in events if event["kind"] == "repair"]


def assert_same_circuit(result: DiscoveryResult, finished: DiscoveryResult) -> None:
    plain = result.circuit.model_copy(update={"cost": Cost()})
    assert plain.same_content(finished.circuit.model_copy(update={"cost": Cost()}))


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("resid_pre-noising", "again: localise, components"),
        (
            "nodes-noising",
            "again: heads, candidate, mend, validate, stability, localise, components",
        ),
        ("sets-resample", "again what is needed"),
    ],
)
@pytest.mark.parametrize("damage", [Path.unlink, flip_bits])
@pytest.mark.slow
def test_damaged_arrays_are_measured_again_and_named(
    name: str, again: str, damage: Any, stopped: Path, finished_run: DiscoveryResult
) -> None:
    spent = open_run(stopped.parent, stopped.name).record.cost.forward_equivalents
    damage(stopped / "arrays" / f"{name}.safetensors")
    result, repairs = resume_with_events(stopped)
    (repair,) = repairs
    assert list(repair["measured"]) == [f"arrays/{name}.safetensors"]
    assert str(repair["concluded"]).endswith(f"measuring {again}")
    assert_same_circuit(result, finished_run)
    assert result.circuit.cost.forward_equivalents > spent  # nothing that was spent is forgotten
    statistics = result.circuit.evaluation.tests["max_statistic"]
    assert statistics == finished_run.circuit.evaluation.tests["max_statistic"]


def test_a_truncated_array_is_found_before_the_model_is_loaded(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stopped / "arrays" / "nodes-noising.safetensors"
    path.write_bytes(path.read_bytes()[:-30])
    events: list[Mapping[str, Any]] = []

    def refuse(run: Any) -> Any:
        raise StoreError("the model would be loaded now", "")

    monkeypatch.setattr(agent_run, "reload_model_and_task", refuse)
    with pytest.raises(StoreError, match="would be loaded now"):
        resume(stopped.name, runs_dir=stopped.parent, on_event=events.append)
    assert [event["kind"] for event in events] == ["repair"]
    assert "nodes-noising.safetensors is not what was written" in events[0]["concluded"]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_run_whose_journal_was_cut_is_refused(share: float, stopped: Path) -> None:
    path = stopped / "events.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(StoreError, match=r"events\.jsonl is damaged"):
        resume(stopped.name, runs_dir=stopped.parent)
