from __future__ import annotations

import inspect

from discovery.evaluation import thresholds
from mcp_server import prompts
from mcp_server.tools.arguments import MIN_VERDICT_PAIRS


def test_tools_and_prompts_name_as_many_pairs_as_a_verdict_needs() -> None:
    """They name a number of their own, since a server that starts may not import torch."""
    assert thresholds.MIN_PAIRS == MIN_VERDICT_PAIRS
    assert f"at least {thresholds.MIN_PAIRS}\n   prompt pairs" in inspect.getsource(prompts)
