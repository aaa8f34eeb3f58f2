"""The manifests by which clients install this server and its skills as a plugin.

    python -m mcp_server.setup.bundles DIR [--repository URL]

writes into DIR:

- `.claude-plugin/`: a Claude Code plugin and a marketplace that offers it
  (https://code.claude.com/docs/en/plugins-reference)
- `plugin.json`, `mcp.json`: an Agent Plugin, which Cursor, VS Code, Copilot CLI and Codex read
  (Agent Plugins Specification 1.0.0, https://agent-plugins.org)
- `gemini-extension.json`: a Gemini CLI extension
  (https://geminicli.com/docs/extensions/reference)
- `manifest.json`: an MCP bundle for Claude Desktop, of the kind `uv`
  (https://github.com/modelcontextprotocol/mcpb/blob/main/MANIFEST.md)
- `skills/`, unless it is there
- with `--repository`, `server.json` for the MCP registry
  (https://github.com/modelcontextprotocol/registry/tree/main/docs/reference/server-json)

The root of the checkout has all but the last, because clients install plugins from a Git address.
`server.json` says that a package is on the package index. It is therefore made only for a release
that is. Everything is told by the metadata of the installed project, so that there is one version.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mcp_server.resources.skills import find_skills_dir
from mcp_server.setup.configuration import SERVER_NAME

_AGENT_PLUGINS = "https://agent-plugins.org/schemas/1.0.0"
_SERVER_SCHEMA = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
_SHORT_DESCRIPTION = (
    "Find the circuit behind a language model's behaviour, and test whether it holds."
)
# A plugin cannot know where the script is, so that it must be on the path.
_LAUNCH = {"command": "circuit-scout", "args": ["serve"]}
_REPOSITORY = re.compile(r"https://github\.com/([A-Za-z0-9-]+)/[A-Za-z0-9._-]+?(?:\.git)?/?")


@dataclass(frozen=True, kw_only=True)
class Project:
    """What the manifests tell of the project.

    Attributes:
        name: the name of the distribution.
        version: its version.
        description: what it does, in one sentence.
        author: who made it.
        license: the SPDX identifier of its licence.
        keywords: what to find it by.
        python: the versions of Python that it runs on.
    """

    name: str
    version: str
    description: str
    author: str
    license: str
    keywords: tuple[str, ...]
    python: str


def read_project() -> Project:
    """Return the facts of the installed distribution."""
    facts = metadata.metadata("circuit-scout")
    return Project(
        name=facts["Name"],
        version=facts["Version"],
        description=facts["Summary"],
        author=facts["Author"],
        license=facts["License-Expression"],
        keywords=tuple(facts["Keywords"].split(",")),
        python=facts["Requires-Python"],
    )


def build_manifests(project: Project) -> dict[str, dict[str, Any]]:
    """Return every manifest that the root of the checkout has, by its place."""
    common = {
        "name": project.name,
        "version": project.version,
        "description": project.description,
    }
    credits_ = {"author": {"name": project.author}, "license": project.license}
    words = {"keywords": list(project.keywords)}
    return {
        ".claude-plugin/plugin.json": {
            **common,
            **credits_,
            **words,
            "mcpServers": {SERVER_NAME: _LAUNCH},
        },
        ".claude-plugin/marketplace.json": {
            "name": project.name,
            "description": project.description,
            "owner": {"name": project.author},
            "plugins": [{"name": project.name, "source": "./", "description": project.description}],
        },
        "plugin.json": {
            "$schema": f"{_AGENT_PLUGINS}/plugin.schema.json",
            **common,
            **credits_,
            **words,
        },
        "mcp.json": {
            "$schema": f"{_AGENT_PLUGINS}/mcp.schema.json",
            "mcpServers": {SERVER_NAME: {"type": "stdio", **_LAUNCH}},
        },
        "gemini-extension.json": {**common, "mcpServers": {SERVER_NAME: _LAUNCH}},
        "manifest.json": _build_bundle(project, {**common, **credits_, **words}),
    }


def _build_bundle(project: Project, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of the MCP bundle: uv installs the project and runs its script."""
    models_dir = {
        "type": "directory",
        "title": "Models and tasks",
        "description": "The directory from which models and task files may be read",
        "required": True,
    }
    words = ["run", "--directory", "${__dirname}", "circuit-scout", "serve"]
    words += ["--models-dir", "${user_config.models_dir}"]
    return {
        "manifest_version": "0.4",
        **facts,
        "display_name": "Circuit Scout",
        "server": {
            "type": "uv",
            "entry_point": "mcp_server/__main__.py",
            "mcp_config": {"command": "uv", "args": words},
        },
        "user_config": {"models_dir": models_dir},
        "tools_generated": True,
        "prompts_generated": True,
        "compatibility": {"runtimes": {"python": project.python}},
    }


