"""run_with_cache: summaries of activations, and the activations themselves."""

from __future__ import annotations

import base64

import pytest
import torch
from mcp import Client
from safetensors.torch import load

from tests.mcp_server.servers import (
    call_tool_ok,
)

pytestmark = pytest.mark.anyio


async def test_a_summary_of_activations(client: Client) -> None:
    result = await call_tool_ok(
        client,
        "run_with_cache",
        model_id="induction",
        prompt=[0, 5, 6, 7, 5],
        sites=["head_out", "pattern"],
        top=3,
    )
    assert [row["site"] for row in result["sites"]] == ["z.0", "z.1", "pattern.0", "pattern.1"]
    assert result["sites"][2]["shape"] == [4, 5, 5]
    assert len(result["predictions"]) == 3
    assert [layer["mlp"] for layer in result["layers"]] == [None, None]
    [content] = (await client.read_resource(result["activations"])).contents
    assert len(content.blob) > 100


async def test_activations_that_are_one_another(client: Client) -> None:
    """The end of a layer is the start of the next: one storage, two names."""
    sites = ["resid_pre", "resid_post"]
    result = await client.call_tool(
        "run_with_cache", {"model_id": "induction", "prompt": [0, 5, 6, 7, 5], "sites": sites}
    )
    assert not result.is_error, result.content
    [link] = [block for block in result.content if block.type == "resource_link"]
    [content] = (await client.read_resource(str(link.uri))).contents
    tensors = load(base64.b64decode(content.blob))
    assert torch.equal(tensors["resid_post.0"], tensors["resid_pre.1"])
