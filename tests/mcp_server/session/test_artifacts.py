"""The ids of results."""

from __future__ import annotations

import pytest

from mcp_server.session.artifacts import make_result_id

pytestmark = pytest.mark.anyio


def test_names_that_are_cut_do_not_make_two_results_one() -> None:
    assert make_result_id("sweep", "v" * 60 + "1") != make_result_id("sweep", "v" * 60 + "2")
    assert make_result_id("a/b") != make_result_id("a_b")
    assert make_result_id("sweep", "gpt2") == make_result_id("sweep", "gpt2")
