"""Handles say how to load a model again, whatever the server's defaults are."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from benchmarks.random_models.tiny_models import save_hugging_face
from mcp_server.errors import UnknownModelError
from mcp_server.session import AllowedPaths, ServerSettings, lazy_discovery
from mcp_server.session.models import RESERVED_BYTES, ModelCache
from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
    connect_over_stdio,
    make_server,
)

pytestmark = pytest.mark.anyio
SPREAD = "only nnsight runs a model that is spread over devices"


def make_cache(models_dir: Path, **more: Any) -> ModelCache:
    return ModelCache(
        AllowedPaths(ServerSettings(models_dir=models_dir, runs_dir=models_dir / "runs", **more))
    )


@pytest.mark.parametrize(
    ("handle", "defaults", "expected"),
    [
        ("toy", {}, 'load_model(model="toy")'),
        ("bundled@cpu,bfloat16", {}, 'load_model(model="bundled", device="cpu", dtype="bfloat16")'),
        ("bundled", {"dtype": "float64"}, 'load_model(model="bundled", dtype="float32")'),
        ("bundled@float64", {"dtype": "float64"}, 'load_model(model="bundled", dtype="float64")'),
        (
            "bundled",
            {"device": "cpu", "backend": "nnsight"},
            'load_model(model="bundled", backend="auto", device="auto")',
        ),
        ("toy@v2", {}, 'load_model(model="toy@v2")'),
        (
            "gpt2@remote",
            {"device": "cpu", "backend": "transformerlens", "dtype": "float16"},
            'load_model(model="gpt2", remote=true)',
        ),
        ("toy@device_map", {"device": "cpu"}, 'load_model(model="toy", device_map="auto")'),
        ("toy@transformerlens", {}, 'load_model(model="toy", backend="transformerlens")'),
        ("toy@v2@cuda:1", {}, 'load_model(model="toy@v2", device="cuda:1")'),
    ],
)
def test_an_unknown_handle_is_answered_with_the_call_that_gives_it(
    tmp_path: Path, handle: str, defaults: Any, expected: str
) -> None:
    for name in ("toy", "toy@v2"):
        (tmp_path / name).mkdir()
    cache = make_cache(tmp_path, **defaults)
    with pytest.raises(UnknownModelError) as error:
        cache.get(handle)
    assert f"Call {expected}:" in error.value.cure
    arguments = dict(
        part.split("=") for part in expected[len("load_model(") : -1].replace('"', "").split(", ")
    )
    name = arguments.pop("model")
    options = {"remote": "remote" in arguments, "spread": "device_map" in arguments}
    request = cache.resolve_request(
        name, arguments.get("backend"), arguments.get("device"), arguments.get("dtype"), **options
    )  # type: ignore[arg-type]
    assert cache.make_model_id(request) == handle


async def test_a_model_is_spread_over_devices(models: Path, tmp_path: Path) -> None:
    save_hugging_face(models / "small", "gpt2")
    async with Client(make_server(models, tmp_path / "runs", device="cpu")) as client:
        outline = await call_tool_ok(
            client, "load_model", model="small", device_map="auto", load=False
        )
        assert (outline["model_id"], outline["backend"], outline["chosen"]) == (
            "small@device_map",
            "nnsight",
            SPREAD,
        )
        loaded = await call_tool_ok(client, "load_model", model="small", device_map="auto")
        assert (
            loaded["model_id"],
            loaded["backend"],
            loaded["chosen"],
            loaded["already_loaded"],
        ) == (
            "small@device_map",
            "nnsight",
            SPREAD,
            False,
        )
        assert loaded["warnings"] == []  # all of them fit into memory


@pytest.mark.parametrize(
    "contradiction",
    [{"device_map": "auto", "device": "cpu"}, {"device_map": "auto", "remote": True}],
)
async def test_arguments_that_contradict_each_other_are_refused_with_and_without_loading(
    contradiction: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    save_hugging_face(models / "small", "gpt2")
    async with Client(make_server(models, tmp_path / "runs", device="cpu")) as client:
        description_error, loading_error = [
            await call_tool_error(client, "load_model", model="small", load=load, **contradiction)
            for load in (False, True)
        ]
        assert description_error == loading_error


async def test_a_model_that_does_not_fit_is_announced_before_it_is_loaded(
    models: Path, tmp_path: Path
) -> None:
    save_hugging_face(models / "small", "gpt2")
    async with Client(make_server(models, tmp_path / "runs", device="cpu")) as client:
        outline = await call_tool_ok(client, "load_model", model="small", load=False)
        assert "up to 2 billion" in outline["chosen"]
        (models / "small" / "config.json").write_text(
            (models / "small" / "config.json")
            .read_text()
            .replace('"n_embd": 16', '"n_embd": 1600000')
        )
        warned = (await call_tool_ok(client, "load_model", model="small", load=False))["warnings"]
        assert "does not fit" in warned[0]
        assert "does not fit" in await call_tool_error(client, "load_model", model="small")


def test_only_so_many_models_are_dropped_as_make_room(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least recently used is dropped first, and its memory is free before the next is chosen.

    That holds although the objects of a model refer to one another.
    """
    for name in ("a", "b", "c"):
        save_hugging_face(models / name, "gpt2")
    cache = make_cache(models)
    requests = {
        name: cache.resolve_request(name, "transformerlens", "cpu", "float32")
        for name in ("a", "b", "c")
    }
    weights = {
        name: weakref.ref(cache.load(requests[name])[0].backend.bridge.original_model)
        for name in ("a", "b")
    }  # type: ignore[attr-defined]
    free = {"a": 2 * RESERVED_BYTES, "b": 2 * RESERVED_BYTES}  # what each gives back
    monkeypatch.setattr(
        lazy_discovery,
        "read_free_memory",
        lambda device: sum(free[name] for name, ref in weights.items() if ref() is None),
    )
    cache.load(requests["c"])
    assert (
        [name for name, ref in weights.items() if ref() is None],
        cache.is_loaded("b@transformerlens,cpu"),
    ) == (["a"], True)
    cache.unload("b@transformerlens,cpu")
    assert weights["b"]() is None


