"""run.json: what a run was asked for, and how it stands.

How a run can be done again: the versions of what it was made with, its seed, device and command.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Literal

from pydantic import Field

from discovery.graph import Cost, JsonModel, Provenance
from discovery.graph.base import Json
from discovery.store.journal import utc_timestamp

RunStatus = Literal["running", "interrupted", "completed", "failed"]
RunKind = Literal["discovery", "sae"]


class ModelSource(JsonModel):
    """Where the model's weights came from.

    Attributes:
        name: as it was asked for.
        source: bundled, a hub name, or a local directory.
        revision: of a hub repository.
        fingerprint: sha256 of the weights.
    """

    name: str | None = None
    source: str | None = None
    revision: str | None = None
    fingerprint: str | None = None


class RunRecord(JsonModel):
    """run.json.

    Attributes:
        run_id: the folder's name.
        status: running, interrupted (resumable), completed (whatever the verdict), or failed.
        kind: discovery of a circuit, or the training of an SAE.
        task: name of the behaviour.
        configuration: everything that was asked for.
        model: where the weights came from.
        provenance: how to do it again.
        cost: so far.
        created: when the run began, in UTC.
        updated: when this file was last written.
        problem: why it failed.
        scores: of the dictionary that was trained.
    """

    schema_: Literal["circuit-scout/run/1"] = Field(default="circuit-scout/run/1", alias="schema")
    run_id: str
    status: RunStatus = "running"
    kind: RunKind = "discovery"
    task: str | None = None
    configuration: Mapping[str, Json] = Field(default_factory=dict)
    model: ModelSource = ModelSource()
    provenance: Provenance = Provenance()
    cost: Cost = Cost()
    created: str = Field(default_factory=utc_timestamp)
    updated: str = Field(default_factory=utc_timestamp)
    problem: str | None = None
    scores: Mapping[str, Json] | None = None


RECORDED_LIBRARIES = (
    "circuit-scout",
    "torch",
    "transformer-lens",
    "transformers",
    "numpy",
    "scipy",
    "networkx",
)


def collect_provenance(
    seed: int, device: str, command: str | None, created: str, more: tuple[str, ...] = ()
) -> Provenance:
    """How to do a run again.

    Args:
        more: further libraries that it was made with.
    """
    versions = {"python": platform.python_version()}
    for library in (*RECORDED_LIBRARIES, *more):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue  # run from a checkout that is not installed: the record then lacks that line
    return Provenance(seed=seed, versions=versions, device=device, command=command, created=created)
