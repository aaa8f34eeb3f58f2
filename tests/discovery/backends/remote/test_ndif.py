"""NDIF, with a fake server: nnsight's own client, a network, and a server without this project."""

from __future__ import annotations

import gc
import importlib.resources
import json
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mcp import Client

from discovery import cli
from discovery.backends.base import Batch
from discovery.backends.loading.load import load_model
from discovery.backends.remote import ndif
from discovery.backends.remote.status import listen_to_status
from discovery.engine import Engine
from discovery.errors import Interrupted, MemoryLimitError, ModelError, RemoteError
from discovery.interventions import add
from discovery.methods.ablation import ablate_heads
from discovery.methods.patching import patch_sweep
from discovery.sites import Site
from discovery.tasks import load_task
from tests.mcp_server.servers import call_tool_ok, make_server

REPO = "tiny/bundled"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
KEY = "6b0f5c1e-ffff-4222-8333-444455556666"
BUNDLED = Path(str(importlib.resources.files("discovery.backends"))) / "bundled"


@dataclass(frozen=True)
class NdifProcess:
    """The process of the fake server."""

    address: str

    def received_requests(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.address}/received") as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def fail_next(self, *ends: str) -> None:
        """Say how the next requests shall end, each in turn."""
        for end in ends:
            request = urllib.request.Request(f"{self.address}/next", end.encode())
            urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def ndif_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NdifProcess]:
    """Start a server, and make a hub cache with the model's configuration and tokenizer only."""
    script = Path(__file__).with_name("ndif_server.py")
    process = subprocess.Popen(
        [sys.executable, script, BUNDLED, REPO, KEY], cwd="/", stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    cache = tmp_path_factory.mktemp("hub")
    snapshot = cache / "models--tiny--bundled" / "snapshots" / COMMIT
    shutil.copytree(BUNDLED, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    with pytest.MonkeyPatch.context() as patch:
        from discovery.backends.nnsight.backend import import_nnsight

        import_nnsight()
        from huggingface_hub import constants
        from nnsight.modeling import huggingface

        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        for name in (REPO, "tiny/asleep"):
            patch.setitem(huggingface._ID_CACHE, name, name)  # the spelling that the hub would give
        shutil.copytree(snapshot.parent.parent, cache / "models--tiny--asleep")
        address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        patch.setenv("NDIF_HOST", address)
        patch.setenv("NDIF_API_KEY", KEY)
        yield NdifProcess(address)
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def model(ndif_process: NdifProcess) -> Any:
    return load_model(REPO, remote=True)


@pytest.fixture(scope="module")
def local_model() -> Any:
    return load_model("bundled", backend="nnsight", device="cpu")


def test_its_description(ndif_process, model, local_model):
    info = model.info
    assert (info.remote, info.source, info.revision, info.fingerprint) == (
        ndif_process.address,
        REPO,
        COMMIT,
        f"{REPO}@{COMMIT}",
    )
    assert "computed at" in info.warnings[0]
    assert str(model.device) == "cpu"
    changed = {"name", "source", "revision", "fingerprint", "remote", "warnings", "backend_reason"}
    assert {k: v for k, v in vars(info).items() if k not in changed} == {
        k: v for k, v in vars(local_model.info).items() if k not in changed
    }
    lost = {
        name
        for name, value in vars(local_model.abilities).items()
        if value and not getattr(model.abilities, name)
    }
    assert lost == {"prefix", "last_position_only", "gradients"}
    assert all(parameter.is_meta for parameter in model.model._module.parameters())
    assert (model.resident_weight_bytes, local_model.resident_weight_bytes) == (
        0,
        4 * info.n_params,
    )


def test_a_request_is_small_and_holds_no_key(ndif_process, model):
    """The model's name is written as nnsight does it; the key is in the header only."""
    assert len(ndif_process.received_requests()) >= model.service.requests
    for request in ndif_process.received_requests()[: model.service.requests]:
        assert (request["key"], request["key_inside"], request["env"]) == (
            KEY,
            False,
            {"attn_implementation": "eager"},
        )
        name, _, settings = request["model_key"].partition(":")
        assert name == "nnsight.modeling.transformers.TransformersModel"
        assert json.loads(settings) == {
            "repo_id": REPO,
            "revision": None,
            "task": "text-generation",
        }
        assert request["bytes"] < 40_000
    assert KEY not in repr(model.service)
    assert model.service.requests <= 18


def test_runs_sweeps_and_ablations_are_those_of_a_local_model(model, local_model):
    tokens = torch.randint(600, (3, 7), generator=torch.Generator().manual_seed(0))
    last = torch.tensor([6, 4, 5])
    edits = [add(Site("z", 1), torch.ones(1)), add(Site("resid_mid", 2), torch.ones(1))]
    sites = [Site("pattern", 3), Site("q", 2), Site("resid_post", 3)]
    theirs, ours = (each.run(Batch(tokens, last), sites, edits) for each in (model, local_model))
    torch.testing.assert_close(theirs.logits, ours.logits, atol=1e-5, rtol=0)
    for site in sites:
        torch.testing.assert_close(
            theirs.activations[site], ours.activations[site], atol=1e-5, rtol=0
        )
    results = []
    for each in (model, local_model):
        task = load_task("ioi", each, pairs=4)
        engine = Engine(each, task)
        results.append(
            [
                patch_sweep(each, task, "resid_pre", engine=engine).values,
                patch_sweep(each, task, "head_out", engine=engine).values,
                ablate_heads(each, task, ["a1.h0", "a2.h3"], engine=engine).per_pair,
            ]
        )
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_its_queue_is_reported_as_progress(model):
    task = load_task("ioi", model, pairs=4)
    labels = []
    patch_sweep(model, task, "resid_pre", progress=lambda done, total, what: labels.append(what))
    assert "unchanged prompts · NDIF: queued: Your job is in position 2." in labels
    assert any(
        what.endswith(" · NDIF: running") and what.startswith("resid_pre") for what in labels
    )


def test_an_interruption_ends_the_waiting(ndif_process, model):
    ndif_process.fail_next("wait")

    def stop(done: float, total: float, what: str) -> None:
        if "position 2" in what:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        patch_sweep(model, load_task("ioi", model, pairs=4), "resid_pre", progress=stop)


def test_if_its_memory_runs_out_at_load(ndif_process):
    ndif_process.fail_next("memory")
    with pytest.raises(
        MemoryLimitError, match=r"Memory ran out while tiny/bundled was loaded\."
    ) as caught:
        load_model(REPO, remote=True)
    assert "20.00 GiB" in caught.value.detail


@pytest.mark.slow
def test_if_its_memory_runs_out_a_batch_is_halved(ndif_process, model, local_model):
    task = load_task("ioi", model, pairs=8)
    before = model.service.requests
    ndif_process.fail_next("memory")
    values = patch_sweep(model, task, "resid_pre").values
    torch.testing.assert_close(
        values, patch_sweep(local_model, task, "resid_pre").values, atol=1e-5, rtol=0
    )
    assert model.service.requests - before > 4


def test_a_job_that_fails(ndif_process, model):
    broken = Batch(
        torch.zeros(1, 3, dtype=torch.long),
        torch.tensor([2]),
        start=1,
        residual=torch.zeros(1, 3, 7),
    )
    with pytest.raises(RemoteError, match=r"failed on NDIF \(RuntimeError\)") as caught:
        model.run(broken)
    assert "128" in caught.value.detail
    ndif_process.fail_next("late")
    with pytest.raises(ModelError, match="did not run tiny/bundled") as caught:
        model.run(Batch(torch.zeros(1, 3, dtype=torch.long), torch.tensor([2])))
    assert "exceeded the execution timeout" in caught.value.detail
    assert "The model runs there now" in caught.value.cure
    assert not isinstance(caught.value, RemoteError)


def one_run(model: Any) -> Any:
    return model.run(Batch(torch.tensor([[3, 1, 2]]), torch.tensor([2])), [Site("z", 1)])


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(ndif, "RETRY_PAUSES", (0.05, 0.05))


# websocket-client leaves its socket to the collector where the server closed first.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("end", "words", "detail"),
    [
        ("close", "closed the connection", "validation error"),
        ("busy", "refuses the request", "Too many requests"),
        ("nothing", "something that is no answer", "no list of 1 answers"),
        ("garbage", "something that is no answer", "ZstdError"),
        ("half", "something that is no answer", "ZstdError"),
        ("lacking", "something that is no answer", "lacks 1 of 1 activations"),
    ],
)
def test_a_lost_request_is_sent_again(
    ndif_process, model, local_model, at_once, end, words, detail
):
    """A job changes nothing there. After some tries it is given up, and a later one works."""
    before = model.service.requests
    statuses: list[str] = []
    ndif_process.fail_next(end)
    with listen_to_status(statuses.append):
        result = one_run(model)
    assert model.service.requests - before == 2
    assert any(words in status and "Sent again in" in status for status in statuses)
    torch.testing.assert_close(
        result.activations[Site("z", 1)],
        one_run(local_model).activations[Site("z", 1)],
        atol=1e-5,
        rtol=0,
    )
    ndif_process.fail_next(end, end, end)
    with pytest.raises(ModelError, match=words) as caught:
        one_run(model)
    assert not isinstance(caught.value, RemoteError)
    assert ("resumed" in caught.value.cure, detail in caught.value.detail) == (True, True)
    del caught
    gc.collect()
    one_run(model)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_wait_before_another_try_can_be_interrupted(ndif_process, model, monkeypatch):
    monkeypatch.setattr(ndif, "RETRY_PAUSES", (60.0,))

    def stop(status: str) -> None:
        if "Sent again" in status:
            raise Interrupted("enough")

    ndif_process.fail_next("busy")
    with listen_to_status(stop), pytest.raises(Interrupted):
        one_run(model)
    gc.collect()


def test_a_server_that_never_answered_is_not_asked_again(ndif_process, monkeypatch):
    monkeypatch.setattr(ndif, "RETRY_PAUSES", (60.0,))
    ndif_process.fail_next("garbage")
    with pytest.raises(ModelError, match="something that is no answer"):
        load_model(REPO, remote=True)


def test_a_server_that_hands_out_no_session(model, monkeypatch):
    """It accepts connections and sends nothing: nnsight's client alone would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(model.service, "address", f"http://127.0.0.1:{mute.getsockname()[1]}")
        monkeypatch.setattr(ndif, "CONNECT_SECONDS", 0.2)
        monkeypatch.setattr(ndif, "RETRY_PAUSES", ())
        with pytest.raises(ModelError, match=r"does not answer \(WebSocketTimeoutException\)"):
            one_run(model)


def test_without_a_key_nothing_is_sent(ndif_process, monkeypatch):
    from nnsight.schema.config import CONFIG

    before = len(ndif_process.received_requests())
    monkeypatch.delenv("NDIF_API_KEY")
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(ModelError, match="needs an NDIF API key") as caught:
        load_model(REPO, remote=True)
    assert "NDIF_API_KEY" in caught.value.cure
    assert len(ndif_process.received_requests()) == before


def test_a_wrong_key_is_not_repeated(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "wrong-but-secret")
    with pytest.raises(ModelError, match="refuses the API key") as caught:
        load_model(REPO, remote=True)
    assert "secret" not in f"{caught.value} {caught.value.detail} {caught.value.__notes__}"


@pytest.mark.parametrize("key", ["sec\rret", "sécret", "sec ret"])
def test_a_key_that_cannot_be_one_is_neither_sent_nor_repeated(ndif_process, monkeypatch, key):
    before = len(ndif_process.received_requests())
    monkeypatch.setenv("NDIF_API_KEY", key)
    with pytest.raises(ModelError, match="holds characters that no key has") as caught:
        load_model(REPO, remote=True)
    assert "ret" not in f"{caught.value} {caught.value.detail}".replace("characters", "")
    assert len(ndif_process.received_requests()) == before
    monkeypatch.setenv("NDIF_API_KEY", f" {KEY}\n")  # as in a file or a container's secret
    assert ndif.NdifService.from_environment()._key == KEY


@pytest.mark.parametrize(
    "host",
    ["ndif.example", "http://", "http://[::1", "http://127.0.0.1:port", "ftp://ndif.example"],
)
def test_a_malformed_address_is_refused(monkeypatch, host):
    monkeypatch.setenv("NDIF_HOST", host)
    with pytest.raises(ModelError, match="is no address"):
        load_model(REPO, remote=True)


def test_a_server_that_is_not_there(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NDIF_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"does not answer \(ConnectError\)"):
            load_model(REPO, remote=True)


def test_a_model_that_does_not_run_there():
    with pytest.raises(ModelError, match="did not run tiny/asleep") as caught:
        load_model("tiny/asleep", remote=True)
    assert f"It runs {REPO}." in caught.value.cure
    assert "CANT_ACCOMMODATE" in caught.value.detail


def test_what_a_server_decides_cannot_be_chosen(model):
    with pytest.raises(ModelError, match="computes tiny/bundled in float32"):
        load_model(REPO, remote=True, dtype="bfloat16")
    with pytest.raises(ModelError, match="models of the hub"):
        load_model(BUNDLED, remote=True)


@pytest.mark.anyio
async def test_the_server(ndif_process, tmp_path):
    """Nothing is sent until a call says so. The model then waits in NDIF's queue only."""
    before = len(ndif_process.received_requests())
    async with Client(make_server(tmp_path, tmp_path / "runs")) as client:
        plan = await call_tool_ok(client, "load_model", model=REPO, remote=True, load=False)
        assert (
            plan["loaded"],
            plan["model_id"],
            plan["memory"]["loading"],
            len(ndif_process.received_requests()),
        ) == (False, f"{REPO}@remote", 0, before)
        loaded = await call_tool_ok(client, "load_model", model=REPO, remote=True)
        assert (loaded["device"], loaded["backend"], loaded["memory"]["weights"]) == (
            ndif_process.address,
            "nnsight",
            0,
        )
        sent = len(ndif_process.received_requests())
        assert sent > before
        await call_tool_ok(client, "load_model", model=REPO, remote=True)
        assert len(ndif_process.received_requests()) == sent
        check = await call_tool_ok(
            client, "check_task", model_id=loaded["model_id"], task="ioi", pairs=12
        )
        assert check["metric_clean"] > 0


def test_the_command_line(ndif_process, capfd):
    assert (
        cli.main(["tasks", "check", "ioi", "--model", REPO, "--remote", "--pairs", "12", "--json"])
        == 0
    )
    output = capfd.readouterr()
    assert json.loads(output.out)["metric_clean"] > 0
    assert f"Loading the model {REPO} on NDIF" in output.err
    assert "computed at" in output.err
    assert KEY not in output.out + output.err
    assert (
        cli.main(
            ["tasks", "check", "ioi", "--model", REPO, "--remote", "--backend", "transformerlens"]
        )
        == 2
    )
    assert "TransformerLens runs no remote model" in capfd.readouterr().err