def test_what_a_model_holds_of_a_device(models: Path) -> None:
    cache = make_cache(models)
    loaded = [
        cache.load(cache.resolve_request("induction", backend, "cpu", dtype))[0]
        for backend, dtype in ((None, "float32"), (None, "float64"))
    ]
    assert [one.bytes_on("cpu") for one in loaded] == [
        width * loaded[0].backend.info.n_params for width in (4, 8)
    ]
    assert loaded[0].bytes_on("cuda") == 0
    bundled = [
        cache.load(cache.resolve_request("bundled", None, None, None, **options))[0]
        for options in ({"spread": True}, {})
    ]
    assert (
        bundled[0].bytes_on("cpu")
        == bundled[1].bytes_on("cpu")
        == 4 * bundled[1].backend.info.n_params
    )  # all of it fits


async def test_a_server_started_in_a_model_directory(models: Path, tmp_path: Path) -> None:
    async with Client(make_server(models / "induction", tmp_path / "runs")) as client:
        assert (await call_tool_ok(client, "load_model", model="."))["model_id"] == "."
        await call_tool_ok(client, "unload_model", model_id=".")
        assert 'load_model(model=".")' in await call_tool_error(
            client, "check_task", model_id=".", task="task.jsonl"
        )


async def test_both_backends_in_one_server(models: Path, tmp_path: Path) -> None:
    """nnsight is imported into a process that already serves, and traces in worker threads."""
    sweeps = []
    async with connect_over_stdio(models, tmp_path / "runs") as client:
        for backend in ("nnsight", "transformerlens", "nnsight"):
            loaded = await call_tool_ok(client, "load_model", model="induction", backend=backend)
            assert loaded["backend"] == backend
            sweep = await call_tool_ok(
                client,
                "patch_sweep",
                model_id=loaded["model_id"],
                task=INDUCTION_TASK,
                site="head_out",
                pairs=8,
                top=3,
            )
            sweeps.append(
                [
                    (cell["layer"], cell["head"], pytest.approx(cell["effect"], abs=1e-4))
                    for cell in sweep["top"]
                ]
            )
    assert sweeps[0] == sweeps[1] == sweeps[2]


async def test_what_a_model_is_before_it_is_loaded(models: Path, tmp_path: Path) -> None:
    """Its facts and its memory are those of the loaded model, but nothing is loaded."""
    async with Client(make_server(models, tmp_path / "runs")) as client:
        outline = await call_tool_ok(client, "load_model", model="induction", load=False)
        assert (
            outline["loaded"],
            outline["already_loaded"],
            outline["fingerprint"],
            outline["seconds"],
        ) == (
            False,
            False,
            None,
            None,
        )
        assert (await call_tool_ok(client, "list_models"))["loaded"] == []
        assert outline["memory"]["loading"] > outline["memory"]["weights"] > 0
        result = await call_tool_ok(client, "load_model", model="induction")
        assert (result["loaded"], result["already_loaded"]) == (True, False)
        again = await call_tool_ok(client, "load_model", model="induction", load=False)
        assert (again["loaded"], again["already_loaded"], again["memory"]["loading"]) == (
            True,
            True,
            None,
        )
    assert (outline["tasks"], result["tasks"]) == (None, [])
    for facts in (outline, result):
        for own in ("loaded", "fingerprint", "seconds", "warnings", "tasks"):
            del facts[own]
        del facts["memory"]["free"]
    assert outline == result


async def test_what_cannot_be_loaded_cannot_be_described(tmp_path: Path) -> None:
    save_hugging_face(tmp_path / "granite", "granite")
    async with Client(make_server(tmp_path, tmp_path / "runs")) as client:
        assert "Use backend 'transformerlens'" in await call_tool_error(
            client, "load_model", model="granite", backend="nnsight", load=False
        )
        assert "nowhere" in await call_tool_error(client, "load_model", model="nowhere", load=False)
