"""The base classes and types of every part of a record.

A part is a frozen value of strict JSON. It may have fields that are not declared here; they are
kept. `Graph` and `DiGraph` are networkx graphs whose node ids are text and whose attributes are
plain JSON.
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

if TYPE_CHECKING:  # the type stubs take a type of node, the classes themselves do not
    Graph: TypeAlias = networkx.Graph[str]
    DiGraph: TypeAlias = networkx.DiGraph[str]
else:
    Graph = networkx.Graph
    DiGraph = networkx.DiGraph


Number = Annotated[float | None, BeforeValidator(to_plain_json)]
"""A finite number, or None if it is not known. NaN and infinity become None."""

Json = Annotated[JsonValue, BeforeValidator(to_plain_json)]
"""Anything that strict JSON can hold."""


def canonical_node_id(text: str) -> str:
    """Return a node's name in its canonical form: L9H6 becomes a9.h6."""
    try:
        return str(Node.parse(text))
    except SiteError as fault:
        raise ValueError(fault.cause) from fault


NodeId = Annotated[str, BeforeValidator(str), AfterValidator(canonical_node_id)]
"""A node's name in its canonical form. It is read from any form of the name, or from a `Node`."""


class JsonModel(BaseModel):
    """The base of every value in JSON. It is frozen, and keeps fields that are not declared."""

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


class OmitsEmptyFields(JsonModel):
    """A part that leaves out certain fields if they are None or an empty collection.

    These are fields that most records lack. A record without them is written as it was before the
    field existed. A number that is 0 is written.

    Attributes:
        omitted_when_empty: the names of these fields.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _omit_empty_fields(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        facts: dict[str, Any] = serialise(self)
        return {
            name: value
            for name, value in facts.items()
            if name not in self.omitted_when_empty or not _is_empty(value)
        }


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple | dict | str) and not value)


class Effect(JsonModel):
    """A mean over pairs and its 95% interval, as a share of m(clean) − m(corrupted).

    Attributes:
        mean: the effect; 1 restores (denoising) or removes (noising) the whole difference.
        low: the lower end of the interval.
        high: the upper end of the interval.
    """

    mean: Number = None
    low: Number = None
    high: Number = None


def locate_first_error(fault: ValidationError) -> tuple[str, str]:
    """Return the place of the first error, such as "nodes.0.id", and its text.

    The place is "" if the error is about the whole value.
    """
    error = fault.errors(include_url=False, include_input=False)[0]
    return ".".join(str(part) for part in error["loc"]), error["msg"]


def mean_of(effect: Effect | None) -> float | None:
    """Return the mean of an effect; None if it was not measured."""
    return effect.mean if effect else None