def build_server_manifest(project: Project, repository: str) -> dict[str, Any]:
    """Return the entry of the MCP registry for a version that is on the package index.

    Args:
        project: the project.
        repository: the address of the repository on GitHub, whose owner the registry asks for.

    Raises:
        ValueError: if the address is not that of a repository on GitHub.
    """
    match = _REPOSITORY.fullmatch(repository)
    if match is None:
        raise ValueError(
            f"{repository!r} is not the address of a repository; "
            "write https://github.com/OWNER/NAME."
        )
    package = {
        "registryType": "pypi",
        "identifier": project.name,
        "version": project.version,
        "runtimeHint": "uvx",
        "transport": {"type": "stdio"},
        "packageArguments": [{"type": "positional", "value": "serve"}],
    }
    return {
        "$schema": _SERVER_SCHEMA,
        "name": f"io.github.{match[1]}/{project.name}",
        "title": "Circuit Scout",
        "description": _SHORT_DESCRIPTION,
        "repository": {"url": repository, "source": "github"},
        "version": project.version,
        "packages": [package],
    }


def build_cursor_link() -> str:
    """Return the link by which Cursor installs the server.

    https://cursor.com/docs/mcp/install-links; the web address leads to the deeplink, which pages
    such as GitHub's do not let through.
    """
    entry = base64.b64encode(json.dumps(_LAUNCH, separators=(",", ":")).encode()).decode()
    return f"https://cursor.com/en/install-mcp?name={SERVER_NAME}&config={quote(entry, safe='')}"


def build_vscode_link() -> str:
    """Return the link by which VS Code installs the server.

    https://code.visualstudio.com/api/extension-guides/ai/mcp, "Create an MCP installation URL".
    """
    entry = json.dumps({"type": "stdio", **_LAUNCH}, separators=(",", ":"))
    address = "https://vscode.dev/redirect/mcp/install"
    return f"{address}?name={SERVER_NAME}&config={quote(entry, safe='')}"


def write_bundles(folder: Path, repository: str | None = None) -> list[Path]:
    """Write the manifests into a folder, and the skills if it has none; return what was written.

    Raises:
        ValueError: if `repository` is not the address of a repository on GitHub.
        OSError: if the folder cannot be written.
    """
    project = read_project()
    manifests = build_manifests(project)
    if repository is not None:
        manifests["server.json"] = build_server_manifest(project, repository)
    for name, manifest in manifests.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(format_manifest(manifest), encoding="utf-8", newline="\n")
    written = [folder / name for name in manifests]
    if not (folder / "skills").exists():
        shutil.copytree(find_skills_dir(), folder / "skills")
        written.append(folder / "skills")
    return written


def format_manifest(manifest: dict[str, Any]) -> str:
    """Return a manifest as it is written."""
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the generator, and return its exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m mcp_server.setup.bundles")
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--repository", metavar="URL", help="also write server.json")
    args = parser.parse_args(argv)
    try:
        for path in write_bundles(args.folder, args.repository):
            sys.stdout.write(f"{path}\n")
    except (ValueError, OSError) as fault:
        sys.stderr.write(f"error: {fault}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
