"""Fixtures of the backend tests: models behind each backend, and what they are compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.random_models.tiny_models import TinyModels, load_plain_module, save_tokenizer
from discovery.backends.loading.checks import ReferenceLogits, run_reference
from tests.discovery.backends.contract import LOCAL_BACKENDS
from tests.oracles.models.hooked_module import MODULE_NAMES, HookedModule

# The edits that are tried on a remote model in the fast tests; the slow ones try all.
QUICK_REMOTE_EDITS = (("q", "add"), ("z", "replace"), ("resid_mid", "scale"))


class TinyModelsByBackend(TinyModels):
    """Tiny models behind every backend; "remote" is nnsight's simulation of a server."""

    def load(self, name: str, backend: str = "transformerlens", dtype: str = "float32") -> Any:
        if backend != "remote":
            return super().load(name, backend, dtype)  # type: ignore[arg-type]
        from discovery.backends.loading.load import load_model

        key: Any = (name, backend, dtype)
        if key not in self._loaded:
            folder = self.folder / "remote" / name  # a copy, because it gets a tokenizer
            if not folder.is_dir():
                save_tokenizer(shutil.copytree(self.path(name), folder))
            self._loaded[key] = load_model(folder, device="cpu", dtype=dtype, remote="local")
        return self._loaded[key]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModelsByBackend:
    """Build and load each tiny model at most once in a session."""
    return TinyModelsByBackend(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session", params=LOCAL_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Run the test with each backend of this machine."""
    name: str = request.param
    return name


@pytest.fixture(params=list(MODULE_NAMES))
def architecture(request: pytest.FixtureRequest) -> str:
    """Run the test with each architecture that can be hooked by hand."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def plain_modules(tiny_models: TinyModelsByBackend) -> Callable[[str], HookedModule]:
    """Return a function that gives the plain module of an architecture, loaded once."""
    modules: dict[str, HookedModule] = {}

    def get(architecture: str) -> HookedModule:
        if architecture not in modules:
            module = load_plain_module(tiny_models.path(architecture), torch.float64)
            modules[architecture] = HookedModule(module, architecture)
        return modules[architecture]

    return get


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a path at which a test saves a model of its own."""
    return tmp_path / "model"


@pytest.fixture
def expected(tiny_models: TinyModels) -> ReferenceLogits:
    """Return the logits of the plain GPT-2 on the probe."""
    info = tiny_models.load("gpt2").info
    return run_reference(
        load_plain_module(tiny_models.path("gpt2")), info.d_vocab, info.n_ctx, "cpu"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the contract tests of remote models as slow, except for a few on GPT-2."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.parent != Path(__file__).parent or parameters.get("backend") != "remote":
            continue
        edit = (parameters.get("site_kind"), parameters.get("operation"))
        is_quick_edit = edit == (None, None) or edit in QUICK_REMOTE_EDITS
        if parameters["architecture"] != "gpt2" or not is_quick_edit:
            item.add_marker(pytest.mark.slow)
