"""What every part of a record is: a frozen value of strict JSON, open to fields that are not declared.

The type of a circuit as a networkx graph: node ids are text, attributes plain JSON data.

The stubs know that a graph has a type of node; the class itself cannot be subscripted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

import networkx
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from discovery.errors import SiteError
from discovery.graph.strict_json import to_plain_json
from discovery.sites import Node

if TYPE_CHECKING:
    Graph: TypeAlias = networkx.Graph[str]
    DiGraph: TypeAlias = networkx.DiGraph[str]
else:
    Graph = networkx.Graph
    DiGraph = networkx.DiGraph


Number = Annotated[float | None, BeforeValidator(to_plain_json)]
"""A finite number, or None where it is not known (NaN and infinity become None)."""

Json = Annotated[JsonValue, BeforeValidator(to_plain_json)]
"""Anything strict JSON can hold."""


def canonical_node_id(text: str) -> str:
    """A node's name, written canonically."""
    try:
        return str(Node.parse(text))
    except SiteError as fault:
        raise ValueError(fault.cause) from fault


NodeId = Annotated[str, BeforeValidator(str), AfterValidator(canonical_node_id)]
"""A node in the field's grammar, written canonically: L9H6 becomes a9.h6; a `Node` is understood too."""


class JsonModel(BaseModel):
    """The base of every part: frozen, and open to fields that are not declared, kept as strict JSON."""

    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _added_fields_are_json(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        declared = {
            name for field, info in cls.model_fields.items() for name in (field, info.alias)
        }
        return {
            name: value if name in declared else to_plain_json(value)
            for name, value in data.items()
        }

    @classmethod
    def declared_fields(cls) -> frozenset[str]:
        """The declared fields, named as in JSON."""
        return frozenset(info.alias or field for field, info in cls.model_fields.items())


class OmitsEmptyFields(JsonModel):
    """A part that leaves out what most records lack, so that a record without it is written as it was before there was such a thing.

    Attributes:
        spare: the fields that are left out where they are None or empty.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _omit_empty_fields(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        facts: dict[str, Any] = whole(self)
        return {
            name: value
            for name, value in facts.items()
            if value or name not in self.omitted_when_empty
        }


class Effect(JsonModel):
    """A mean over pairs and its 95% interval, as a share of m(clean) − m(corrupted).

    Attributes:
        mean: the effect; 1 restores (denoising) or destroys (noising) the whole difference.
        low: the interval's lower end.
        high: its upper end.
    """

    mean: Number = None
    low: Number = None
    high: Number = None


def locate_first_error(fault: ValidationError) -> tuple[str, str]:
    """Return the place of the first error, such as "nodes.0.id" ("" for the whole), and its text."""
    error = fault.errors(include_url=False, include_input=False)[0]
    return ".".join(str(part) for part in error["loc"]), error["msg"]


def mean_of(effect: Effect | None) -> float | None:
    """Return the mean of an effect; None if it was not measured."""
    return effect.mean if effect else None
