"""Runs as plain data: nnsight's own simulation of a server gives what a local model gives. The network is tried in `test_ndif`."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import get_args

import pytest
import torch

from benchmarks.random_models.tiny_models import (
    ARCHITECTURES,
    OTHER_ARCHITECTURES,
    VOCAB,
    TinyModels,
    save_hugging_face,
    save_native,
    save_tokenizer,
)
from discovery.agent import discover, resume
from discovery.agent.saved_run import read_settings
from discovery.backends.base import Batch
from discovery.backends.loading.load import load_model
from discovery.backends.remote.jobs import pack_edit, pack_tensor
from discovery.backends.remote.server_code import unpack_tensor
from discovery.backends.remote.status import report_status
from discovery.errors import MeasurementError, ModelError, SiteError
from discovery.interventions import Edit
from discovery.methods.ablation import ablate_heads
from discovery.methods.patching import patch_sweep
from discovery.sites import SITE_NAMES, ActivationKind, Site
from discovery.store import open_run
from discovery.tasks import load_task
from tests.discovery.backends import test_contract as contract

TOKENS = torch.randint(VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))
LAST = torch.tensor([6, 4, 5])
UNKNOWN = ("codegen", "falcon", "falcon_sequential", "granite")
QUICK = ("gpt2", "gemma2")
KINDS = [name for name in (*ARCHITECTURES, *OTHER_ARCHITECTURES) if name not in UNKNOWN]


class RemoteTinyModels(TinyModels):
    """The same models, in the simulation."""

    def load(self, name, backend="nnsight", dtype="float32"):
        path = save_tokenizer(self.path(name))
        if (name, backend, dtype) not in self._loaded:
            remote = {"remote": "local"} if backend == "remote" else {"backend": backend}
            self._loaded[name, backend, dtype] = load_model(
                path, device="cpu", dtype=dtype, **remote
            )
        return self._loaded[name, backend, dtype]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    return RemoteTinyModels(tmp_path_factory.mktemp("remote"))


@pytest.fixture(scope="session")
def backend():
    return "remote"


@pytest.fixture(scope="module")
def bundled():
    return load_model("bundled", backend="nnsight", device="cpu"), load_model(
        "bundled", remote="local"
    )


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS],
)
def test_every_site_of_every_architecture(tiny_models, name):
    ours, theirs = tiny_models.load(name), tiny_models.load(name, "remote")
    sites = []
    for site in [
        Site(kind, layer)
        for kind in get_args(ActivationKind)
        for layer in range(ours.info.n_layers)
    ]:
        try:
            ours.run(Batch(TOKENS, LAST), [site])
        except SiteError:
            with pytest.raises(SiteError):
                theirs.run(Batch(TOKENS, LAST), [site])
        else:
            sites.append(site)
    expected, found = (model.run(Batch(TOKENS, LAST), sites) for model in (ours, theirs))
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    for site in sites:
        torch.testing.assert_close(
            found.activations[site], expected.activations[site], atol=1e-5, rtol=0
        )
    for layer in range(ours.info.n_layers):
        torch.testing.assert_close(
            theirs.head_weights(layer), ours.head_weights(layer), atol=1e-6, rtol=0
        )
    more = (
        {"columns"} if name == "gemma2" else set()
    )  # the server's logits are capped before they are picked
    assert {
        k for k, v in vars(ours.abilities).items() if v and not getattr(theirs.abilities, k)
    } - {"last_position_only"} == {"prefix", "gradients"}
    assert {
        k for k, v in vars(theirs.abilities).items() if v and not getattr(ours.abilities, k)
    } == more


plains = contract.plains
kind = pytest.fixture(
    params=[
        name if name == "gpt2" else pytest.param(name, marks=pytest.mark.slow)
        for name in contract.MODULE_NAMES
    ]
)(lambda request: request.param)
test_reads = contract.test_reads_are_the_plain_activations
test_two_edits = contract.test_two_edits_of_one_site_are_applied_in_their_order
test_by_index = contract.test_an_edit_by_index_gathers_the_rows_pairs
test_patterns = contract.test_patterns_are_attention_weights_and_weigh_the_values
test_padding = contract.test_right_padding_changes_nothing
test_start = contract.test_a_layer_can_be_the_start
test_after_start = contract.test_edits_and_reads_after_a_start_are_the_plain_ones
test_end = contract.test_a_layer_can_be_the_end
test_no_answer = contract.test_without_an_answer_position_there_are_no_logits


@pytest.mark.parametrize(
    ("kind", "site_kind", "operation"),
    [
        edit
        if edit[0] == "gpt2"
        and edit[1:] in (("q", "add"), ("z", "replace"), ("resid_mid", "scale"))
        else pytest.param(*edit, marks=pytest.mark.slow)
        for edit in contract.EDITS
    ],
)
def test_edits(tiny_models, backend, plains, kind, site_kind, operation):
    contract.test_an_edit_at_each_site_is_the_plain_one(
        tiny_models, backend, plains, kind, site_kind, operation
    )


@pytest.mark.parametrize(
    "kind",
    ["gpt2", *[pytest.param(name, marks=pytest.mark.slow) for name in contract.SEQUENTIAL[1:]]],
)
def test_a_start_behind_the_attention(tiny_models, backend, plains, kind):
    contract.test_a_layer_can_be_started_after_its_attention(tiny_models, backend, plains, kind)


@pytest.mark.parametrize(
    "site",
    [
        "resid_mid",
        "q",
        *[
            pytest.param(s, marks=pytest.mark.slow)
            for s in SITE_NAMES
            if s not in ("resid_mid", "q")
        ],
    ],
)
def test_sweeps(bundled, site):
    ours, theirs = bundled
    task = load_task("ioi", ours, pairs=4)
    expected, found = (patch_sweep(model, task, site) for model in bundled)
    torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=0, equal_nan=True)
    if site == "q":
        before = theirs.service.requests
        for ablation in ("mean", "resample", "zero"):
            got, wanted = (
                ablate_heads(model, task, ["a0.h1", "m2"], ablation=ablation)
                for model in (theirs, ours)
            )
            torch.testing.assert_close(got.per_pair, wanted.per_pair, atol=1e-5, rtol=0)
        assert theirs.service.requests > before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_discovery_finds_the_same_circuit(bundled, tmp_path):
    """And a run that computed elsewhere is opened there again."""
    found = []
    for model, remote in zip(bundled, (False, "local"), strict=True):
        load = {"model": "bundled", "backend": "nnsight", "device": "cpu", "remote": remote}
        found.append(
            discover(model, load_task("ioi", model, pairs=48), runs_dir=tmp_path, load=load)
        )
    ours, theirs = (each.circuit for each in found)
    assert [node.id for node in ours.nodes] == [node.id for node in theirs.nodes]
    assert ours.verdict == theirs.verdict
    effects = [
        [
            getattr(node.effect, way)
            for node in each.nodes
            if node.effect
            for way in ("denoising", "noising")
        ]
        for each in (ours, theirs)
    ]
    assert any(effects[0])
    for mine, their in zip(*effects, strict=True):
        assert (mine is None) == (their is None)
        assert mine is None or their.mean == pytest.approx(mine.mean, abs=1e-5)
    assert read_settings(open_run(tmp_path, found[1].run_id)).load.remote == "local"
    assert resume(found[1].run_id, runs_dir=tmp_path).circuit == theirs


def test_what_it_does_not_do(bundled):
    ours, theirs = bundled
    batch = Batch(TOKENS, LAST)
    for refused in (batch, replace(batch, last_position_only=True)):
        with pytest.raises(RuntimeError, match="not sent to a server"):
            theirs.run(refused, keep_prefix=not refused.last_position_only)
    with pytest.raises(MeasurementError, match="no gradients"):
        theirs.run(batch, grad=True)
    task = load_task("ioi", ours, pairs=4)
    with pytest.raises(MeasurementError, match="no gradients"):
        patch_sweep(theirs, task, "head_out_by_position", screen=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"backend": "transformerlens"}, "TransformerLens runs no remote model"),
        ({"device": "cuda"}, "cannot be chosen for a remote model"),
        ({"remote": "elsewhere"}, "remote is 'elsewhere'"),
    ],
)
def test_what_cannot_be_asked_for(asked, words):
    with pytest.raises(ModelError, match=words):
        load_model("bundled", **{"remote": "local", **asked})


def test_models_that_ndif_would_not_run(folder):
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_model(save_hugging_face(folder, "gpt2"), remote="local")
    with pytest.raises(ModelError, match="native format"):
        load_model(save_native(folder / "native").path, remote="local")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_is_sent_as_its_different_vectors(dtype):
    """The rows of a sweep: one position of each is another run's."""
    base, other = torch.randn(2, 6, 400, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = base.repeat(6, 1, 1)
    rows[torch.arange(6), torch.arange(6)] = other
    small = pack_tensor(rows)
    assert torch.equal(unpack_tensor(small), rows)
    assert len(small["rows"]) == 12
    assert len(pickle.dumps(small)) < len(pickle.dumps(rows)) / 2
    assert torch.equal(pack_tensor(base), base)  # nothing is gained
    assert (
        pack_tensor(base[:, 3:]).untyped_storage().nbytes() == base[:, 3:].nbytes
    )  # and a view's storage stays here
    assert pack_tensor(torch.zeros(0, 4)).shape == (0, 4)
    assert pack_tensor(None) is None


def test_of_an_edit_by_index_only_the_pairs_that_are_there(folder):
    sent = pack_edit(
        Edit(Site("z", 0), torch.arange(40.0).reshape(10, 4), index=torch.tensor([7, 2, 7]))
    )
    assert torch.equal(
        unpack_tensor(sent["value"])[sent["index"]], torch.arange(40.0).reshape(10, 4)[[7, 2, 7]]
    )
    assert len(sent["value"]) == 2


def test_where_nobody_listens_the_log_is_told(caplog):
    with caplog.at_level("INFO", logger="circuit_scout.ndif"):
        report_status("NDIF: queued")
    assert caplog.messages == ["NDIF: queued"]
