"""The engine runs changed prompts in batches, skips what cannot differ, and counts the work.

Methods describe changed prompts as `Rows`. An `Engine` cuts the pairs of a task into `Block`s whose
cached runs fit in memory; a block runs rows and returns the metric of each.
"""

from discovery.backends.hardware.memory import is_out_of_memory
from discovery.engine.block import Block
from discovery.engine.cost import BACKWARD_COST, Meter, prompt_macs, row_macs
from discovery.engine.engine import Engine, engine_for, new_reference
from discovery.engine.gradients import attribute_sites, average_gradients, estimate_attributions
from discovery.engine.memory import MemoryNeed, sweep_bytes
from discovery.engine.prompts import SIDES, Prompts, Side, base_side, other_side
from discovery.engine.reference_means import ReferenceMeans
from discovery.engine.rows import Rows, Window, is_pointwise

__all__ = [
    "BACKWARD_COST",
    "SIDES",
    "Block",
    "Engine",
    "MemoryNeed",
    "Meter",
    "Prompts",
    "ReferenceMeans",
    "Rows",
    "Side",
    "Window",
    "attribute_sites",
    "average_gradients",
    "base_side",
    "engine_for",
    "estimate_attributions",
    "is_out_of_memory",
    "is_pointwise",
    "new_reference",
    "other_side",
    "prompt_macs",
    "row_macs",
    "sweep_bytes",
]
