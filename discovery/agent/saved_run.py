"""What was asked of a run, as it stands in run.json: enough to open the model and the task again."""

from __future__ import annotations

from typing import Literal

from discovery.graph import JsonModel
from discovery.sites import BackendName, MetricName, Universe


class LoadArguments(JsonModel):
    """How the model was opened. Further fields (the task, the number of pairs) are kept as they came.

    Attributes:
        device_map: its weights are spread over devices, memory and disk, by what is free.
        remote: it computed on NDIF, or in nnsight's simulation of it.
    """

    model: str
    backend: BackendName = "auto"
    device: str = "auto"
    dtype: str = "float32"
    remote: bool | Literal["local"] = False
    device_map: Literal["auto"] | None = None


class RunSettings(JsonModel):
    """A run's configuration.

    Attributes:
        metric: as asked for; None is the task's own, `task_metric`.
        budget: forward-pass equivalents. memory: bytes.
        task_name, split_method: of the task that was run. pairs: its fingerprint (None in runs that are older than it).
    """

    metric: MetricName | None = None
    seed: int = 0
    universe: Universe = "all"
    budget: float | None = None
    memory: int | None = None
    exhaustive: bool = False
    task_name: str
    task_metric: MetricName
    split_method: str
    pairs: str | None = None
    load: LoadArguments
