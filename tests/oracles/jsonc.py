"""An independent reader of JSON with comments, one character at a time."""

from __future__ import annotations

import json
from typing import Any


def read_jsonc(text: str) -> Any:
    """Return the value of a text with comments and last commas; an empty text is {}."""
    bare = drop_last_commas(drop_comments(text.removeprefix("\ufeff")))
    return json.loads(bare) if bare.strip() else {}


def comments_of(text: str) -> list[str]:
    """Return the comments in a text, in their order."""
    found: list[str] = []
    drop_comments(text, found)
    return found


def drop_comments(text: str, found: list[str] | None = None) -> str:
    kept, place, in_string = [], 0, False
    while place < len(text):
        here = text[place]
        if in_string:
            step = 2 if here == "\\" else 1
            in_string = here != '"'
            kept.append(text[place : place + step])
        elif text.startswith("//", place):
            end = text.find("\n", place)
            step = (len(text) if end < 0 else end) - place
        elif text.startswith("/*", place):
            step = text.index("*/", place) + 2 - place
        else:
            step, in_string = 1, here == '"'
            kept.append(here)
        if found is not None and not in_string and here == "/":
            found.append(text[place : place + step].rstrip())
        place += step
    return "".join(kept)


def drop_last_commas(text: str) -> str:
    kept, in_string, escaped = [], False, False
    for place, here in enumerate(text):
        if not in_string and here == "," and text[place + 1 :].lstrip()[:1] in ("}", "]"):
            continue
        kept.append(here)
        if here == '"' and not escaped:
            in_string = not in_string
        escaped = in_string and here == "\\" and not escaped
    return "".join(kept)
