"""What leaves the server: every text is cleaned, and nothing else changes."""

from __future__ import annotations

import json

from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Image
from mcp.types import CallToolResult, ResourceLink, TextContent

from mcp_server.server.sendable import clean_contents, clean_result, make_cleaner


def hide(text: str) -> str:
    return text.replace("/secret/place", "a place")


def test_every_text_of_a_result_is_cleaned() -> None:
    facts = {"path": "/secret/place", "rows": [{"deep": ["in /secret/place"]}], "n": 1, "x": None}
    result = CallToolResult(
        content=[
            TextContent(type="text", text=json.dumps(facts)),
            ResourceLink(uri="scout://results/1", name="/secret/place"),
            Image(data=b"/secret/place", format="png").to_image_content(),
        ],
        structured_content=facts,
    )
    cleaned = clean_result(result, make_cleaner(hide))
    assert cleaned.structured_content == {
        "path": "a place",
        "rows": [{"deep": ["in a place"]}],
        "n": 1,
        "x": None,
    }
    text, link, image = cleaned.content
    assert json.loads(text.text) == cleaned.structured_content
    assert (type(link), link.name, link.uri) == (ResourceLink, "a place", "scout://results/1")
    assert image == result.content[2]
    assert "/secret/place" in str(result)  # which is as it was


def test_the_text_of_a_resource_is_cleaned() -> None:
    contents = [ReadResourceContents("in /secret/place"), ReadResourceContents(b"/secret/place")]
    text, data = clean_contents(contents, make_cleaner(hide))
    assert (text.content, data.content) == ("in a place", b"/secret/place")


def test_what_json_cannot_carry_is_replaced() -> None:
    result = CallToolResult(content=[TextContent(type="text", text="caf\udce9 é 😀")])
    (text,) = clean_result(result, make_cleaner(None)).content
    assert text.text == "caf? é 😀"
    assert "😀" in clean_result(result, make_cleaner(None)).model_dump_json()
