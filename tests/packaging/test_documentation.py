"""The documentation cannot drift: its links lead somewhere, its code runs, its commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from discovery.cli.parser import TextRequested, build_parser
from discovery.graph import VERDICTS
from discovery.tasks import BUILTIN
from discovery.tasks.pairs import PromptPair, ReferenceLine
from discovery.tasks.task_file import read_task_file
from mcp_server.server.command import parse_serve_arguments
from mcp_server.session.settings import ServerSettings
from mcp_server.setup.command import parse_setup_arguments
from mcp_server.tools.registry import build_tools

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [
    *PAGES,
    *sorted((ROOT / "skills").rglob("*.md")),
    *sorted(ROOT.glob("benchmarks/*.md")),
    *sorted((ROOT / "discovery").rglob("*.md")),
]
MAX_README_LINES = 150
COMMAND = re.compile(
    r"^ *circuit-scout ((?:discover|tasks|runs|models|look|sae|doctor)\b[^`\n|#]*)", re.M
)
CITATION = re.compile(r"docs/(\w+)\.md(?:, \"([^\"]+)\")?")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tokens_of(path: Path) -> Iterator[Token]:
    """Every token of a page, those within a line included."""
    for token in MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def headings_of(path: Path) -> list[str]:
    tokens = list(tokens_of(path))
    return [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links_of(path: Path) -> Iterator[str]:
    for token in tokens_of(path):
        target = token.attrGet("href") or token.attrGet("src")
        if target is not None:
            yield unquote(str(target))
        if token.type in ("html_inline", "html_block"):
            yield from re.findall(r'(?:href|src)="([^"]+)"', token.content)


def code_blocks(language: str, pages: list[Path]) -> list[str]:
    return [
        token.content
        for page in pages
        for token in tokens_of(page)
        if token.type == "fence" and token.info == language
    ]


def run_environment(tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "CIRCUIT_SCOUT_RUNS_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in DOCUMENTS:
        for link in links_of(page):
            target, _, anchor = link.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            file = (page.parent / target).resolve() if target else page
            if not file.exists():
                broken.append(f"{name_of(page)}: {link}: there is no such file")
            elif anchor and anchor not in map(slug, headings_of(file)):
                broken.append(f"{name_of(page)}: {link}: there is no such heading")
    assert broken == []


def test_every_section_that_the_code_cites_exists() -> None:
    sources = [
        path
        for folder in ("discovery", "mcp_server", "benchmarks", "training", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__).resolve()
    ]
    broken, cited = [], 0
    for path in sources:
        for page, section in CITATION.findall(path.read_text(encoding="utf-8")):
            cited += 1
            file = ROOT / "docs" / f"{page}.md"
            if not file.exists() or (section and section not in headings_of(file)):
                broken.append(f"{name_of(path)}: docs/{page}.md, {section!r}")
    assert cited > 5
    assert broken == []


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(links_of(ROOT / "docs" / "README.md"))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} == listed


@pytest.mark.parametrize(
    "block", code_blocks("python", PAGES), ids=lambda text: text.split("import ")[1].split("\n")[0]
)
def test_each_python_block_runs(block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block],
        env=run_environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_task_lines_are_a_pair_and_a_reference_prompt(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(code_blocks("json", [ROOT / "docs" / "tasks.md"])))
    pair, reference = read_task_file(path).values()
    assert isinstance(pair, PromptPair)
    assert isinstance(reference, ReferenceLine)


def test_the_commands_that_are_named_exist() -> None:
    blocks = [block for page in PAGES if page.name != "interfaces.md" for block in fences(page)]
    commands = [command for block in blocks for command in COMMAND.findall(block)]
    assert len(commands) > 8
    parser = build_parser()
    for command in commands:
        parser.parse_args(shlex.split(command.replace("RUN_ID", "some-run")))


def test_the_lines_that_set_up_clients_are_understood() -> None:
    text = "\n".join(block for page in PAGES for block in fences(page))
    lines = re.findall(r"^circuit-scout setup\b([^\n#\[]*)", text, flags=re.MULTILINE)
    assert len(lines) > 4
    for words in lines:
        parse_setup_arguments(shlex.split(words), lambda words: True)


def fences(page: Path) -> list[str]:
    return [token.content for token in tokens_of(page) if token.type == "fence"]


def test_the_usage_in_the_interfaces_lists_every_command_and_verb() -> None:
    usage = fences(ROOT / "docs" / "interfaces.md")[0]
    parser = build_parser()
    for command, flags in re.findall(
        r"circuit-scout (\w+) +((?:.|\n)*?)(?=circuit-scout|\Z)", usage
    ):
        if command in ("serve", "setup", "new"):
            continue
        with pytest.raises(TextRequested):
            parser.parse_args([command, "--help"])
        for verb in re.findall(
            r"(?:\[|\| )(list|show|verify|features|export|check|info|train|lens|attribution|"
            r"edits)\b",
            flags,
        ):
            with pytest.raises(TextRequested):
                parser.parse_args([command, verb, "--help"])


def test_the_servers_that_are_started_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that makes a token comes before every line that needs it."""
    text = "\n".join(fences(ROOT / "docs" / "mcp.md"))
    pattern = r"^(?:export .*|.*circuit-scout serve.*|claude mcp add --transport http.*)$"
    lines = re.findall(pattern, text, flags=re.MULTILINE)
    making = "export CIRCUIT_SCOUT_TOKEN=$(openssl"
    exported = [number for number, line in enumerate(lines) if line.startswith(making)]
    assert len(exported) == 1
    needed = [number for number, line in enumerate(lines) if "$CIRCUIT_SCOUT_TOKEN" in line]
    assert needed
    assert all(exported[0] < number for number in needed)
    assert not re.search(r"--token \S*\$\(", text), "a token that nobody sees"
    monkeypatch.setenv("CIRCUIT_SCOUT_TOKEN", "0" * 48)
    commands = re.findall(r"^circuit-scout serve(.*)$", text, flags=re.MULTILINE)
    assert commands
    for words in commands:
        parse_serve_arguments(shlex.split(words))


def test_the_verdicts_the_tasks_and_the_tools_are_all_explained() -> None:
    for page in (README, (ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8")):
        table = re.findall(r"^\| (\w+) \|", page, flags=re.MULTILINE)
        assert [word for word in table if word in VERDICTS] == list(VERDICTS)
    tasks = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in tasks for name in BUILTIN)
    tools = {tool.name for tool in build_tools(ServerSettings())}
    interfaces = (ROOT / "docs" / "interfaces.md").read_text(encoding="utf-8")
    for text in (README, interfaces):
        assert tools <= set(re.findall(r"`(\w+)`", text))


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES


def test_no_placeholder_is_left() -> None:
    assert [name_of(page) for page in DOCUMENTS if "@@" in page.read_text(encoding="utf-8")] == []
