"""What the residual stream says about the next token: logit lens and direct logit attribution."""

from __future__ import annotations

from discovery.methods.readout.logit_lens import LensReading, LensToken, LogitLens, logit_lens

__all__ = ["LensReading", "LensToken", "LogitLens", "logit_lens"]
