"""run.json: what a run was asked for, what it was made with, and how far it is."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import ClassVar, Literal

from pydantic import Field

from discovery.graph import Cost, JsonModel, Provenance
from discovery.graph.base import Json, OmitsEmptyFields
from discovery.store.checksums import JournalExtent
from discovery.store.journal import utc_timestamp

RunStatus = Literal["running", "interrupted", "completed", "failed"]
RunKind = Literal["discovery", "sae"]

SAE_FOLDER = "sae"  # the folder of the SAE in the run folder of a training


class ModelSource(OmitsEmptyFields):
    """Where the model's weights came from.

    Attributes:
        name: the model as it was asked for.
        source: "bundled", a hub name, a local directory, or a GGUF file.
        revision: the revision of a hub repository.
        fingerprint: the sha256 of the weights; of a GGUF model, of its file.
        quantisation: how the weights of a GGUF file are quantised; left out for other formats.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"quantisation"})

    name: str | None = None
    source: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    quantisation: str | None = None


class RunRecord(JsonModel):
    """The content of run.json.

    Attributes:
        run_id: the id of the run, which is the name of its folder.
        status: running, interrupted (resumable), completed (whatever the verdict), or failed.
        kind: whether the run discovers a circuit or trains an SAE.
        task: the name of the behaviour.
        configuration: everything that was asked for.
        model: where the weights came from.
        provenance: how the run can be repeated.
        cost: the cost so far.
        created: when the run began, in UTC.
        updated: when this file was last written, in UTC.
        problem: why the run failed or was interrupted.
        scores: the scores of the SAE that was trained.
        journal: how long the journal was when this file was written, by which damage to it is
            found; None in runs of versions that did not record it.
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
    journal: JournalExtent | None = None


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
    """Return how a run can be repeated: seed, versions, device and command.

    Args:
        seed: the seed of every random choice.
        device: the device that the run computes on.
        command: the command line; None if the run was started from Python.
        created: when the run began.
        more: further libraries whose versions are recorded.
    """
    versions = {"python": platform.python_version()}
    for library in (*RECORDED_LIBRARIES, *more):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue  # run from a checkout that is not installed; its version stays unknown
    return Provenance(seed=seed, versions=versions, device=device, command=command, created=created)
