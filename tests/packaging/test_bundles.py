"""The manifests of plugins: they are what the generator writes, and what each format asks for.

The formats' own validators run in `make conformance` (Claude Code, MCP bundles). The rules below
are written from the specifications that `mcp_server/setup/bundles.py` cites.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from mcp_server.__main__ import main
from mcp_server.resources.skills import list_skills
from mcp_server.server.command import parse_serve_arguments
from mcp_server.setup.bundles import (
    build_cursor_link,
    build_manifests,
    build_server_manifest,
    build_vscode_link,
    format_manifest,
    read_project,
    write_bundles,
)

REPOSITORY = "https://github.com/example/circuit-scout"
VERSIONED = [
    ".claude-plugin/plugin.json",
    "plugin.json",
    "gemini-extension.json",
    "manifest.json",
]
AGENT_PLUGIN_FIELDS = {
    "$schema": str,
    "name": str,
    "version": str,
    "description": str,
    "author": dict,
    "homepage": str,
    "repository": str,
    "license": str,
    "keywords": list,
    "extensions": dict,
}


def read(root: Path, name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((root / name).read_text(encoding="utf-8"))
    return manifest


@pytest.mark.parametrize("name", list(build_manifests(read_project())))
def test_the_checkout_has_what_the_generator_writes(name: str, root: Path) -> None:
    expected = format_manifest(build_manifests(read_project())[name])
    assert (root / name).read_text(encoding="utf-8") == expected, "run `make bundles`"


def test_there_is_one_version(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {name: read(root, name)["version"] for name in VERSIONED}
    versions["server.json"] = build_server_manifest(read_project(), REPOSITORY)["version"]
    assert set(versions.values()) == {project["version"]}
    facts = read_project()
    assert facts.description == project["description"]
    assert list(facts.keywords) == project["keywords"]
    assert facts.license == project["license"]


def test_nothing_pretends_to_be_published(root: Path) -> None:
    """Without a release there is no package to name, and no address of a repository."""
    assert not (root / "server.json").exists()
    for name in build_manifests(read_project()):
        text = (root / name).read_text(encoding="utf-8")
        assert not re.search(r"uvx|pypi|github\.com|homepage|repository", text)


def test_no_text_installs_from_the_package_index(root: Path) -> None:
    folders = ("discovery", "mcp_server", "docs", "skills")
    texts = [root / "README.md", root / "Makefile"]
    texts += [
        path
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.suffix in {".py", ".md"}
    ]
    promise = re.compile(r"(?:install|uvx|run)(?: -\S+| --\S+)* (?:circuit-scout|\{DISTRIBUTION\})")
    found = {
        f"{path.name}: {match[0]}"
        for path in texts
        for match in promise.finditer(path.read_text(encoding="utf-8"))
    }
    # These install the plugin from a marketplace that was added by its Git address.
    assert found <= {"setup.md: install circuit-scout"}


def test_what_the_plugins_start_exists(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entries = [
        read(root, ".claude-plugin/plugin.json")["mcpServers"]["circuit-scout"],
        read(root, "mcp.json")["mcpServers"]["circuit-scout"],
        read(root, "gemini-extension.json")["mcpServers"]["circuit-scout"],
    ]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for entry in entries:
        assert entry["command"] in project["scripts"]
        assert entry["args"][0] == "serve"
        parse_serve_arguments(entry["args"][1:])
    words = read(root, "manifest.json")["server"]["mcp_config"]["args"]
    assert words[:5] == ["run", "--directory", "${__dirname}", "circuit-scout", "serve"]
    directory = [word.replace("${user_config.models_dir}", str(tmp_path)) for word in words[5:]]
    settings, _ = parse_serve_arguments(directory)
    assert settings.models_dir == tmp_path
    assert main(["serve", "--help"]) == 0
    assert (root / read(root, "manifest.json")["server"]["entry_point"]).is_file()


def test_the_agent_plugin_has_only_what_its_closed_schema_knows(root: Path) -> None:
    """Agent Plugins 1.0.0, sections 5.2 to 5.5 and 7.2."""
    manifest = read(root, "plugin.json")
    address = "https://agent-plugins.org/schemas/1.0.0"
    assert manifest["$schema"] == f"{address}/plugin.schema.json"
    assert set(manifest) <= set(AGENT_PLUGIN_FIELDS)
    assert all(isinstance(value, AGENT_PLUGIN_FIELDS[key]) for key, value in manifest.items())
    assert set(manifest["author"]) <= {"name", "email", "url"}
    name = r"(?!.*(?:--|\.\.))[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?"
    assert re.fullmatch(name, manifest["name"])
    servers = read(root, "mcp.json")
    assert set(servers) == {"$schema", "mcpServers"}
    assert servers["$schema"] == f"{address}/mcp.schema.json"
    for server in servers["mcpServers"].values():
        assert server["type"] == "stdio"
        assert set(server) <= {"type", "command", "args", "env", "cwd"}


def test_the_claude_plugin_and_its_marketplace(root: Path) -> None:
    plugin = read(root, ".claude-plugin/plugin.json")
    market = read(root, ".claude-plugin/marketplace.json")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", plugin["name"])
    assert market["owner"]["name"]
    [offer] = market["plugins"]
    assert offer["name"] == plugin["name"]
    assert offer["source"] == "./"
    assert [name for name in list_skills() if not (root / "skills" / name).is_dir()] == []


def test_the_bundle_for_claude_desktop(root: Path) -> None:
    """Manifest 0.4, kind `uv`: pyproject.toml is in the bundle, and no dependency is."""
    manifest = read(root, "manifest.json")
    assert manifest["manifest_version"] == "0.4"
    assert {"name", "version", "description", "author", "server"} <= set(manifest)
    assert set(manifest["server"]) == {"type", "entry_point", "mcp_config"}
    for option in manifest["user_config"].values():
        assert {"type", "title", "description"} <= set(option)
    ignored = (root / ".mcpbignore").read_text(encoding="utf-8").split()
    assert not {"pyproject.toml", "discovery/", "mcp_server/", "manifest.json"} & set(ignored)
    folders = {path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."}
    packed = folders - {word.rstrip("/") for word in ignored}
    assert packed - {"circuit_scout.egg-info"} == {"discovery", "mcp_server", "skills"}


def test_the_entry_of_the_registry() -> None:
    """server.json of 2025-12-11."""
    manifest = build_server_manifest(read_project(), REPOSITORY)
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", manifest["name"])
    assert manifest["name"] == "io.github.example/circuit-scout"
    assert 1 <= len(manifest["description"]) <= 100
    [package] = manifest["packages"]
    assert set(package) >= {"registryType", "identifier", "version", "transport"}
    assert package["version"] == manifest["version"] != "latest"
    assert package["transport"] == {"type": "stdio"}
    for argument in package["packageArguments"]:
        assert argument["type"] == "positional"
        assert argument["value"]
    for address in ("git@github.com:a/b", "https://example.org/a/b", "https://github.com/a"):
        with pytest.raises(ValueError, match=r"https://github\.com/OWNER/NAME"):
            build_server_manifest(read_project(), address)


def test_the_generator_writes_a_whole_plugin_anywhere(tmp_path: Path, root: Path) -> None:
    command = [sys.executable, "-m", "mcp_server.setup.bundles", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "plugin.json" in done.stdout
    assert (tmp_path / "skills" / "find-circuit" / "SKILL.md").is_file()
    assert not (tmp_path / "server.json").exists()
    written = write_bundles(tmp_path, REPOSITORY)
    assert tmp_path / "server.json" in written
    assert tmp_path / "skills" not in written
    done = subprocess.run(
        [*command, "--repository", "x"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "error: 'x' is not the address" in done.stderr


def test_the_links_of_the_readme_install_what_the_plugins_start(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    cursor, vscode = build_cursor_link(), build_vscode_link()
    assert f"({cursor})" in readme
    assert f"({vscode})" in readme
    entry = {"command": "circuit-scout", "args": ["serve"]}
    queries = [parse_qs(urlsplit(link).query, strict_parsing=True) for link in (cursor, vscode)]
    assert [query["name"] for query in queries] == [["circuit-scout"]] * 2
    assert json.loads(base64.b64decode(queries[0]["config"][0])) == entry
    assert json.loads(queries[1]["config"][0]) == {"type": "stdio", **entry}
