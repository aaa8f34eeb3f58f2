"""HTML that is escaped unless it says that it is HTML.

`Html` is text that is markup already; everything else that goes into an element is escaped, so that a token
such as ``<script>`` is shown and never run. What HTML has no character for is written as an escape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Markup; made only by this module's functions."""

    __slots__ = ()


def escape_text(value: object) -> Html:
    """`value` as markup: Html as it is, anything else escaped."""
    if isinstance(value, Html):
        return value
    letters = (
        letter if letter.isprintable() or letter in "\n\t" else _escape_letter(letter)
        for letter in str(value)
    )
    return Html(escape("".join(letters), quote=True))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """``<tag attributes>content</tag>``; an attribute written ``class_`` or ``aria_label`` loses or turns its underscores."""
    return Html(f"<{tag}{_attributes(attributes)}>{''.join(map(escape_text, content))}</{tag}>")


def void_element(tag: str, **attributes: object) -> Html:
    """An element that holds nothing: ``<img …>``."""
    return Html(f"<{tag}{_attributes(attributes)}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """The parts one after another."""
    return Html(escape_text(between).join(map(escape_text, parts)))


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table whose first column names the rows; it scrolls by itself where the page is narrow."""
    heads = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element(
            "tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])
        )
        for row in rows
    ]
    inner = element(
        "table", element("caption", caption), element("thead", heads), element("tbody", *body)
    )
    return element("div", inner, class_="wide", tabindex=0, role="region", aria_label=caption)


def definition_list(pairs: Iterable[tuple[str, object]]) -> Html:
    """A list of names and values, without those that are None."""
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in pairs
            if value is not None
        ),
    )


def _attributes(attributes: dict[str, object]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape_text(value)}"'
        for name, value in attributes.items()
    )


def _escape_letter(letter: str) -> str:
    return letter if letter == "\u00a0" else letter.encode("unicode_escape").decode("ascii")
