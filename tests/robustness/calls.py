"""Seeded calls of every tool: most are right, and some are spoilt.

The arguments follow the schemas that the server publishes, so a new tool is called too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MODELS = ("induction", "or_mlp")  # directories in the models directory
TASKS = {name: f"{name}/task.jsonl" for name in MODELS}
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "nan",
    "\0",
    "../../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "$(id)",
    "x" * 50_000,
    "a9.h6",
    [],
    [[]],
    {},
    {"__class__": 1},
    ["a0.h0"] * 3000,
    [{"clean": [0, 1], "corrupted": [0, 2], "answer": 1, "wrong": 2}],
)
UNKNOWN_NAMES = ("haed", "", "__class__", "self", "context")
LEFT_OUT = frozenset({"remote", "device", "device_map", "backend", "dtype", "sae", "text"})
EASY_TOOLS = frozenset(
    "ablate_heads check_task direct_logit_attribution evaluate_circuit get_circuit list_models "
    "list_runs load_model logit_lens patch_sweep run_status run_with_cache".split()
)
"""Tools that need no SAE; they are called more often, because the models here have none."""

EASY_WEIGHT = 4
SPOILT_SHARE = 0.3  # of the calls
OPTIONAL_SHARE = 0.2  # of the optional arguments, which a call gives


@dataclass(kw_only=True)
class CallMaker:
    """Draws calls.

    Attributes:
        tools: the name and the input schema of each tool.
        seed: of everything that is drawn.
        run_ids: runs that exist.
    """

    tools: Sequence[tuple[str, Mapping[str, Any]]]
    seed: int
    run_ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def draw(self) -> tuple[str, dict[str, Any]]:
        """Return the name of a tool, and arguments that cost little."""
        weights = [EASY_WEIGHT if name in EASY_TOOLS else 1 for name, _ in self.tools]
        ((name, schema),) = self._random.choices(self.tools, weights)
        arguments = self._draw_right_arguments(schema)
        if self._random.random() < SPOILT_SHARE:
            self._spoil(arguments, schema)
        return name, make_cheap(name, arguments)

    def _draw_right_arguments(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        if {"prompt", "task"} <= set(properties) and not {"prompt", "task"} & required:
            required.add(self._random.choice(("prompt", "task")))
        model = self._random.choice(MODELS)
        drawn = {}
        for name, part in properties.items():
            is_wanted = name in required or (
                name not in LEFT_OUT | {"prompt", "task", "run_id"}
                and self._random.random() < OPTIONAL_SHARE
            )
            if is_wanted:
                drawn[name] = self._draw_argument(name, part, model, schema)
        return drawn

    def _draw_argument(
        self, name: str, part: Mapping[str, Any], model: str, schema: Mapping[str, Any]
    ) -> Any:
        known: dict[str, Any] = {
            "model": model,
            "model_id": model,
            "task": TASKS[model],
            "nodes": self._random.choice((["a0.h0"], ["a0.h1", "a1.h0"], ["a1.h1"])),
            "node": self._random.choice(("a0.h0", "a1.h1")),
            "prompt": [0, 1, 2, 3],
            "pairs": self._random.randint(2, 6),
            "run_id": self._random.choice(self.run_ids or ["nobody"]),
            "run_ids": self.run_ids[:2],
            "sites": ["resid_pre"],
        }
        return known[name] if name in known else self._draw_value(part, schema)

    def _draw_value(self, part: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
        if "$ref" in part:
            return self._draw_value(schema["$defs"][part["$ref"].rpartition("/")[2]], schema)
        if "const" in part:
            return part["const"]
        if "enum" in part:
            return self._random.choice(part["enum"])
        for choices in ("anyOf", "oneOf"):
            if choices in part:
                return self._draw_value(self._random.choice(part[choices]), schema)
        low = part.get("minimum", part.get("exclusiveMinimum", 0))
        high = max(low, min(part.get("maximum", low + 8), low + 8))
        match part.get("type"):
            case "integer":
                return self._random.randint(int(low), int(high))
            case "number":
                return self._random.uniform(low, high)
            case "boolean":
                return self._random.random() < 0.5
            case "string":
                return "a0.h0"
            case "array":
                count = self._random.randint(part.get("minItems", 0), part.get("minItems", 0) + 2)
                return [self._draw_value(part.get("items", {}), schema) for _ in range(count)]
            case "object":
                inner: Mapping[str, Any] = part.get("properties", {})
                return {
                    name: self._draw_value(inner[name], schema)
                    for name in part.get("required", ())
                    if name in inner
                }
        return None

    def _spoil(self, arguments: dict[str, Any], schema: Mapping[str, Any]) -> None:
        names = [*schema.get("properties", {}), *UNKNOWN_NAMES]
        for _ in range(self._random.randint(1, 2)):
            arguments[self._random.choice(names)] = self._random.choice(HOSTILE)


def make_cheap(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Keep a call from the hub, and from work that takes minutes."""
    changed = dict(arguments)
    for switch in ("remote", "device_map"):
        changed.pop(switch, None)
    for source in ("model", "sae", "text"):
        word = changed.get(source)
        if isinstance(word, str) and word not in MODELS and ".." not in word:
            changed[source] = "../nowhere"
    if name in ("train_sae", "discover_circuit"):
        changed |= {"dry_run": True, "wait_seconds": 0}
    if isinstance(changed.get("pairs"), int) and changed["pairs"] > 8:
        changed["pairs"] = 8
    return changed
