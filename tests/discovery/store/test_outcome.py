"""An error that ends a run carries the run's id if the run can be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery.errors import ModelError
from discovery.graph import Cost
from discovery.store import ModelSource, create_run
from discovery.store.outcome import record_outcome


@pytest.mark.parametrize("measured", [True, False])
def test_an_error_that_a_user_can_fix(tmp_path: Path, measured: bool) -> None:
    with create_run(tmp_path, "ioi", ModelSource(name="bundled"), {}) as run:
        if measured:
            run.append_event({"stage": "check"})
        with (
            pytest.raises(ModelError) as caught,
            record_outcome(run, lambda: Cost(forward_equivalents=3.0), lambda fault: False, "less"),
        ):
            raise ModelError("The connection was lost.", "Try again.")
        assert caught.value.run_id == (run.id if measured else None)
        assert run.path.is_dir() == measured
        if measured:
            record = run.record
            assert (record.status, record.problem) == ("interrupted", "The connection was lost.")
            assert record.cost is not None
            assert record.cost.forward_equivalents == 3.0
