"""The sweep engine: turns changed prompts into batches, computes only what can matter, and counts the work."""

from discovery.backends.hardware.memory import out_of_memory
from discovery.engine.block import Block
from discovery.engine.cost import BACKWARD, Meter, Progress, full_work, row_work
from discovery.engine.engine import Engine, prepared
from discovery.engine.gradients import attribution_work, attributions
from discovery.engine.memory import Need, sweep_bytes
from discovery.engine.prompts import SIDES, Prompts, Side, other
from discovery.engine.rows import Rows, Window

__all__ = [
    "BACKWARD",
    "SIDES",
    "Block",
    "Engine",
    "Meter",
    "Need",
    "Progress",
    "Prompts",
    "Rows",
    "Side",
    "Window",
    "attribution_work",
    "attributions",
    "full_work",
    "other",
    "out_of_memory",
    "prepared",
    "row_work",
    "sweep_bytes",
]
