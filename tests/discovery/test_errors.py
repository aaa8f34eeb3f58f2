"""The exception tree: a message has two lines, and the docstring draws the tree."""

from __future__ import annotations

import inspect
import re

import pytest

from discovery import errors
from discovery.errors import BackendMismatchError, DiscoveryError, Interrupted, ModelError

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]


def test_a_message_is_its_cause_then_its_cure():
    fault = DiscoveryError("pairs is 0.", "Ask for at least 1 pair.")
    assert (fault.cause, fault.cure) == ("pairs is 0.", "Ask for at least 1 pair.")
    assert str(fault) == "pairs is 0.\nAsk for at least 1 pair."


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not Interrupted])
def test_everything_a_caller_can_fix_is_a_discovery_error(kind):
    assert issubclass(kind, DiscoveryError)
    assert isinstance(kind("cause", "cure"), Exception)


def test_an_interruption_is_no_error():
    assert not issubclass(Interrupted, DiscoveryError)


def test_a_backend_that_differs_is_a_model_that_cannot_be_used():
    assert issubclass(BackendMismatchError, ModelError)


def test_the_docstring_draws_the_tree():
    drawn = set(
        re.findall(r"^\s+(?:│ +)?(?:[├└]── )?([A-Z]\w+) {2,}\S", errors.__doc__ or "", re.MULTILINE)
    )
    assert drawn == {kind.__name__ for kind in CLASSES}
