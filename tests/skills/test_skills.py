"""The skills are valid, name only tools and arguments that exist, and come with the server."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mcp.server.mcpserver.tools import Tool
from mcp.types import GetPromptResult, TextContent

from discovery import load_model, load_task
from discovery.sites import Node
from mcp_server.resources.skills import find_skills_dir, list_skills
from mcp_server.server.server import build_server
from mcp_server.session import ServerSettings
from mcp_server.tools.arguments import PairArgument
from mcp_server.tools.registry import build_tools

ROOT = Path(__file__).resolve().parents[2]
SKILLS = sorted(path.parent for path in (ROOT / "skills").glob("*/SKILL.md"))
PAGES = sorted((ROOT / "skills").rglob("*.md"))
TOOLS: dict[str, Tool] = {tool.name: tool for tool in build_tools(ServerSettings())}
ALLOWED = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
CALL = re.compile(rf"\b({'|'.join(TOOLS)})(\((?:[^()]|\n)*\))")
WORD = re.compile(r"`([a-z]+(?:_[a-z]+)+)`")

every_skill = pytest.mark.parametrize("skill", SKILLS, ids=lambda path: path.name)
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda path: path.relative_to(ROOT / "skills").as_posix()
)


def read_front_matter(skill: Path) -> dict[str, str]:
    head = (skill / "SKILL.md").read_text(encoding="utf-8").split("---\n")[1]
    return dict(line.split(": ", 1) for line in head.strip().splitlines())


@every_skill
def test_the_front_matter_follows_the_specification(skill: Path) -> None:
    facts = read_front_matter(skill)
    assert set(facts) <= ALLOWED
    assert facts["name"] == skill.name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", facts["name"])
    assert 40 <= len(facts["description"]) <= 1024
    assert len((skill / "SKILL.md").read_text(encoding="utf-8").splitlines()) < 500


@every_skill
def test_the_official_validator_passes(skill: Path) -> None:
    validator = Path(sys.executable).with_name("agentskills")
    process = subprocess.run(
        [validator, "validate", skill], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr


@every_page
def test_every_call_is_one_that_the_tool_takes(page: Path) -> None:
    check_calls(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TOOLS)
def test_every_call_in_a_description_is_one_that_the_tool_takes(name: str) -> None:
    check_calls(TOOLS[name].description)


@pytest.mark.anyio
async def test_every_call_in_a_prompt_is_one_that_the_tool_takes() -> None:
    server = build_server(ServerSettings())
    for prompt in await server.list_prompts():
        needed = {
            argument.name: "a1.h1" for argument in prompt.arguments or [] if argument.required
        }
        result = await server.get_prompt(prompt.name, needed)
        assert isinstance(result, GetPromptResult)
        check_calls(
            "".join(
                message.content.text
                for message in result.messages
                if isinstance(message.content, TextContent)
            )
        )


def check_calls(text: str) -> None:
    """Check that each call in a text is valid.

    If a call leaves a value open (`run_id=...`, or only `run_id`), this checks only its argument
    names.
    """
    for name, arguments in CALL.findall(text):
        call = _call(f"{name}{arguments}")
        values = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        open_names = [ast.unparse(word) for word in call.args]
        assert {*values, *open_names} <= set(TOOLS[name].parameters["properties"]), (
            name,
            arguments,
        )
        if not open_names and ... not in values.values():
            TOOLS[name].fn_metadata.arg_model.model_validate(values)


def test_every_node_of_an_example_is_in_the_bundled_circuit() -> None:
    """The example of `evaluate_circuit` is the whole circuit that `make demo` finds.

    README shows a part of what `make demo` prints.
    """
    description = TOOLS["evaluate_circuit"].description
    [example] = re.findall(r"Example: .*nodes=(\[.*?\])", description, flags=re.DOTALL)
    circuit = {"a0.h0", "a0.h3", "m0", "a1.h0", "a1.h3", "a2.h0", "m2", "m3"}
    assert set(json.loads(example)) == circuit
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "The circuit has 8 nodes" in readme
    shown = re.findall(r"^  (L\dH\d|MLP\d)  ", readme, flags=re.MULTILINE)
    assert shown
    assert {str(Node.parse(label)) for label in shown} <= circuit
    texts = [page.read_text(encoding="utf-8") for page in PAGES] + [
        tool.description for tool in TOOLS.values()
    ]
    example_nodes = {
        node
        for text in texts
        for nodes in re.findall(r"nodes=(\[.*?\])", text, flags=re.DOTALL)
        for node in json.loads(nodes)
    }
    assert example_nodes <= circuit


def test_the_label_of_the_pair_names_the_token_that_differs() -> None:
    text = (find_skills_dir() / "find-circuit" / "references" / "technique.md").read_text(
        encoding="utf-8"
    )
    [block] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    [pair] = load_task([json.loads(block)], load_model("bundled")).pairs
    [difference] = [
        position
        for position, (clean, corrupted) in enumerate(zip(pair.clean, pair.corrupted, strict=True))
        if clean != corrupted
    ]
    assert pair.labels["S2"] == difference


@every_page
def test_every_link_points_to_a_page(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+\.md)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


@every_page
def test_every_json_block_is_a_pair(page: Path) -> None:
    for block in re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        PairArgument.model_validate(json.loads(block))


@every_page
def test_every_word_in_code_is_a_known_name(page: Path) -> None:
    schemas = [tool.parameters for tool in TOOLS.values()] + [
        tool.output_schema for tool in TOOLS.values() if tool.output_schema
    ]
    known = set(re.findall(r"[a-z]+(?:_[a-z]+)+", json.dumps(schemas))) | set(TOOLS)
    known |= {"node_out", "no_behaviour", "not_run"}  # in `evaluation`, `verdict` and `conditions`
    assert set(WORD.findall(page.read_text(encoding="utf-8"))) - known == set()


def test_the_skill_is_found_and_every_tool_is_in_it() -> None:
    assert list_skills() == [path.name for path in SKILLS]
    assert (find_skills_dir() / "find-circuit" / "SKILL.md").is_file()
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    mentioned = {name for name in TOOLS if name in text}
    assert {
        "load_model",
        "check_task",
        "patch_sweep",
        "ablate_heads",
        "evaluate_circuit",
        "discover_circuit",
        "run_status",
        "get_circuit",
    } <= mentioned


def _call(text: str) -> ast.Call:
    node = ast.parse(
        text.replace("true", "True").replace("false", "False").replace("null", "None"), mode="eval"
    ).body
    assert isinstance(node, ast.Call)
    return node
