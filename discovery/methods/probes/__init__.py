"""Linear probes with controls: what can be read from an activation, and whether the model uses it.

`examples` makes labelled prompts, `classifier` fits and tests one probe, `removal` takes the
direction of a probe out of the activation, and `probe` puts them together.
"""

from __future__ import annotations

from discovery.methods.probes.probe import ProbeCell, ProbeResult, probe
from discovery.methods.probes.removal import DirectionRemoval

__all__ = ["DirectionRemoval", "ProbeCell", "ProbeResult", "probe"]
