"""Tasks: a behaviour as pairs of a clean and a corrupted prompt, with right and wrong answers.

Load a task for a model:

    from discovery import load_model, load_task
    model = load_model("bundled")
    task = load_task("ioi", model, pairs=240, seed=0)     # or a task file, or a list of pairs
    task.discovery, task.heldout                          # these are tasks too

Nothing in this package needs torch.
"""

from __future__ import annotations

from discovery.tasks.builtin import BUILTIN, BUNDLED_TASKS, find_misfits
from discovery.tasks.loader import TEXT_PAIRS, load_task, require_source
from discovery.tasks.pairs import PromptPair, Tokenizer
from discovery.tasks.task import EncodedPair, Task

__all__ = [
    "BUILTIN",
    "BUNDLED_TASKS",
    "TEXT_PAIRS",
    "EncodedPair",
    "PromptPair",
    "Task",
    "Tokenizer",
    "find_misfits",
    "load_task",
    "require_source",
]
