"""The status of a remote model: it goes to a listener, or into the log."""

from __future__ import annotations

from discovery.backends.remote.status import report_status


def test_without_a_listener_the_status_is_logged(caplog):
    with caplog.at_level("INFO", logger="circuit_scout.ndif"):
        report_status("NDIF: queued")
    assert caplog.messages == ["NDIF: queued"]
