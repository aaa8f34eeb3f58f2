"""The order in which a forward pass computes sites."""

from __future__ import annotations

from typing import get_args

from discovery.backends.base import forward_order
from discovery.sites import ActivationKind, Site

FORWARD_ORDER = (
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
)


def test_sites_sort_as_a_forward_pass_meets_them():
    assert set(FORWARD_ORDER) == set(get_args(ActivationKind))
    sites = [Site(kind, layer) for layer in (1, 0) for kind in reversed(FORWARD_ORDER)]  # type: ignore[arg-type]
    expected = [(kind, layer) for layer in (0, 1) for kind in FORWARD_ORDER]
    assert [(site.kind, site.layer) for site in sorted(sites, key=forward_order)] == expected
