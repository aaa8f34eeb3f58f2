"""What only the nnsight backend does, and that it agrees with TransformerLens on every site.

Tested here: what importing nnsight leaves behind, and which architectures the backend knows.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any, get_args

import pytest
import torch

from benchmarks.random_models.tiny_models import OTHER_ARCHITECTURES, VOCAB, save_hugging_face
from discovery.backends.base import Batch
from discovery.backends.loading.load import load_model
from discovery.errors import ModelError, SiteError
from discovery.interventions import replace_with
from discovery.sites import ActivationKind, Site

TOKENS = torch.randint(VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))
LAST = torch.tensor([6, 4, 5])
UNKNOWN = ("codegen", "falcon", "falcon_sequential", "granite")
KNOWN = [name for name in OTHER_ARCHITECTURES if name not in UNKNOWN]
QUICK = ("gemma2", "mixtral", "phi", "qwen2_moe", "qwen3")
# Abilities that only the nnsight backend has, because it traces inside the attention, or that it
# alone lacks.
MORE = {"gpt_neo": "pattern", "gptj": "pattern", "mpt": "prefix", "xglm": "last_position_only"}
IN_A_FRESH_PROCESS = """
import sys
from discovery import load_model
if {first!r}:
    import nnsight
load_model(sys.argv[1], device="cpu")
assert bool({first!r}) == ("nnsight" in sys.modules)
load_model(sys.argv[1], backend="nnsight", device="cpu")
assert bool({first!r}) == hasattr(object(), "save")
if not {first!r}:
    import anyio.streams.tls, mcp.client.session, mcp.server
"""


def dtype_of(name: str) -> str:
    return "float32" if name in ("mixtral", "xglm", "qwen2_moe") else "float64"


@pytest.mark.parametrize("first", ["", "the user's own"])
def test_the_import_leaves_no_method_behind(folder, root, first):
    """nnsight is imported on demand; its method `save` is removed unless the user imported it."""
    script = IN_A_FRESH_PROCESS.format(first=first)
    process = subprocess.run(
        [sys.executable, "-c", script, save_hugging_face(folder, "gpt2")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def activation(model: Any, site: Site) -> torch.Tensor | None:
    try:
        return model.run(Batch(TOKENS, LAST), [site]).activations[site]  # type: ignore[no-any-return]
    except SiteError:
        return None


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KNOWN],
)
def test_other_architectures_agree_with_transformer_lens_at_every_site(tiny_models, name):
    """So are the per-head outputs, the description of the model, and the shortcuts."""
    theirs, ours = (
        tiny_models.load(name, backend, dtype_of(name))
        for backend in ("transformerlens", "nnsight")
    )
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(
        ours.run(Batch(TOKENS, LAST)).logits, theirs.run(Batch(TOKENS, LAST)).logits, **close
    )
    for kind in get_args(ActivationKind):
        for layer in range(ours.info.n_layers):
            got = activation(ours, Site(kind, layer))
            expected = activation(theirs, Site(kind, layer))
            if got is None or expected is None:
                assert got is expected or (name, kind) == ("xglm", "pattern"), kind
            else:
                torch.testing.assert_close(
                    got, expected, **close, msg=lambda text, kind=kind: f"{kind}: {text}"
                )
    for layer in range(ours.info.n_layers if ours.abilities.linear_heads else 0):
        assert torch.equal(ours.head_weights(layer), theirs.head_weights(layer))
    own = {"backend": "", "copied": 0, "backend_reason": ""}
    assert {**vars(ours.info), **own} == {**vars(theirs.info), **own}
    more = {MORE[name]} if name in MORE else set()
    assert {
        field
        for field, value in vars(ours.abilities).items()
        if value != getattr(theirs.abilities, field)
    } == more


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_architecture_that_is_not_known_is_refused_at_load(folder, name):
    with pytest.raises(ModelError, match="does not know where models of type") as caught:
        load_model(save_hugging_face(folder, name), backend="nnsight", device="cpu")
    assert "Use backend 'transformerlens'" in caught.value.cure


@pytest.mark.parametrize(
    ("name", "changes"),
    [("opt", {"do_layer_norm_before": False}), ("gpt_bigcode", {"multi_query": False})],
)
def test_a_setting_that_moves_the_sites_is_refused_at_load(folder, name, changes):
    with pytest.raises(ModelError, match=f"only with {next(iter(changes))} = True"):
        load_model(save_hugging_face(folder, name, **changes), backend="nnsight", device="cpu")


@pytest.mark.parametrize("first", ["transformerlens", "nnsight"])
def test_the_pattern_of_gemma_2_is_found_whichever_backend_loaded_one_first(folder, first):
    """TransformerLens wraps the attention function of every Gemma 2 in the process."""
    path = save_hugging_face(folder, "gemma2")
    second = load_model(
        path, backend="nnsight" if first == "transformerlens" else "transformerlens", device="cpu"
    )
    ours = (
        load_model(path, backend="nnsight", device="cpu") if first == "transformerlens" else second
    )
    pattern = Site("pattern", 1)
    assert ours.abilities.pattern
    seen = ours.run(Batch(TOKENS, LAST), [pattern]).activations[pattern]
    torch.testing.assert_close(seen.sum(-1), torch.ones_like(seen.sum(-1)))


def test_two_models_in_two_threads(folder):
    """One run at a time for each model; a trace belongs to its thread."""
    models = [
        load_model(
            save_hugging_face(folder / str(seed), "gpt2", seed), backend="nnsight", device="cpu"
        )
        for seed in (0, 1)
    ]
    site = Site("resid_pre", 1)
    expected = [model.run(Batch(TOKENS, LAST), [site]) for model in models]
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                out = models[number].run(Batch(TOKENS, LAST), [site])
                torch.testing.assert_close(out.logits, expected[number].logits)
                torch.testing.assert_close(
                    out.activations[site], expected[number].activations[site]
                )
        except BaseException as fault:  # noqa: BLE001  # raised in the test's own thread
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_the_pass_ends_with_the_last_site_that_is_wanted(tiny_models):
    """The blocks that follow never run."""
    model = tiny_models.load("gpt2", "nnsight")
    ran: list[int] = []
    handles = [
        block._module.register_forward_hook(lambda m, i, o, n=n: ran.append(n))
        for n, block in enumerate(model.traced_model.blocks)
    ]
    try:
        model.run(Batch(TOKENS, stop=3), [Site("attn_out", 1)])
        model.run(
            Batch(TOKENS, LAST, columns=torch.tensor([[1]] * 3)),
            edits=[replace_with(Site("z", 0), torch.zeros(1))],
        )
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 0, 1, 2]


def test_importing_the_backend_does_not_import_nnsight(root):
    script = (
        "import discovery.backends.loading.load, discovery.backends.nnsight.backend, sys; "
        "assert 'nnsight' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("name", ["opt", "native", "attn_only", "rotary"])
def test_patterns_that_transformer_lens_only_shows_can_be_replaced(tiny_models, name):
    assert (
        tiny_models.load(name, "nnsight").abilities.pattern,
        tiny_models.load(name).abilities.pattern,
    ) == (True, False)
