"""What the residual stream says about the next token: logit lens and direct logit attribution."""

from __future__ import annotations

from discovery.methods.readout.direct_attribution import (
    Contribution,
    DirectAttribution,
    direct_logit_attribution,
)
from discovery.methods.readout.logit_lens import LensReading, LensToken, LogitLens, logit_lens

__all__ = [
    "Contribution",
    "DirectAttribution",
    "LensReading",
    "LensToken",
    "LogitLens",
    "direct_logit_attribution",
    "logit_lens",
]
