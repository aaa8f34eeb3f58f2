"""Building HTML in which everything is escaped unless it is markup.

`Html` is a text that is markup. Everything else in an element is escaped, so that a token such as
``<script>`` is shown and never run. Characters that HTML cannot contain are written as escapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """A text that is markup. Only the functions of this module make it."""

    __slots__ = ()


def escape_text(value: object) -> Html:
    """Return a value as markup: Html unchanged, and anything else escaped."""
    if isinstance(value, Html):
        return value
    return Html(escape("".join(map(_escape_character, str(value))), quote=True))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """Return ``<tag attributes>content</tag>``.

    The attribute ``class_`` is written ``class``, and ``aria_label`` is written ``aria-label``.
    """
    return Html(f"<{tag}{_attributes(attributes)}>{''.join(map(escape_text, content))}</{tag}>")


def void_element(tag: str, **attributes: object) -> Html:
    """Return an element without content, such as ``<img …>``."""
    return Html(f"<{tag}{_attributes(attributes)}>")


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Return the parts in sequence, with a separator between them."""
    return Html(escape_text(separator).join(map(escape_text, parts)))


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table whose first column names the rows. It scrolls if the page is narrow."""
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
    """Return a list of names and values, without the values that are None."""
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


def _escape_character(character: str) -> str:
    if character.isprintable() or character in "\n\t\u00a0":
        return character
    return character.encode("unicode_escape").decode("ascii")
