"""Keys and values of earlier positions: rows and positions of them can be taken."""

from __future__ import annotations

import torch

from discovery.backends.kv_cache import Prefix


def test_a_prefix_takes_rows_and_positions():
    keys = torch.arange(2 * 1 * 4 * 3.0).reshape(2, 1, 4, 3)
    prefix = Prefix((keys, keys + 100), (keys + 200, keys + 300))
    part = prefix.take(torch.tensor([1, 1, 0]), 2)
    assert part.keys[1].shape == (3, 1, 2, 3)
    torch.testing.assert_close(part.keys[1][2], keys[0, :, :2] + 100)
    torch.testing.assert_close(part.values[0][0], keys[1, :, :2] + 200)
    assert prefix.nbytes == 4 * keys.nbytes
