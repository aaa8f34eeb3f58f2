"""What a backend is asked to run: sites in order, prefixes in parts."""

from __future__ import annotations

import torch

from discovery.backends.base import ACTIVATION_ORDER, Prefix, forward_order
from discovery.sites import Site


def test_sites_sort_as_a_forward_pass_meets_them():
    sites = [Site(kind, layer) for layer in (1, 0) for kind in reversed(ACTIVATION_ORDER)]  # type: ignore[arg-type]
    expected = [(kind, layer) for layer in (0, 1) for kind in ACTIVATION_ORDER]
    assert [(site.kind, site.layer) for site in sorted(sites, key=forward_order)] == expected


def test_a_prefix_takes_rows_and_positions():
    keys = torch.arange(2 * 1 * 4 * 3.0).reshape(2, 1, 4, 3)
    prefix = Prefix((keys, keys + 100), (keys + 200, keys + 300))
    taken = prefix.take(torch.tensor([1, 1, 0]), 2)
    assert taken.keys[1].shape == (3, 1, 2, 3)
    torch.testing.assert_close(taken.keys[1][2], keys[0, :, :2] + 100)
    torch.testing.assert_close(taken.values[0][0], keys[1, :, :2] + 200)
    assert prefix.nbytes == 4 * keys.nbytes
