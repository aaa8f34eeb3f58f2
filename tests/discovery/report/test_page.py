"""The page: it is parsed, so that a misplaced tag fails, and every text in it may be hostile."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from discovery.graph import (
    VERDICTS,
    CircuitGraph,
    CircuitNode,
    Effect,
    ModelFacts,
    NodeEffect,
    Provenance,
    TaskFacts,
)
from discovery.report import draw_circuit, render_page
from discovery.report.formatting import format_bytes, format_duration, format_effect, format_p_value
from discovery.report.markup import Html, element, escape_text
from tests.discovery.graph.example import ioi_circuit, with_feature

VOID = {"meta", "img"}
EVENTS = [
    {"index": 0, "time": "2026-11-20T15:30:12.000Z", "stage": "behaviour", "why": "accuracy 0.98"},
    {
        "index": 1,
        "time": "2026-11-20T15:30:13.000Z",
        "stage": "heads",
        "measured": {"top": [["a9.h6", 0.5]]},
    },
]


class Page(HTMLParser):
    """Checks that tags are nested, and collects the texts, tags and table cells of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.stack:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.stack):
            self.cells[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page(
    circuit: CircuitGraph | None = None,
    figures: dict[str, bytes] | None = None,
    events: list[dict[str, Any]] | None = None,
) -> Page:
    return Page(
        render_page(circuit or ioi_circuit(), figures or {}, EVENTS if events is None else events)
    )


@pytest.mark.parametrize("verdict", [*VERDICTS, None])
def test_the_verdict_comes_first_with_its_reasons(verdict: Any) -> None:
    circuit = ioi_circuit(
        verdict=verdict, **({"nodes": (), "edges": ()} if verdict == "no_behaviour" else {})
    )
    rendered = page(circuit).text
    word = {None: "Not evaluated", "no_behaviour": "No behaviour"}.get(
        verdict, str(verdict).capitalize()
    )
    assert (
        rendered.index(word)
        < rendered.index("a10.h0 drops 0.01 < 0.02")
        < rendered.index("(f) was not run")
        < rendered.index("Conditions")
    )


def test_conditions_are_shown_with_their_numbers() -> None:
    rows = {row[0][:3]: row for row in page().cells if row[0].startswith("(")}
    assert list(rows) == ["(a)", "(b)", "(c)", "(d)", "(e)", "(f)"]
    assert rows["(a)"][0].endswith("f(C) near 1 (faithfulness [0.8, 1.2])")
    assert rows["(b)"][0].endswith("(knockout 0.2)")
    assert rows["(a)"][1:] == ["✔ holdsf(C) = 0.93 [0.88, 0.98]", "✔ holdsf(C) = 0.88 [0.83, 0.93]"]
    assert rows["(b)"][1] == "✔ holdsf(U∖C) = 0.05 [-0.02, 0.10]"
    assert "largest gap inside 0.10 at L9H6; outside 0.04 at MLP0" in rows["(c)"][1]
    assert rows["(d)"][1] == "✘ failsleast needed: L10H0, drop 0.010, Holm p 0.300"
    assert rows["(d)"][2] == (
        "one status for both ablationsleast needed: L10H0, drop 0.010, Holm p 0.300; "
        "without L10H0 it misses (a) under mean"
    )
    assert rows["(e)"][1].startswith("? undecided")
    assert "same size: 0 of 200 as good, p 0.005; same layers: no alternative" in rows["(e)"][1]
    assert rows["(f)"][1] == "… not run"


def test_stability_is_shown_with_its_condition() -> None:
    evaluation = ioi_circuit().evaluation.model_copy(
        update={"tests": {"stability": {"mean_jaccard": 0.914, "resamples": 20}}}
    )
    (row,) = [
        row for row in page(ioi_circuit(evaluation=evaluation)).cells if row[0].startswith("(f)")
    ]
    assert "mean Jaccard 0.91" in row[1]
    assert "one status for both ablations" in row[2]


@pytest.mark.parametrize(("jaccard", "bound"), [(0.9, "at least 0.90"), (0.7, "at most 0.70")])
def test_stability_with_searches_cut_is_a_bound(jaccard: float, bound: str) -> None:
    tests = {"stability": {"mean_jaccard": jaccard, "resamples": 20, "cut_searches": 2}}
    before = ioi_circuit().evaluation
    outcomes: Any = "holds" if jaccard >= 0.8 else "fails"
    evaluation = before.model_copy(
        update={"tests": tests, "conditions": before.conditions.model_copy(update={"f": outcomes})}
    )
    (row,) = [
        row for row in page(ioi_circuit(evaluation=evaluation)).cells if row[0].startswith("(f)")
    ]
    assert f"mean Jaccard {bound}" in row[1]


def test_stability_that_is_not_known_says_why() -> None:
    tests = {"stability": {"mean_jaccard": None, "resamples": 20, "cut_searches": 3}}
    evaluation = ioi_circuit().evaluation.model_copy(update={"tests": tests})
    (row,) = [
        row for row in page(ioi_circuit(evaluation=evaluation)).cells if row[0].startswith("(f)")
    ]
    assert "not known: 3 of 20 repeated searches ended" in row[1]


def test_nodes_and_edges_are_shown_with_their_numbers() -> None:
    rows = page().cells
    assert [
        "L9H6",
        "attention head",
        "name mover",
        "▲ up",
        "+0.52 [0.48, 0.56]",
        "+0.60 [0.50, 0.70]",
        "end, -2",
        "head_out-1, head_out-2",
    ] in rows
    assert ["L10H0", "attention head", "—", "▼ down", "-0.31", "—", "—", "—"] in rows
    assert [
        "L9H6 → L10H0",
        "-0.12 [-0.20, -0.05]",
        "q: -0.10 [-0.20, 0.00]; v: -0.02",
        "paths-1",
    ] in rows
    assert ["L10H0 → logits", "—", "—", "—"] in rows


@pytest.mark.parametrize(("kv_heads", "shared"), [(3, True), (12, False), (None, False)])
def test_shared_keys_and_values_are_explained_beside_the_edges(
    kv_heads: int | None,
    shared: bool,
) -> None:
    model = ioi_circuit().model.model_copy(update={"n_kv_heads": kv_heads})
    text = page(ioi_circuit(model=model)).text
    assert ("which share 3 key-value heads" in text) is shared
    assert ("changes the copy that this head reads" in text) is shared


def test_cost_provenance_journal_and_commands() -> None:
    rendered = page().text
    for words in (
        "1234.5 forward-pass equivalents",
        "1 min 1 s",
        "1.0 GiB",
        "torch 2.13.0",
        "ab" * 32,
        "2 events",
        "accuracy 0.98",
        '{"top": [["a9.h6", 0.5]]}',
        "circuit-scout discover",
        "circuit-scout runs verify ioi-bundled-20261120-153012-a1b2",
    ):
        assert words in rendered


def test_figures_are_embedded_with_a_text_for_screen_readers() -> None:
    png = draw_circuit(ioi_circuit())
    rendered = page(figures={"resid_pre-1": png, "curve": png, "circuit": png, "odd": png})
    images = rendered.all("img")
    assert [str(image["alt"]).split(":")[0] for image in images] == [
        "circuit",
        "curve",
        "odd",
        "resid_pre-1",
    ]
    for image in images:
        assert base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,")) == png
        assert 200 < int(str(image["width"])) < 2000


def test_it_is_accessible() -> None:
    rendered = page(figures={"circuit": draw_circuit(ioi_circuit())})
    assert rendered.all("html") == [{"lang": "en"}]
    assert len(rendered.all("h1")) == len(rendered.all("title")) == len(rendered.all("main")) == 1
    assert len(rendered.all("caption")) == len(rendered.all("table")) >= 5
    assert all(cell.get("scope") in ("col", "row") for cell in rendered.all("th"))
    assert {"href": "#main", "class": "skip"} in rendered.all("a")


def test_it_loads_nothing_and_runs_nothing() -> None:
    html = render_page(ioi_circuit(), {}, EVENTS)
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", html)
    assert "default-src &#x27;none&#x27;" in html
    assert not re.search(r"<(script|link|iframe)|url\(|@import", html)


def test_hostile_text_is_shown_and_never_markup() -> None:
    evil = '<script>alert("x")</script><img src=x onerror=y>\'&\x00\ud83d\u202e'
    circuit = CircuitGraph(
        run_id="x'\"><script>",
        task=TaskFacts(name="<script>alert(1)</script>", fingerprint="</code><script>"),
        model=ModelFacts(name="<img src=x>", backend="<b>", weight_processing="<i>"),
        verdict="rejected",
        reasons=("<script>alert(2)</script>", "</style></section>"),
        nodes=(
            CircuitNode.of(
                "m0",
                role="<script>",
                positions=("<s>",),
                evidence=("<e>",),
                effect=NodeEffect(denoising=Effect(mean=1.0)),
            ),
        ),
        provenance=Provenance(
            command="<script>", device="<d>", versions={"<v>": "<w>"}, created="<c>"
        ),
        evaluation={"tests": {"<script>": {"<k>": "<script>"}}, "thresholds": {"a_<b>": "<t>"}},  # type: ignore[arg-type]
    )
    rendered = page(
        circuit,
        {'"><script>': b"\x89PNG" + bytes(20)},
        [{"index": "<script>", "time": "<t>", evil: evil, "nested": [evil]}],
    )
    assert not rendered.all("script")
    assert len(rendered.all("img")) == 1
    assert "alert(2)" in rendered.text
    assert '<script>alert("x")</script><img src=x onerror=y>' in rendered.text
    assert "\x00" not in rendered.text
    rendered.text.encode("utf-8")


def test_an_empty_record_makes_a_page() -> None:
    rendered = page(CircuitGraph(), {}, [])
    assert "Not evaluated" in rendered.text
    assert "The record has no nodes." in rendered.text
    assert "None" not in rendered.text


def test_a_long_value_in_the_journal_is_cut() -> None:
    rendered = page(events=[{"index": 0, "grid": [0.123] * 10_000}])
    assert len(rendered.text) < 10_000
    assert "letters)" in rendered.text


def test_markup_escapes_unless_it_is_markup() -> None:
    assert escape_text("<b>") == "&lt;b&gt;"
    assert escape_text(Html("<b>")) == "<b>"
    assert element("p", "a", 3, None, title='"x"') == '<p title="&quot;x&quot;">a3None</p>'


def test_formats_of_numbers() -> None:
    assert [format_p_value(value) for value in (None, 0.0, 0.0004, 0.05, 1.0)] == [
        "—",
        "< 0.001",
        "< 0.001",
        "0.050",
        "1.000",
    ]
    assert [format_bytes(count) for count in (None, 12, 2048, 1 << 20, 5 << 40)] == [
        None,
        "12 B",
        "2.0 KiB",
        "1.0 MiB",
        "5120.0 GiB",
    ]
    assert [format_duration(seconds) for seconds in (None, 0.25, 59.96, 61, 3700)] == [
        None,
        "0.2 s",
        "1 min 0 s",
        "1 min 1 s",
        "61 min 40 s",
    ]
    assert [
        format_effect(value)
        for value in (None, Effect(), Effect(mean=-0.001), Effect(mean=0.5, low=0.4))
    ] == ["—", "—", "0.00", "+0.50"]


def test_the_page_shows_features_apart_from_the_circuit() -> None:
    page = render_page(with_feature(), {}, [])
    assert "2 nodes: L9H6, L10H0" in page
    assert "Features of saes/eight (resid_pre of layer 10)" in page
    assert "Did not hold: L10F7." in page
    assert "it is small" in page
    assert "&lt;script&gt;" in page
    assert "of the feature&#x27;s change: +0.80" in page or "of the feature's change: +0.80" in page
