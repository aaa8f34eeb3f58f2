from __future__ import annotations

from typing import Any

import pytest

from discovery.errors import Interrupted
from discovery.progress import Progress, ProgressListener, report_progress


class Recorder(ProgressListener):
    def __init__(self) -> None:
        self.received: list[Progress] = []

    def update(self, progress: Progress) -> None:
        self.received.append(progress)


QUEUED = Progress(step="sweep", done=1.0, total=4.0, waiting_for="NDIF: queued")


def test_a_plain_function_receives_done_total_and_label() -> None:
    received: list[Any] = []
    report_progress(lambda *arguments: received.append(arguments), QUEUED)
    assert received == [(1.0, 4.0, "sweep · NDIF: queued")]


def test_a_listener_receives_the_value_as_it_is() -> None:
    recorder = Recorder()
    report_progress(recorder, QUEUED)
    assert recorder.received == [QUEUED]


def test_a_listener_can_be_called_like_a_plain_function() -> None:
    recorder = Recorder()
    recorder(2.0, 4.0, "sweep")
    assert recorder.received == [Progress(step="sweep", done=2.0, total=4.0)]
    assert recorder.received[0].label == "sweep"


def test_nobody_needs_to_listen() -> None:
    report_progress(None, QUEUED)


def test_a_callback_may_interrupt() -> None:
    def stop(done: float, total: float, label: str) -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        report_progress(stop, QUEUED)
