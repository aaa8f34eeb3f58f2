"""nnsight's own simulation of a server gives what a local model gives.

`test_contract` runs on the simulation too. The network is tried in `test_ndif`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from benchmarks.random_models.tiny_models import (
    ARCHITECTURES,
    OTHER_ARCHITECTURES,
    VOCAB,
    save_hugging_face,
    save_native,
)
from discovery.agent import discover, resume
from discovery.agent.saved.run_folder import read_settings
from discovery.backends.base import Batch
from discovery.backends.loading.load import load_model
from discovery.errors import MeasurementError, ModelError, SiteError
from discovery.methods.ablation import ablate_heads
from discovery.methods.patching import patch_sweep
from discovery.sites import SITE_NAMES, ActivationKind, Site
from discovery.store import open_run
from discovery.tasks import load_task

TOKENS = torch.randint(VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))
LAST = torch.tensor([6, 4, 5])
UNKNOWN = ("codegen", "falcon", "falcon_sequential", "granite")
QUICK = ("gpt2", "gemma2")
KINDS = [name for name in (*ARCHITECTURES, *OTHER_ARCHITECTURES) if name not in UNKNOWN]


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
    ours = tiny_models.load(name, "nnsight")
    theirs = tiny_models.load(name, "remote")
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
    expected, result = (model.run(Batch(TOKENS, LAST), sites) for model in (ours, theirs))
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=0)
    for site in sites:
        torch.testing.assert_close(
            result.activations[site], expected.activations[site], atol=1e-5, rtol=0
        )
    for layer in range(ours.info.n_layers):
        torch.testing.assert_close(
            theirs.head_weights(layer), ours.head_weights(layer), atol=1e-6, rtol=0
        )
    assert abilities_of(ours) - abilities_of(theirs) - {"last_position_only"} == {
        "prefix",
        "gradients",
    }
    # A server caps all of Gemma 2's logits before the columns are selected.
    expected_more = {"columns"} if name == "gemma2" else set()
    assert abilities_of(theirs) - abilities_of(ours) == expected_more


def abilities_of(model):
    return {name for name, is_possible in vars(model.abilities).items() if is_possible}


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
    expected, sweep = (patch_sweep(model, task, site) for model in bundled)
    torch.testing.assert_close(sweep.values, expected.values, atol=1e-5, rtol=0, equal_nan=True)
    if site == "q":
        before = theirs.service.requests
        for ablation in ("mean", "resample", "zero"):
            result, expected = (
                ablate_heads(model, task, ["a0.h1", "m2"], ablation=ablation)
                for model in (theirs, ours)
            )
            torch.testing.assert_close(result.per_pair, expected.per_pair, atol=1e-5, rtol=0)
        assert theirs.service.requests > before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_discovery_finds_the_same_circuit(bundled, tmp_path):
    """A run that computed on a server is resumed on a server."""
    runs = []
    for model, remote in zip(bundled, (False, "local"), strict=True):
        load = {"model": "bundled", "backend": "nnsight", "device": "cpu", "remote": remote}
        runs.append(
            discover(model, load_task("ioi", model, pairs=48), runs_dir=tmp_path, load=load)
        )
    ours, theirs = (run.circuit for run in runs)
    assert [node.id for node in ours.nodes] == [node.id for node in theirs.nodes]
    assert ours.verdict == theirs.verdict
    effects = [
        [
            getattr(node.effect, direction)
            for node in circuit.nodes
            if node.effect
            for direction in ("denoising", "noising")
        ]
        for circuit in (ours, theirs)
    ]
    assert any(effects[0])
    for mine, their in zip(*effects, strict=True):
        assert (mine is None) == (their is None)
        assert mine is None or their.mean == pytest.approx(mine.mean, abs=1e-5)
    assert read_settings(open_run(tmp_path, runs[1].run_id)).load.remote == "local"
    assert resume(runs[1].run_id, runs_dir=tmp_path).circuit == theirs


def test_prefixes_restricted_runs_and_gradients_are_refused(bundled):
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
    ("arguments", "words"),
    [
        ({"backend": "transformerlens"}, "TransformerLens runs no remote model"),
        ({"device": "cuda"}, "cannot be chosen for a remote model"),
        ({"remote": "elsewhere"}, "remote is 'elsewhere'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, words):
    with pytest.raises(ModelError, match=words):
        load_model("bundled", **{"remote": "local", **arguments})


def test_models_that_ndif_would_not_run_are_refused(folder):
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_model(save_hugging_face(folder, "gpt2"), remote="local")
    with pytest.raises(ModelError, match="native format"):
        load_model(save_native(folder / "native").path, remote="local")
