"""Jobs are small: tensors and edits are packed, and the server's code unpacks them."""

from __future__ import annotations

import pickle

import pytest
import torch

from discovery.backends.remote.jobs import pack_edit, pack_tensor
from discovery.backends.remote.server_code import unpack_tensor
from discovery.interventions import Edit
from discovery.sites import Site


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_is_sent_as_its_distinct_vectors(dtype):
    """Rows as in a sweep: one position of each comes from another run."""
    base, other = torch.randn(2, 6, 400, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = base.repeat(6, 1, 1)
    rows[torch.arange(6), torch.arange(6)] = other
    packed = pack_tensor(rows)
    assert torch.equal(unpack_tensor(packed), rows)
    assert len(packed["rows"]) == 12
    assert len(pickle.dumps(packed)) < len(pickle.dumps(rows)) / 2
    assert torch.equal(pack_tensor(base), base)  # nothing would be gained
    view = base[:, 3:]
    assert pack_tensor(view).untyped_storage().nbytes() == view.nbytes  # not all of its storage
    assert pack_tensor(torch.zeros(0, 4)).shape == (0, 4)
    assert pack_tensor(None) is None


def test_an_edit_by_index_is_sent_with_its_own_pairs_only():
    values = torch.arange(40.0).reshape(10, 4)
    packed = pack_edit(Edit(Site("z", 0), values, index=torch.tensor([7, 2, 7])))
    assert torch.equal(unpack_tensor(packed["value"])[packed["index"]], values[[7, 2, 7]])
    assert len(packed["value"]) == 2
