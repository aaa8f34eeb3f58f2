"""Paths stay inside the allowed directories, whatever a call names."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcp import Client

from mcp_server.errors import PathNotAllowedError
from mcp_server.session import AllowedPaths, ServerSettings
from tests.mcp_server.servers import call_tool_error, make_server


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model and a task beside the models directory."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "task.jsonl").write_text("{}")
    return directory


@pytest.fixture
def allowed_paths(tmp_path: Path, outside: Path) -> AllowedPaths:
    allowed = tmp_path / "models"
    (allowed / "toy" / "deep").mkdir(parents=True)
    (allowed / "toy" / "deep" / "tl_config.json").write_text("{}")
    (allowed / "toy" / "task.jsonl").write_text("{}")
    (allowed / "link").symlink_to(outside)
    return AllowedPaths(ServerSettings(runs_dir=tmp_path / "runs", models_dir=allowed))


def test_what_is_inside(allowed_paths: AllowedPaths, tmp_path: Path) -> None:
    deep = tmp_path / "models" / "toy" / "deep"
    assert allowed_paths.resolve_model("toy/deep") == str(deep)
    assert allowed_paths.resolve_model(str(deep)) == str(deep)
    assert allowed_paths.format_path(str(deep)) == "toy/deep"
    assert allowed_paths.list_models() == [deep]
    assert (
        allowed_paths.resolve_task_file("toy/task.jsonl")
        == tmp_path / "models" / "toy" / "task.jsonl"
    )
    assert (
        allowed_paths.resolve_model("bundled"),
        allowed_paths.resolve_model("gpt2"),
        allowed_paths.resolve_model("owner/name"),
    ) == ("bundled", "gpt2", "owner/name")


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "link",
        "toy/../../outside",
        "/etc",
        "~",
        "~root",
        "",
        "a/b/c",
        "..",
        "\0",
        "x" * 5000,
        "file:///etc",
    ],
)
def test_what_is_outside(allowed_paths: AllowedPaths, name: str) -> None:
    with pytest.raises(PathNotAllowedError):
        allowed_paths.resolve_model(name)
    with pytest.raises(PathNotAllowedError):
        allowed_paths.resolve_task_file(f"{name}/task.jsonl")


def test_a_refusal_does_not_say_what_is_there(allowed_paths: AllowedPaths, outside: Path) -> None:
    messages = []
    for path in (outside, outside.parent / "missing"):
        with pytest.raises(PathNotAllowedError) as error:
            allowed_paths.resolve_model(str(path))
        messages.append(str(error.value).replace(str(path), "PATH"))
    assert messages[0] == messages[1]


def test_a_directory_here_is_not_taken_for_a_hub_name(
    allowed_paths: AllowedPaths, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outside.parent)
    with pytest.raises(PathNotAllowedError):
        allowed_paths.resolve_model("outside")


def test_without_a_models_directory_nothing_is_read(tmp_path: Path) -> None:
    allowed_paths = AllowedPaths(ServerSettings(runs_dir=tmp_path / "runs"))
    with pytest.raises(PathNotAllowedError, match="without --models-dir"):
        allowed_paths.resolve_model(str(tmp_path))
    assert allowed_paths.list_models() == []


@pytest.fixture
def linked(tmp_path: Path) -> ServerSettings:
    """Every directory behind a symbolic link."""
    for name in ("models", "runs"):
        (tmp_path / f"real-{name}").mkdir()
        (tmp_path / name).symlink_to(tmp_path / f"real-{name}")
    return ServerSettings(runs_dir=tmp_path / "runs", models_dir=tmp_path / "models")


def test_a_message_has_neither_the_link_nor_where_it_leads(
    linked: ServerSettings, tmp_path: Path
) -> None:
    text = (
        f"{tmp_path}/models/toy and {tmp_path}/real-models/toy, "
        f"in {tmp_path}/runs and {tmp_path}/real-runs/one"
    )
    assert linked.redact_paths(text) == "toy and toy, in the runs directory and one"
    allowed_paths = AllowedPaths(linked)
    assert {
        allowed_paths.format_path(str(tmp_path / name / "toy" / "deep"))
        for name in ("models", "real-models")
    } == {"toy/deep"}


def test_a_relative_directory_is_not_taken_for_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ServerSettings(runs_dir=Path("runs"))
    assert (
        settings.redact_paths(f"scout://runs/x is in {tmp_path}/runs")
        == "scout://runs/x is in the runs directory"
    )


@pytest.mark.anyio
async def test_a_faulty_model_behind_a_link_is_told_without_its_place(
    linked: ServerSettings, tmp_path: Path
) -> None:
    (tmp_path / "real-models" / "empty").mkdir()
    async with Client(make_server(tmp_path / "models", linked.runs_dir)) as client:
        message = await call_tool_error(client, "load_model", model="empty")
    assert message.startswith("'empty' is a directory without config.json")


def test_a_server_of_a_project_shows_the_models_there(outside: Path, tmp_path: Path) -> None:
    allowed_paths = AllowedPaths(ServerSettings(runs_dir=tmp_path / "runs", working_dir=tmp_path))
    assert allowed_paths.list_models() == [outside]


def test_gguf_files_follow_the_rules_of_paths(
    allowed_paths: AllowedPaths, tmp_path: Path, outside: Path
) -> None:
    """A file, the one file of a directory, and each part of a model must lie inside."""
    models = tmp_path / "models"
    (outside / "secret.gguf").write_bytes(b"GGUF")
    (outside / "p-00002-of-00002.gguf").write_bytes(b"GGUF")
    for name in ("alone", "linked", "parts"):
        (models / name).mkdir()
    (models / "alone" / "m.gguf").write_bytes(b"GGUF")
    (models / "linked" / "m.gguf").symlink_to(outside / "secret.gguf")
    (models / "parts" / "p-00001-of-00002.gguf").write_bytes(b"GGUF")
    (models / "parts" / "p-00002-of-00002.gguf").symlink_to(outside / "p-00002-of-00002.gguf")
    assert allowed_paths.resolve_model("alone/m.gguf") == str(models / "alone" / "m.gguf")
    assert allowed_paths.resolve_model("alone") == str(models / "alone")
    assert allowed_paths.format_path(str(models / "alone" / "m.gguf")) == "alone/m.gguf"
    for name in (
        "linked",
        "linked/m.gguf",
        "parts",
        "parts/p-00001-of-00002.gguf",
        "../outside/secret.gguf",
        str(outside / "secret.gguf"),
        "toy/task.jsonl",
    ):
        with pytest.raises(PathNotAllowedError):
            allowed_paths.resolve_model(name)
    listed = allowed_paths.list_models()
    assert models / "alone" / "m.gguf" in listed
    assert models / "linked" / "m.gguf" not in listed
