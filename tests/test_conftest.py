"""The environment that tests/conftest.py gives every other test."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path

import pytest


def test_the_network_cannot_be_reached() -> None:
    with pytest.raises(RuntimeError, match="reached for the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_this_machine_can_be_reached() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_a_warning_is_an_error() -> None:
    with pytest.raises(UserWarning, match="as an error"):
        warnings.warn("as an error", stacklevel=1)


def test_runs_go_to_a_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert Path(os.environ["CIRCUIT_SCOUT_RUNS_DIR"]).is_relative_to(tmp_path_factory.getbasetemp())


def test_the_runs_directory_of_a_test_is_its_own(runs_dir: Path, tmp_path: Path) -> None:
    assert os.environ["CIRCUIT_SCOUT_RUNS_DIR"] == str(runs_dir)
    assert runs_dir.is_relative_to(tmp_path)


def test_written_shapes_are_checked() -> None:
    import torch
    from jaxtyping import TypeCheckError

    from discovery import metrics

    logits = torch.zeros(2, 5)
    answers = torch.zeros(3, 1, dtype=torch.long)
    with pytest.raises(TypeCheckError):
        metrics.logit_difference(logits, answers, answers)
