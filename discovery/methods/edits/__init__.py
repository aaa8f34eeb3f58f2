"""Declarative edits: changes of activations as a file that can be shared, and what they do.

`edit_set` defines the file, and `run_with_edits` applies one to the pairs of a task or to a prompt.
"""

from __future__ import annotations

from discovery.methods.edits.edit_set import EDITS_SCHEMA, EditSet, edits_json_schema
from discovery.methods.edits.run_with_edits import EditRun, TokenChange, run_with_edits
from discovery.methods.edits.sweep_cells import cell_edits

__all__ = [
    "EDITS_SCHEMA",
    "EditRun",
    "EditSet",
    "TokenChange",
    "cell_edits",
    "edits_json_schema",
    "run_with_edits",
]
