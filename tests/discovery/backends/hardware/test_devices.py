"""Devices: names that are unknown, and devices that this machine does not have."""

from __future__ import annotations

import pytest
import torch

from discovery.backends.hardware.devices import choose_device
from tests.discovery.backends.loading.refusals import refuse


@pytest.mark.parametrize(
    "device", ["gpu", "", "cpu:first", "cpu:0", "auto:0", "cuda:", "cuda:x", "mps:0", "CPU"]
)
def test_an_unknown_device(device):
    assert f"device {device!r} is not known" in refuse("anything", device=device).cause


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_device_that_is_not_here(device):
    fault = refuse("anything", device=device)
    assert device in fault.cause
    assert "device cpu" in fault.cure


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has more"
)
def test_the_device_that_is_there():
    assert choose_device("auto") == choose_device("cpu") == "cpu"
